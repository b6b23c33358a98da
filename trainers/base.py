"""ClipTrainer: the base class of all methods. A method adds its defaults, its classifier and, if needed, its loss.

The hooks that a method overrides come first. The set-up, the training step and the rest of a run follow.
"""

import copy
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F
from yacs.config import CfgNode as CN

from dassl.data.data_manager import DatasetWrapper, build_data_loader
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import count_num_param, load_checkpoint, load_pretrained_weights

from .shared.backbones import load_clip
from .shared.beside_dassl import BY_ITEM, FeatureCache, add_up, gather, is_fixed, own_draws, parts, say, size, values
from .shared.classes import class_ids, classes_of_training, positions_of, rows_by_name
from .shared.classifier import ClipClassifier
from .shared.keys import DecidingKey, Key

# fp32: no autocast
# amp: fp16 autocast with scaled gradients
# bf16: bfloat16 autocast without scaling
# fp16: the default of the originals; here the same as amp
# auto: bf16 on a GPU that supports it, amp on other GPUs, fp32 on the CPU
PRECISIONS = ["fp32", "amp", "bf16", "fp16", "auto"]
FEATURES = 2**30  # maximum size of the frozen image features that are kept in memory, in bytes


class ClipTrainer(TrainerX):
    """A trainer of the few tensors that a method adds to a frozen CLIP.

    A method is a subclass registered with `TRAINER_REGISTRY`. It implements `build_classifier`, overrides the other
    hooks where it needs to, and sets these attributes:

    - `defaults`: its config node, `cfg.TRAINER.<CLASS NAME IN CAPITALS>`, including PREC. A `Key` also restricts the
      values that are allowed.
    - `learner`: name of the classifier's submodule that holds all learned tensors; empty for zero-shot methods.
      A submodule without parameters (a cache in buffers) is filled by `fit` and is not trained.
    - `per_class`: names of the learner's tensors with one row per class. The rows of a checkpoint are matched by class
      name. A class that was not trained on keeps the row that `build_classifier` made.
    - `deciding_keys`: keys of its node that override other keys, each with a `DecidingKey`.
    - `unread_keys`: keys outside of its node that it does not read, with reasons. Setting one on the command line is
      an error.
    - `registered`: name of the checkpoint folder, if the original does not use the name in `learner`.
    - `settings_of`: name of a method whose YAML files are used if the method and its parent classes have none.
    - `node_name`, `root`: name of another node, and keys outside of it, for originals that have their settings there.
    - `plan`: lines of `train.py --print-config`, learning rate, epochs or steps, that OPTIM does not determine.
    - `views`: the largest DATALOADER.K_TRANSFORMS, augmented copies of each training image in a batch.
    - `adaptation`: words for the data that the model adapts to while it predicts; empty for most methods. The
      evaluation of such a method can be resumed. If its model has a state that the images change, the method also
      overrides `get_adaptation_state` and `set_adaptation_state`.
    - `lr_per_batch`: whether the learning-rate schedule steps after each batch instead of after each epoch.
    - `draws_by_item`: whether the random transforms of an image depend on the epoch and the image alone, not on the
      images before it. Dassl's trainers draw from one stream.
    - `test_replaces_val`: whether an evaluation on val uses the test images if there are no val images, as in Dassl.
      False: it is an error.
    """

    defaults: dict = {"PREC": Key("amp", choices=PRECISIONS)}
    learner: str = ""
    per_class: tuple[str, ...] = ()
    deciding_keys: dict[str, DecidingKey] = {}
    unread_keys: dict[str, str] = {}
    registered: str = ""
    settings_of: str = ""
    node_name: str = ""
    root: dict = {}
    lr_per_batch: bool = False
    plan: dict[str, str] = {}
    views: int = 1
    adaptation: str = ""
    draws_by_item: bool = True
    test_replaces_val: bool = False
    batch_fraction: float = 1.0  # fraction of the batch's images in this process; set by the training loop
    feature_cache = None  # the `FeatureCache` of DATASET.FEATURE_CACHE
    cached_seconds: float = 0.0  # time that other runs spent on encoding the features that this run read from the cache
    # int64 [B], rows of the step's images in the cached frozen features; None: nothing is cached. `forward_backward`
    # sets it for `frozen_input`, which `losses` calls: the hook `losses` has fixed arguments and cannot pass it on.
    step_rows: torch.Tensor | None = None

    # ---------------------------------------------------------------- hooks

    def check_node(self, node: CN) -> None:
        """Raise ValueError if the settings of the method's config node contradict each other.

        The value of each key alone has been checked by its `Key` when the config was merged.
        """

    def build_classifier(self, clip_model, classnames: list[str]):
        """Return the method's `ClipClassifier` around the frozen CLIP, on the CLIP's device."""
        raise NotImplementedError

    def test_transform(self):
        """Return the transform of a test image, from a PIL image to the input of `model`."""
        return build_transform(self.cfg, is_train=False)

    def check_descriptions(self) -> None:
        """Read the descriptions, if the method has some. Raise ValueError if they do not fit the classes."""
        if self.node.get("DESCRIPTIONS"):
            self.model.sentences  # noqa: B018

    def fit(self) -> None:
        """Prepare a training, for example by filling a cache. A resumed training does not call it."""

    def losses(self, image: torch.Tensor, label: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the loss terms by name, whose sum is minimised, and the logits float [B, n_cls] of the batch."""
        logits = self.model(self.model_input(image))
        return {"ce": F.cross_entropy(logits, label)}, logits

    def backward(self, terms: dict[str, torch.Tensor]) -> None:
        """Compute the gradients of the trained tensors, scaled by `self.scaler` and summed over all processes."""
        self.scaler.scale(sum(terms.values())).backward()
        add_up([p.grad for p in self.model.get_submodule(self.learner).parameters()])

    def facts(self) -> dict:
        """Return the method's own entries of `results.json`."""
        return {}

    def load_published(self, directory: str) -> bool:
        """Load the files of the method's original code from a directory.

        Only methods whose original does not save Dassl's checkpoints override this.

        Returns:
            Whether the directory has such files.
        """
        return False

    # ---------------------------------------------------------------- set-up

    @property
    def node(self) -> CN:
        """The config node of the method."""
        return self.cfg.TRAINER[node_of(type(self))]

    def key(self, name: str = "") -> str:
        """Return the full name of a key of the method's node, or of the node itself, for messages."""
        node = f"TRAINER.{node_of(type(self))}"
        return f"{node}.{name}" if name else node

    def check_cfg(self, cfg):
        if cfg.DATASET.get("FEATURE_CACHE") and size() > 1:
            raise ValueError("DATASET.FEATURE_CACHE is for one process: leave it out, or start without torchrun")
        self.check_node(cfg.TRAINER[node_of(type(self))])

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
        if cfg.DATASET.get("FEATURE_CACHE"):
            self.feature_cache = FeatureCache(cfg.DATASET.FEATURE_CACHE, cfg.DATASET.FEATURE_CACHE_GIB)
        if cfg.TRAIN.get("COMPILE"):
            self.compile_encoders()
        self.optim = self.sched = None
        if not self.learner:
            return
        learner = self.model.get_submodule(self.learner)
        unknown_names = [name for name in self.per_class if name not in learner.state_dict()]
        if unknown_names:
            tensors = ", ".join(learner.state_dict())
            problem = f'{type(self).__name__}.per_class names "{unknown_names[0]}"'
            raise ValueError(f"{problem}, but the learner has {tensors}: name one of these")
        if cfg.MODEL.INIT_WEIGHTS:
            self.load_init_weights(learner, cfg.MODEL.INIT_WEIGHTS)
        if count_num_param(learner):
            say(f"Trained parameters: {count_num_param(learner):,} of {count_num_param(self.model):,}")
            optim = self.optim_cfg()
            self.optim = build_optimizer(learner, optim)
            self.sched = build_lr_scheduler(self.optim, optim)
        self.register_model(self.registered or self.learner, learner, self.optim, self.sched)

    def optim_cfg(self) -> CN:
        """Return a copy of `cfg.OPTIM`. With `lr_per_batch` its epochs are converted to batches."""
        optim = self.cfg.OPTIM.clone()
        if self.lr_per_batch:
            optim.defrost()
            # predict.py has no training data and does not use the number of batches
            batches = len(self.train_loader_x) if self.train_loader_x else 1
            optim.MAX_EPOCH *= batches
            optim.WARMUP_EPOCH *= batches
            steps = optim.STEPSIZE
            optim.STEPSIZE = steps * batches if isinstance(steps, int) else type(steps)(s * batches for s in steps)
        return optim

    def set_precision(self, precision: str) -> None:
        if precision == "auto":
            uses_gpu = "bf16" if self.device.type == "cuda" and torch.cuda.is_bf16_supported() else "amp"
            precision = "fp32" if self.device.type == "cpu" else uses_gpu
            say(f"PREC auto: {precision} is used on this device")
        if precision == "fp16":
            say("PREC fp16: amp is used, because trained tensors stay in fp32 in this project")
            precision = "amp"
        if self.device.type == "cpu" and precision != "fp32":
            say(f"PREC {precision} is for GPUs: fp32 is used on the CPU")
            precision = "fp32"
        if precision == "bf16" and not torch.cuda.is_bf16_supported():
            raise ValueError("PREC bf16: this GPU has no bfloat16; set PREC to amp or fp32")
        dtype = {"fp32": None, "amp": torch.float16, "bf16": torch.bfloat16}[precision]
        self.autocast = {"device_type": self.device.type, "enabled": precision != "fp32", "dtype": dtype}
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "amp")

    def compile_encoders(self) -> None:
        """Compile both encoders in place, so that the names of their parameters stay the same.

        Changes that a method makes through the arguments `deep` and `linear` of the encoders are compiled with them.

        Raises:
            ValueError: there is no compiler on this machine.
        """
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        if not shutil.which(compiler):
            problem = f'there is no C++ compiler "{compiler}" on this machine'
            raise ValueError(f"TRAIN.COMPILE True: {problem}: install one, set CXX, or leave TRAIN.COMPILE out")
        say("TRAIN.COMPILE: the first step and the first evaluation wait for the compiler, see docs/speed.md")
        for encoder in (self.model.image_encoder, self.model.text_encoder):
            encoder.compile()

    # ---------------------------------------------------------------- the one training step

    def forward_backward(self, batch) -> dict[str, float]:
        image, label = self.parse_batch_train(batch)
        self.trained_classes.index_fill_(0, label, True)
        self.step_rows = batch["index"] if self.max_epoch > 1 and self.images_repeat() else None
        with own_draws(self.epoch, self.batch_idx), torch.autocast(**self.autocast):
            terms, logits = self.losses(image, label)
        self.step_rows = None
        # the sum over all processes is then the mean over the batch
        terms = {name: self.batch_fraction * term for name, term in terms.items()}
        self.optim.zero_grad()
        self.backward(terms)
        accuracy = self.batch_fraction * compute_accuracy(logits, label)[0]
        numbers = torch.stack([*terms.values(), accuracy.reshape(())]).detach()
        *numbers, accuracy = add_up([numbers])[0].tolist()  # the only synchronisation with the GPU in a step
        value_of_term = dict(zip(terms, numbers, strict=True))
        self.check_finite(value_of_term)
        self.scaler.step(self.optim)
        self.scaler.update()
        if self.lr_per_batch or self.batch_idx + 1 == self.num_batches:
            self.update_lr()

        return {"loss": sum(numbers), **(value_of_term if len(terms) > 1 else {}), "acc": accuracy}

    def check_finite(self, terms: dict[str, float]) -> None:
        """Raise FloatingPointError with the name of a term that is infinite or NaN."""
        rate = self.key("REACH") if self.node.get("REACH") else "OPTIM.LR"  # the key that sets the learning rate
        for name, value in terms.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f'the loss term "{name}" is {value} in epoch {self.epoch + 1}, batch {self.batch_idx + 1}: lower '
                    f"{rate} (the rate is {self.get_current_lr():g} now) or set {self.key('PREC')} fp32; "
                    f"the checkpoints in {self.output_dir} are untouched"
                )

    def parse_batch_train(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        return batch["img"].to(self.device, non_blocking=True), batch["label"].to(self.device, non_blocking=True)

    # ---------------------------------------------------------------- frozen features that are the same in each epoch

    def frozen_input(self, image: torch.Tensor) -> torch.Tensor:
        """Return the argument of `model.frozen_image` for the images of the step.

        These are the cached features if each image is the same in each epoch, else the images. `losses` calls this only
        for its argument `image`, and not for images that it makes itself, for example cut ones.
        """
        if self.step_rows is None:
            return image
        features = self.model.compute_frozen_once("training images", self.encode_training)
        return features[self.step_rows.to(features.device)]

    def model_input(self, image: torch.Tensor) -> torch.Tensor:
        """Return the argument of `model` for the images of the step; see `frozen_input`."""
        return self.frozen_input(image) if self.model.takes_features else image

    def images_repeat(self) -> bool:
        """Return whether the frozen features of the training images can be cached.

        This needs a transform without random parts, so that each image is the same in each epoch, and features that
        take at most `FEATURES` bytes.
        """
        dataset = getattr(self.train_loader_x, "dataset", None)
        if type(dataset) is not DatasetWrapper or not is_fixed(dataset.transform):
            return False
        width = self.model.text_encoder.text_projection.shape[1]
        return 4 * width * len(dataset) <= FEATURES

    def encode_training(self) -> torch.Tensor:
        """Return the frozen features of the training images, float32 [n, embed_dim].

        They are encoded in the order of the data set, so that a resumed run has the same ones.
        """
        dataset = self.train_loader_x.dataset
        say(f"Nothing is random in INPUT.TRANSFORMS: the frozen features of {len(dataset)} images are kept")
        with torch.random.fork_rng(devices=[]):  # the training draws the same numbers with and without this cache
            return self.encode(dataset.data_source, dataset.transform)[0]

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
            self.max_epoch = 1  # there are no steps: this epoch only writes the checkpoint
        if self.start_epoch == 0:
            self.fit()

    def run_epoch(self):
        if self.optim is not None:
            super().run_epoch()
            self.trained_classes = add_up([self.trained_classes.float()])[0] > 0  # in any process

    def after_epoch(self):
        if self.val_is_cheap():
            self.print_val_accuracy()
        super().after_epoch()

    def val_is_cheap(self) -> bool:
        """Return whether the accuracy on val is printed after each epoch.

        This is for the user's own images, and only if it adds at most a sixth to the cost of a training. A training
        step costs about three forward passes per image, so val may have at most half as many images as train.
        With TEST.FINAL_MODEL best_val the engine evaluates val after each epoch itself.
        """
        if self.cfg.DATASET.NAME != "Images" or self.optim is None:
            return False
        if self.cfg.TEST.NO_TEST or self.cfg.TEST.FINAL_MODEL == "best_val":
            return False
        return 0 < 2 * len(self.dm.dataset.val) <= len(self.dm.dataset.train_x)

    @torch.no_grad()
    def print_val_accuracy(self) -> None:
        """Print the accuracy on val. The state of the random generator stays as it is."""
        self.set_model_mode("eval")
        n_correct = total = 0
        with torch.random.fork_rng(devices=[]):
            for batch, part in self.test_batches(self.val_loader):
                image, label = self.parse_batch_test(batch)
                logits, label = gather(part, self.model_inference(image), label)
                n_correct += int((logits.argmax(1) == label).sum())
                total += len(label)
        accuracy = f"accuracy on val: {100 * n_correct / total:.1f}% ({n_correct:,} of {total:,})"
        print(f"epoch [{self.epoch + 1}/{self.max_epoch}] {accuracy}")
        self.write_scalar("val/accuracy", 100 * n_correct / total, self.epoch)

    def after_train(self):
        if self.optim is not None:
            self.print_untrained_classes()
        super().after_train()

    def print_untrained_classes(self) -> None:
        """Print the classes that were in no training batch. An epoch leaves out its last batch if it is incomplete."""
        was_trained = self.trained_classes.tolist()
        names = [self.lab2cname[label] for label, trained in enumerate(was_trained) if not trained]
        if names:
            size = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
            say(f"{len(names)} of {self.num_classes} classes were in no training batch: {', '.join(names)}")
            say(f"Give a smaller DATALOADER.TRAIN_X.BATCH_SIZE than {size}: an incomplete last batch is left out")

    def set_model_mode(self, mode="train", names=None):
        super().set_model_mode(mode, names)
        self.model.train(mode == "train")  # Dassl sets the registered module only, which is the learner

    def test_batches(self, loader):
        takes_features = self.model.takes_features and type(self).model_inference is ClipTrainer.model_inference
        return self.encoded_batches(loader) if takes_features else parts(loader)

    def model_inference(self, image: torch.Tensor) -> torch.Tensor:
        with torch.autocast(**self.autocast):
            return self.model(image)

    def features_of_passes(self, n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return `features` of the training images n times, each time through the training transform; for `fit`."""
        is_random = 1 if self.images_repeat() else n
        passes = [self.features(self.dm.dataset.train_x, train=True) for _ in range(is_random)]
        return passes * (n // is_random)

    def features(self, items, train: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the frozen CLIP's features of a list of `Datum`, in the order of the list; for `fit`.

        Args:
            items: the list.
            train: whether to use the training transform, which may be random, or the test transform.

        Returns:
            float32 [n, embed_dim], not normalised, and labels int64 [n]; on the trainer's device.
        """
        return self.encode(items, build_transform(self.cfg, is_train=train, **BY_ITEM))

    @torch.no_grad()
    def encode(self, items, transform: Callable) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features and labels of a list of `Datum`, as `features` does, for any transform."""
        batch_size = self.cfg.DATALOADER.TEST.BATCH_SIZE
        loader = build_data_loader(
            self.cfg, data_source=items, batch_size=batch_size, tfm=transform, is_train=False, **BY_ITEM
        )
        features, labels = [], []
        for batch, part in self.encoded_batches(loader):
            batch_features, label = gather(part, self.encode_batch(batch).float(), self.parse_batch_test(batch)[1])
            features.append(batch_features)
            labels.append(label)
        return torch.cat(features), torch.cat(labels)

    @torch.no_grad()
    def encode_batch(self, batch: dict) -> torch.Tensor:
        """Return the frozen features of a batch of images or cached features, float [B, embed_dim]."""
        image, _ = self.parse_batch_test(batch)
        with torch.autocast(**self.autocast):
            return self.model.frozen_features(image)

    def encoded_batches(self, loader) -> Iterator[tuple]:
        """Yield (batch, `Part`) of a loader. With a cache, the batches have frozen features instead of images."""
        return parts(self.cached_batches(loader) if self.uses_cache() else loader)

    def uses_cache(self) -> bool:
        """Return whether there is a cache, and the method reads and encodes images as ClipTrainer does."""
        reads_plainly = type(self).parse_batch_test is ClipTrainer.parse_batch_test
        encodes_plainly = type(self.model).frozen_features is ClipClassifier.frozen_features
        return self.feature_cache is not None and reads_plainly and encodes_plainly

    def cached_batches(self, loader) -> Iterator[dict]:
        """Yield the batches of a loader with frozen features from the cache, which is filled at the first pass."""
        feature_pass = self.feature_cache.look_up(loader, self.model.image_encoder, self.autocast)
        if feature_pass.encoded:
            count = len(feature_pass.encoded.features)
            say(f"The features of {count:,} images are read from {self.feature_cache.folder}")
            self.cached_seconds += feature_pass.encoded.seconds
            yield from feature_pass.batches()
        elif feature_pass.name:
            yield from self.feature_cache.record(feature_pass, self.encode_batch)
        else:
            yield from loader

    def clock(self):
        """Return the time plus the seconds saved by the cache, so that trainings report times without it."""
        return super().clock() + self.cached_seconds

    def get_extra_state(self):
        return {
            "scaler": self.scaler.state_dict(),  # the loss scale of amp
            "classes": list(self.dm.dataset.classnames),
            "trained_classes": self.trained_classes.cpu(),  # the classes in the batches so far
        }

    def set_extra_state(self, state):
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        trained_classes = state.get("trained_classes", torch.empty(0))
        if len(trained_classes) == self.num_classes:
            self.trained_classes = trained_classes.to(self.device)
        else:
            # a checkpoint of an earlier version or of other classes does not have them, so nothing is printed
            self.trained_classes.fill_(True)

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        # the original Dassl formats the result as a number when it loads a checkpoint, which fails for None
        super().save_model(epoch, directory, is_best, math.nan if val_result is None else val_result, model_name)

    # ---------------------------------------------------------------- learners with tensors that belong to classes

    def adapt_checkpoint(self, checkpoint, path, resume=False):
        weights, learner = checkpoint.get("state_dict", checkpoint), self.model.get_submodule(self.learner)
        positions = self.positions_in(checkpoint, path)
        if positions is None or not isinstance(weights, dict):
            return checkpoint
        # a learner with the buffer `classes` matches the rows in its own load_state_dict
        has_classes = "classes" in dict(learner.named_buffers()) and not resume
        mismatched_names = [] if has_classes else self.tensors_of_classes(weights)
        mismatched_names = [name for name in mismatched_names if resume or name not in self.per_class]
        if mismatched_names:
            tensor, per_class = f'"{mismatched_names[0]}"', f"{type(self).__name__}.per_class"
            problem = f'"{path}" was trained on other classes, and its tensor {tensor} has a row for each class'
            advice = f"evaluate on the classes of the training, or list {tensor} in {per_class} (docs/design.md)"
            if resume:
                advice = "start from its weights with MODEL.INIT_WEIGHTS and another --output-dir"
            raise ValueError(f"{problem}: {advice}")
        initial = learner.state_dict()
        names = [name for name in self.per_class if name in weights]
        rows = {name: rows_by_name(initial[name], weights[name], positions) for name in names}
        if rows:
            n_trained = int((positions >= 0).sum())
            trained_classes = f"{n_trained} of these {len(positions)} classes were trained"
            say(f"{', '.join(rows)}: {trained_classes}, others are as at the start")
        return {**checkpoint, "state_dict": {**weights, **rows}}

    def positions_in(self, checkpoint: dict, path: str) -> torch.Tensor | None:
        """Return the position of each class in the checkpoint; None if the classes are equal or unknown."""
        trained_names, classnames = classes_of_training(checkpoint, path), self.dm.dataset.classnames
        if trained_names is None or torch.equal(class_ids(trained_names), class_ids(classnames)):
            return None
        return positions_of(class_ids(classnames), class_ids(trained_names))

    def tensors_of_classes(self, weights: dict) -> list[str]:
        """Return the names of the tensors of a checkpoint that have an entry for each class.

        A dimension may by chance have as many entries as there are classes. So the learner is built again with one
        class less. The tensors whose shape then differs belong to the classes.
        """
        names, tensors = self.dm.dataset.classnames, self.model.get_submodule(self.learner).state_dict()
        candidates = [name for name, tensor in tensors.items() if name in weights and len(names) in tensor.shape]
        if not candidates:
            return []
        trainer = copy.copy(self)  # `build_classifier` may set attributes
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            clip_model = load_clip(self.cfg.MODEL.BACKBONE.NAME, self.device)
            smaller = trainer.build_classifier(clip_model, names[:-1]).get_submodule(self.learner).state_dict()
        return [name for name in candidates if name not in smaller or smaller[name].shape != tensors[name].shape]

    def load_init_weights(self, learner: torch.nn.Module, path: str) -> None:
        """Load the tensors of MODEL.INIT_WEIGHTS that fit. Rows of `per_class` are matched by class name."""
        start = {name: learner.state_dict()[name].clone() for name in self.per_class}
        checkpoint = load_checkpoint(path)
        weights = self.adapt_checkpoint(checkpoint, path).get("state_dict", checkpoint)
        load_pretrained_weights(learner, path)
        for name in start.keys() & weights.keys():
            learner.state_dict()[name].copy_(weights[name])

    def load_model(self, directory, epoch=None):
        if not directory:
            say("No --model-dir: the model is evaluated as it was built")
        elif self.learner and not self.load_published(directory):
            super().load_model(directory, epoch)
        self.model.train(self.model.training)  # clears the features that were cached with the previous weights


def load_tensors(learner: torch.nn.Module, state: dict, path: str) -> None:
    """Load the tensors of a published file. Raise ValueError if they do not fit, or are not finite."""
    try:
        learner.load_state_dict(state)
    except (RuntimeError, AttributeError, LookupError, TypeError) as error:  # the type depends on the file's content
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f'the content of "{path}" does not fit the settings here ({reason})') from error
    if not all(tensor.isfinite().all() for tensor in learner.state_dict().values()):
        raise ValueError(f'"{path}" has infinity or NaN: its training diverged, give another file')
    say(f'Loaded the published file "{path}"')


def node_of(trainer: type) -> str:
    """Return the name of a method's config node."""
    return getattr(trainer, "node_name", "") or trainer.__name__.upper()


def nodes_of(trainer: type) -> tuple[str, ...]:
    """Return the names in `cfg.TRAINER` that belong to a method: its config node, and those of `root`."""
    return node_of(trainer), *getattr(trainer, "root", {}).get("TRAINER", {})


def extend_cfg(cfg: CN, trainer: str = "") -> None:
    """Add the defaults of every registered method to `cfg.TRAINER`, as CoOp's train.py does by hand.

    A node that several methods share has the defaults of `trainer` if this is one of them. Otherwise it has the
    defaults of the method that the node is named after.

    Args:
        cfg: the config, in place.
        trainer: the method that runs, whose keys outside its node are added as well; "": none.
    """
    # later defaults replace earlier ones: a node's namesake comes last, and only `trainer` comes after it
    names = sorted(
        TRAINER_REGISTRY.registered_names(), key=lambda name: node_of(TRAINER_REGISTRY.get(name)) == name.upper()
    )
    if trainer:
        names.append(trainer)
    for name in names:
        method = TRAINER_REGISTRY.get(name)
        if not hasattr(method, "defaults"):
            continue
        cfg.TRAINER[node_of(method)] = CN(values(method.defaults))
        if name == trainer:
            add_keys(cfg, values(method.root))


def add_keys(cfg: CN, defaults: dict) -> None:
    """Add nested defaults to a config, in place."""
    for name, value in defaults.items():
        if isinstance(value, dict) and name in cfg:
            add_keys(cfg[name], value)
        else:
            cfg[name] = CN(value) if isinstance(value, dict) else value
