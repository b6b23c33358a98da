"""ClipTrainer: what every method shares. A method gives its defaults, its classifier and, if it has one, its loss."""

import copy
import math
import os
import shutil
import sys
from collections.abc import Callable

import torch
from torch.nn import functional as F
from yacs.config import CfgNode as CN

from dassl.data.data_manager import DatasetWrapper, build_data_loader
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import check_availability, count_num_param, load_checkpoint, load_pretrained_weights

from .shared.backbones import load_clip
from .shared.classes import class_ids, classes_of_training, places_of, rows_by_name
from .shared.console import say
from .shared.keys import Decides, Key, values
from .shared.loaders import BY_ITEM, is_fixed
from .shared.processes import add_up, gather, own_draws, parts

# amp: fp16 autocast with scaled gradients; bf16: autocast, no scaling; fp16: the originals' default, here amp;
# auto: bf16 where the device has it, else amp on a GPU
PRECISIONS = ["fp32", "amp", "bf16", "fp16", "auto"]
FEATURES = 2**30  # bytes of frozen image features that a training keeps, at most


class ClipTrainer(TrainerX):
    """Trains the few tensors that a method adds to a frozen CLIP.

    A method is a subclass registered with `TRAINER_REGISTRY`. It sets

    - `defaults`: its config node, `cfg.TRAINER.<CLASS NAME IN CAPITALS>`, PREC among them; a `Key` says what a value
      may be;
    - `learner`: name of the classifier's submodule that holds all that is learned; empty for zero-shot methods.
      Without parameters (a cache in buffers) it is filled by `fit` and not trained;
    - `per_class`: names of the learner's tensors with a row for each class. A checkpoint's rows are taken by the names
      of the classes; a class that was not trained on keeps the row that `build_classifier` gave it;
    - `decides`: keys of its node that decide in place of other keys, each with its `Decides`;
    - `registered`: name of the checkpoints' folder, where that of `learner` is not the original's;
    - `node_name`, `root`: the name of another node, and keys beside TRAINER, of originals whose settings lie there;
    - `lr_per_batch`: whether the learning-rate schedule steps after each batch rather than each epoch;

    implements `build_classifier`, and overrides those of the other hooks of which it wants more than what they do here.
    """

    defaults: dict = {"PREC": Key("amp", choices=PRECISIONS)}
    learner: str = ""
    per_class: tuple[str, ...] = ()
    decides: dict[str, Decides] = {}
    registered: str = ""
    node_name: str = ""
    root: dict = {}
    lr_per_batch: bool = False
    draws_by_item: bool = True
    test_replaces_val: bool = False  # nothing is chosen on test images
    share: float = 1.0  # of the batch's images that this process has, of several; the training loop says it

    # ---------------------------------------------------------------- hooks

    def check_node(self, node: CN) -> None:
        """Raises ValueError if the settings in the method's config node make no sense together."""
        check_availability(node.PREC, PRECISIONS)
        check_values(self.defaults, node, self.key())

    def build_classifier(self, clip_model, classnames: list[str]):
        """Returns the method's `ClipClassifier` around the frozen CLIP, on the CLIP's device."""
        raise NotImplementedError

    def fit(self) -> None:
        """What is done once before training, unless a checkpoint is gone on from: for example, filling a cache."""

    def losses(self, image: torch.Tensor, label: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The terms whose sum is minimised, by name, and the logits float [B, n_cls] of the training batch."""
        logits = self.model(image)
        return {"ce": F.cross_entropy(logits, label)}, logits

    def backward(self, terms: dict[str, torch.Tensor]) -> None:
        """Leaves the gradients, scaled by `self.scaler`, in the trained tensors, those of all processes added up."""
        self.scaler.scale(sum(terms.values())).backward()
        add_up([p.grad for p in self.model.get_submodule(self.learner).parameters()])

    def load_published(self, directory: str) -> bool:
        """Loads what the method's original, if it is not written for Dassl, left in a directory; False: nothing."""
        return False

    # ---------------------------------------------------------------- set-up

    @property
    def node(self) -> CN:
        """The method's own config node."""
        return self.cfg.TRAINER[node_of(type(self))]

    def key(self, name: str = "") -> str:
        """A key of that node, or the node itself, as people write it."""
        return ".".join(["TRAINER", node_of(type(self)), *[name] * bool(name)])

    def check_cfg(self, cfg):
        self.check_node(cfg.TRAINER[node_of(type(self))])
        check_values(self.root, cfg)

    def build_model(self):
        cfg, name = self.cfg, self.cfg.MODEL.BACKBONE.NAME
        if self.num_classes < 2:
            part = f"DATASET.SUBSAMPLE_CLASSES {cfg.DATASET.SUBSAMPLE_CLASSES} of {cfg.DATASET.NAME}"
            raise ValueError(f"{part} has one class: a classifier needs two or more, so take all classes")
        say(f"Loading CLIP (backbone: {name})")
        clip_model = load_clip(name, self.device)
        if tuple(cfg.INPUT.SIZE) != (clip_model.visual.input_resolution,) * 2:
            side = clip_model.visual.input_resolution
            raise ValueError(
                f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}, but {name} takes ({side}, {side}): set INPUT.SIZE "
                f"or choose the --config-file of this backbone"
            )

        self.model = self.build_classifier(clip_model, self.dm.dataset.classnames).to(self.device)
        self.trained_classes = torch.zeros(self.num_classes, dtype=torch.bool, device=self.device)
        self.model.text_encoder.at_once = cfg.TRAIN.get("CLASS_CHUNK", 0)
        self.set_precision(self.node.PREC)
        if cfg.TRAIN.get("COMPILE"):
            self.compile_encoders()
        self.optim = self.sched = None
        if not self.learner:
            return
        learner = self.model.get_submodule(self.learner)
        unknown = [name for name in self.per_class if name not in learner.state_dict()]
        if unknown:
            there = ", ".join(learner.state_dict())
            raise ValueError(f'{type(self).__name__}.per_class names "{unknown[0]}", but the learner has {there}')
        if cfg.MODEL.INIT_WEIGHTS:
            self.load_init_weights(learner, cfg.MODEL.INIT_WEIGHTS)
        if count_num_param(learner):
            say(f"Trained parameters: {count_num_param(learner):,} of {count_num_param(self.model):,}")
            optim = self.optim_cfg()
            self.optim = build_optimizer(learner, optim)
            self.sched = build_lr_scheduler(self.optim, optim)
        self.register_model(self.registered or self.learner, learner, self.optim, self.sched)

    def optim_cfg(self) -> CN:
        """`cfg.OPTIM`, with `lr_per_batch` in batches instead of epochs."""
        optim = self.cfg.OPTIM.clone()
        if self.lr_per_batch:
            optim.defrost()
            batches = len(self.train_loader_x or [None])  # without training data, as predict.py is, any number does
            optim.MAX_EPOCH, optim.WARMUP_EPOCH = optim.MAX_EPOCH * batches, optim.WARMUP_EPOCH * batches
            steps = optim.STEPSIZE
            optim.STEPSIZE = steps * batches if isinstance(steps, int) else type(steps)(s * batches for s in steps)
        return optim

    def set_precision(self, precision: str) -> None:
        if precision == "auto":
            on_gpu = "bf16" if self.device.type == "cuda" and torch.cuda.is_bf16_supported() else "amp"
            precision = "fp32" if self.device.type == "cpu" else on_gpu
            say(f"PREC auto: {precision} is used here")
        if precision == "fp16":
            say("PREC fp16: amp is used, as trained tensors stay in fp32 here")
            precision = "amp"
        if self.device.type == "cpu" and precision != "fp32":
            say(f"PREC {precision} is for GPUs: fp32 is used on the CPU")
            precision = "fp32"
        if precision == "bf16" and not torch.cuda.is_bf16_supported():
            raise ValueError("PREC bf16: this GPU has no bfloat16; take amp or fp32")
        dtype = torch.float16 if precision == "amp" else torch.bfloat16
        self.autocast = {"device_type": self.device.type, "enabled": precision != "fp32", "dtype": dtype}
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "amp")

    def compile_encoders(self) -> None:
        """In place: names of parameters stay. Whatever a method puts in by the two seams is compiled with them.

        Raises:
            ValueError: there is no compiler on this machine.
        """
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        if not shutil.which(compiler):
            lacking = f'there is no C++ compiler "{compiler}" on this machine'
            raise ValueError(f"TRAIN.COMPILE True: {lacking}: install one, set CXX, or leave TRAIN.COMPILE out")
        say("TRAIN.COMPILE: the first step and the first evaluation wait for the compiler, see docs/speed.md")
        for encoder in (self.model.image_encoder, self.model.text_encoder):
            encoder.compile()

    # ---------------------------------------------------------------- the one training step

    def forward_backward(self, batch) -> dict[str, float]:
        image, label = self.parse_batch_train(batch)
        self.trained_classes.index_fill_(0, label, True)
        if self.max_epoch > 1 and self.images_repeat():
            self.model.know(image, batch["index"], self.encode_training)
        with own_draws(self.epoch, self.batch_idx), torch.autocast(**self.autocast):
            terms, logits = self.losses(image, label)
        terms = {name: self.share * term for name, term in terms.items()}  # all processes' add up to the batch's means
        self.optim.zero_grad()
        self.backward(terms)
        accuracy = self.share * compute_accuracy(logits, label)[0]
        values = torch.stack([*terms.values(), accuracy.reshape(())]).detach()
        *values, accuracy = add_up([values])[0].tolist()  # the one wait for the GPU
        self.check_finite(dict(zip(terms, values, strict=True)))
        self.scaler.step(self.optim)
        self.scaler.update()
        if self.lr_per_batch or self.batch_idx + 1 == self.num_batches:
            self.update_lr()

        parts = dict(zip(terms, values, strict=True)) if len(terms) > 1 else {}
        return {"loss": sum(values), **parts, "acc": accuracy}

    def check_finite(self, terms: dict[str, float]) -> None:
        """Raises FloatingPointError naming the term that is infinite or NaN."""
        rate = self.key("REACH") if self.node.get("REACH") else "OPTIM.LR"  # what sets it
        for name, value in terms.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f'the loss term "{name}" is {value} in epoch {self.epoch + 1}, batch {self.batch_idx + 1}: lower '
                    f"{rate} (the rate is {self.get_current_lr():g} now) or set {self.key('PREC')} fp32; "
                    f"the checkpoints in {self.output_dir} are untouched"
                )

    def parse_batch_train(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        return batch["img"].to(self.device, non_blocking=True), batch["label"].to(self.device, non_blocking=True)

    # ---------------------------------------------------------------- the rest of a run

    def train(self):
        if self.learner:
            super().train()
        else:
            say(f"{type(self).__name__} has nothing to train")
            self.test()

    def before_train(self):
        super().before_train()
        if self.optim is None:
            self.max_epoch = 1  # in which nothing but `fit` is done, and a checkpoint written
        if self.start_epoch == 0:
            self.fit()

    def run_epoch(self):
        if self.optim is not None:
            super().run_epoch()
            self.trained_classes = add_up([self.trained_classes.float()])[0] > 0  # in any process

    def after_epoch(self):
        if self.val_is_cheap():
            self.tell_val()
        super().after_epoch()

    def val_is_cheap(self) -> bool:
        """Return whether the accuracy on val is told after each epoch: of own images, at a sixth of a training's cost.

        A training step costs about three forward passes an image, so val has at most half as many images as train.
        Where the best epoch on val is looked for, it is evaluated anyway.
        """
        if self.cfg.DATASET.NAME != "Images" or self.optim is None:
            return False
        if self.cfg.TEST.NO_TEST or self.cfg.TEST.FINAL_MODEL == "best_val":
            return False
        return 0 < 2 * len(self.dm.dataset.val) <= len(self.dm.dataset.train_x)

    @torch.no_grad()
    def tell_val(self) -> None:
        """Print the accuracy on val. Whatever is drawn for it, the training goes on as if it were not."""
        self.set_model_mode("eval")
        right = total = 0
        with torch.random.fork_rng(devices=[]):
            for batch, part in parts(self.val_loader):
                image, label = self.parse_batch_test(batch)
                logits, label = gather(part, self.model_inference(image), label)
                right += int((logits.argmax(1) == label).sum())
                total += len(label)
        told = f"accuracy on val: {100 * right / total:.1f}% ({right:,} of {total:,})"
        print(f"epoch [{self.epoch + 1}/{self.max_epoch}] {told}")
        self.write_scalar("val/accuracy", 100 * right / total, self.epoch)

    def after_train(self):
        if self.optim is not None:
            self.tell_untrained()
        super().after_train()

    def tell_untrained(self) -> None:
        """Print which classes were in no training batch, as the last, incomplete batch of an epoch is left out."""
        names = [self.lab2cname[label] for label, seen in enumerate(self.trained_classes.tolist()) if not seen]
        if names:
            size = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
            say(f"{len(names)} of {self.num_classes} classes were in no training batch: {', '.join(names)}")
            say(f"Give a smaller DATALOADER.TRAIN_X.BATCH_SIZE than {size}: an incomplete last batch is left out")

    def set_model_mode(self, mode="train", names=None):
        super().set_model_mode(mode, names)
        self.model.train(mode == "train")  # the registered part is only the learner

    def model_inference(self, image: torch.Tensor) -> torch.Tensor:
        with torch.autocast(**self.autocast):
            return self.model(image)

    def images_repeat(self) -> bool:
        """Whether the training images are the same each time, nothing in their transform being random.

        So are their frozen features then, which are kept unless that takes more than `FEATURES`.
        """
        dataset, width = getattr(self.train_loader_x, "dataset", None), self.model.text_encoder.text_projection.shape[1]
        known = type(dataset) is DatasetWrapper and is_fixed(dataset.transform)
        return known and 4 * width * len(dataset) <= FEATURES

    def encode_training(self) -> torch.Tensor:
        """Their frozen features, float32 [n, embed_dim]: all in one order, so that resumed runs have the same."""
        dataset = self.train_loader_x.dataset
        say(f"Nothing is random in INPUT.TRANSFORMS: the frozen features of {len(dataset)} images are kept")
        with torch.random.fork_rng(devices=[]):  # which a run without them would not have drawn from
            return self.encode(dataset.data_source, dataset.transform)[0]

    def passes(self, n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """`features` of the training images n times, each time through the training transform; for `fit`."""
        different = 1 if self.images_repeat() else n
        passes = [self.features(self.dm.dataset.train_x, train=True) for _ in range(different)]
        return passes * (n // different)

    def features(self, items, train: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """The frozen CLIP's image features of a list of `Datum`, in its order, for `fit`.

        Args:
            train: whether the images go through the training transform, as random as that is, or the test transform.

        Returns:
            float32 [n, embed_dim], not normalised, and labels int64 [n]; on the trainer's device.
        """
        return self.encode(items, build_transform(self.cfg, is_train=train, **BY_ITEM))

    @torch.no_grad()
    def encode(self, items, transform: Callable) -> tuple[torch.Tensor, torch.Tensor]:
        """The same through any transform."""
        size, features, labels = self.cfg.DATALOADER.TEST.BATCH_SIZE, [], []
        loader = build_data_loader(
            self.cfg, data_source=items, batch_size=size, tfm=transform, is_train=False, **BY_ITEM
        )
        for batch, part in parts(loader):
            image, label = self.parse_batch_test(batch)
            with torch.autocast(**self.autocast):
                encoded = self.model.image_encoder(image).float()
            for kept, rows in zip((features, labels), gather(part, encoded, label), strict=True):
                kept.append(rows)
        return torch.cat(features), torch.cat(labels)

    def get_extra_state(self):
        # amp's loss scale; the classes that the learner is of; those that were in a batch so far
        return {
            "scaler": self.scaler.state_dict(),
            "classes": list(self.dm.dataset.classnames),
            "trained_classes": self.trained_classes.cpu(),
        }

    def set_extra_state(self, state):
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        trained = state.get("trained_classes", torch.empty(0))
        if len(trained) == self.num_classes:
            self.trained_classes = trained.to(self.device)
        else:
            self.trained_classes.fill_(True)  # of an earlier version, or of other classes: not known, so none is named

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        # the original Dassl prints the result as a number when it loads, and could not print None
        super().save_model(epoch, directory, is_best, math.nan if val_result is None else val_result, model_name)

    # ---------------------------------------------------------------- learners of which a part belongs to a class

    def suit_checkpoint(self, checkpoint, path, resume=False):
        weights, learner = checkpoint.get("state_dict", checkpoint), self.model.get_submodule(self.learner)
        place = self.places_in(checkpoint, path)
        if place is None or not isinstance(weights, dict):
            return checkpoint
        by_itself = "classes" in dict(learner.named_buffers()) and not resume
        lost = () if by_itself else self.tensors_of_classes(weights)
        lost = [name for name in lost if resume or name not in self.per_class]
        if lost:
            wrong = f'"{lost[0]}" in "{path}" belongs to the classes of its training, and the classes here are others'
            advice = f"give those classes, or name it in {type(self).__name__}.per_class (docs/design.md)"
            if resume:
                advice = "start from its weights with MODEL.INIT_WEIGHTS and another --output-dir"
            raise ValueError(f"{wrong}: {advice}")
        own = learner.state_dict()
        rows = {name: rows_by_name(own[name], weights[name], place) for name in self.per_class if name in weights}
        if rows:
            trained = int((place >= 0).sum())
            say(f"{', '.join(rows)}: {trained} of these {len(place)} classes were trained, others are as at the start")
        return {**checkpoint, "state_dict": {**weights, **rows}}

    def places_in(self, checkpoint: dict, path: str) -> torch.Tensor | None:
        """Return where each class stands among those of the checkpoint; None: they are the same, or not known."""
        trained, here = classes_of_training(checkpoint, path), self.dm.dataset.classnames
        if trained is None or torch.equal(class_ids(trained), class_ids(here)):
            return None
        return places_of(class_ids(here), class_ids(trained))

    def tensors_of_classes(self, weights: dict) -> list[str]:
        """Return the names of the tensors of a checkpoint that would be loaded by the position of a class.

        A dimension of as many entries as there are classes may be any other. So the learner is built a second time,
        with a class less: of the classes are the tensors that have another shape then.
        """
        names, own = self.dm.dataset.classnames, self.model.get_submodule(self.learner).state_dict()
        suspects = [name for name, tensor in own.items() if name in weights and len(names) in tensor.shape]
        if not suspects:
            return []
        trainer = copy.copy(self)  # `build_classifier` may set attributes
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            clip_model = load_clip(self.cfg.MODEL.BACKBONE.NAME, self.device)
            less = trainer.build_classifier(clip_model, names[:-1]).get_submodule(self.learner).state_dict()
        return [name for name in suspects if name not in less or less[name].shape != own[name].shape]

    def load_init_weights(self, learner: torch.nn.Module, path: str) -> None:
        """Load MODEL.INIT_WEIGHTS: those that fit, and of `per_class` those of the same classes."""
        start = {name: learner.state_dict()[name].clone() for name in self.per_class}
        checkpoint = load_checkpoint(path)
        weights = self.suit_checkpoint(checkpoint, path).get("state_dict", checkpoint)
        load_pretrained_weights(learner, path)
        for name in start.keys() & weights.keys():
            learner.state_dict()[name].copy_(weights[name])

    def load_model(self, directory, epoch=None):
        if not directory:
            say("No --model-dir: the model is evaluated as it was built")
        elif self.learner and not self.load_published(directory):
            super().load_model(directory, epoch)
        self.model.train(self.model.training)  # forgets the features of the weights before


def load_tensors(learner: torch.nn.Module, state: dict, path: str) -> None:
    """Loads the tensors of a published file. Raises ValueError if they do not fit, or are not finite."""
    try:
        learner.load_state_dict(state)
    except (RuntimeError, AttributeError, LookupError, TypeError) as error:  # by what it holds instead
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f'what "{path}" holds does not fit the settings here ({reason})') from error
    if not all(tensor.isfinite().all() for tensor in learner.state_dict().values()):
        raise ValueError(f'"{path}" has infinity or NaN: its training diverged, take another')
    say(f'Loaded what is published in "{path}"')


def node_of(trainer: type) -> str:
    """Name of a method's config node."""
    return getattr(trainer, "node_name", "") or trainer.__name__.upper()


def check_values(declared: dict, node: CN, where: str = "") -> None:
    """Raises ValueError for a value that its Key does not allow; `where`: name of the node, nothing for the root."""
    for name, key in declared.items():
        full = f"{where}.{name}" if where else name
        if isinstance(key, dict):
            check_values(key, node[name], full)
        elif isinstance(key, Key) and not key.allows(node[name]):
            raise ValueError(f"{full} is {node[name]!r}, but must be {key}")


def extend_cfg(cfg: CN, trainer: str = "") -> None:
    """Adds the defaults of every registered method to `cfg.TRAINER`, as CoOp's train.py does by hand.

    Args:
        trainer: the one that runs; where several share a node, it has this one's defaults, else the owner's.
    """
    names = sorted(
        TRAINER_REGISTRY.registered_names(), key=lambda name: node_of(TRAINER_REGISTRY.get(name)) == name.upper()
    )
    for name in [*names, *[trainer] * bool(trainer)]:
        method = TRAINER_REGISTRY.get(name)
        if hasattr(method, "defaults"):
            cfg.TRAINER[node_of(method)] = CN(values(method.defaults))
            cfg.update(CN(values(method.root)) if name == trainer else {})
