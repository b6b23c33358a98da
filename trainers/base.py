"""ClipTrainer: what every method shares. A method gives its defaults, its classifier and, if it has one, its loss."""

import math

import torch
from torch.nn import functional as F
from yacs.config import CfgNode as CN

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import check_availability, count_num_param, load_pretrained_weights

from .shared.clip_model import load_clip

PRECISIONS = ["fp32", "amp", "bf16"]  # amp: fp16 autocast with scaled gradients; bf16: autocast, no scaling


class ClipTrainer(TrainerX):
    """Trains the few tensors that a method adds to a frozen CLIP.

    A method is a subclass registered with `TRAINER_REGISTRY`. It sets

    - `defaults`: its config node, `cfg.TRAINER.<CLASS NAME IN CAPITALS>`, PREC among them;
    - `learner`: name of the classifier's submodule that holds all trained tensors, also the checkpoint's folder;
      empty if there is nothing to train;

    and implements the hooks

    - `build_classifier(clip_model, classnames)`: a `ClipClassifier`;
    - `losses(image, label)`: the loss terms and the logits; cross-entropy unless overridden.
    """

    defaults: dict = {"PREC": "amp"}
    learner: str = ""

    # ---------------------------------------------------------------- hooks

    def build_classifier(self, clip_model, classnames: list[str]):
        """Returns the method's `ClipClassifier` around the frozen CLIP, on the CLIP's device."""
        raise NotImplementedError

    def losses(self, image: torch.Tensor, label: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The terms whose sum is minimised, by name, and the logits float [B, n_cls] of the training batch."""
        logits = self.model(image)
        return {"ce": F.cross_entropy(logits, label)}, logits

    # ---------------------------------------------------------------- set-up

    @property
    def node(self) -> CN:
        """The method's own config node."""
        return self.cfg.TRAINER[type(self).__name__.upper()]

    def check_cfg(self, cfg):
        check_availability(cfg.TRAINER[type(self).__name__.upper()].PREC, PRECISIONS)

    def build_model(self):
        cfg, name = self.cfg, self.cfg.MODEL.BACKBONE.NAME
        print(f"Loading CLIP (backbone: {name})")
        clip_model = load_clip(name, self.device)
        if tuple(cfg.INPUT.SIZE) != (clip_model.visual.input_resolution,) * 2:
            side = clip_model.visual.input_resolution
            raise ValueError(
                f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}, but {name} takes ({side}, {side}): set INPUT.SIZE "
                f"or choose the --config-file of this backbone"
            )

        self.model = self.build_classifier(clip_model, self.dm.dataset.classnames).to(self.device)
        self.set_precision(self.node.PREC)
        if not self.learner:
            return
        learner = self.model.get_submodule(self.learner)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(learner, cfg.MODEL.INIT_WEIGHTS)
        print(f"Trained parameters: {count_num_param(learner):,} of {count_num_param(self.model):,}")
        self.optim = build_optimizer(learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model(self.learner, learner, self.optim, self.sched)

    def set_precision(self, precision: str) -> None:
        if self.device.type == "cpu" and precision != "fp32":
            print(f"PREC {precision} is for GPUs: fp32 is used on the CPU")
            precision = "fp32"
        if precision == "bf16" and not torch.cuda.is_bf16_supported():
            raise ValueError("PREC bf16: this GPU has no bfloat16; take amp or fp32")
        self.autocast = {
            "device_type": self.device.type,
            "enabled": precision != "fp32",
            "dtype": torch.float16 if precision == "amp" else torch.bfloat16,
        }
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "amp")

    # ---------------------------------------------------------------- the one training step

    def forward_backward(self, batch) -> dict[str, float]:
        image, label = self.parse_batch_train(batch)
        with torch.autocast(**self.autocast):
            terms, logits = self.losses(image, label)
        self.optim.zero_grad()
        self.scaler.scale(sum(terms.values())).backward()
        accuracy = compute_accuracy(logits, label)[0]
        *values, accuracy = torch.stack([*terms.values(), accuracy.reshape(())]).tolist()  # the one wait for the GPU
        self.check_finite(dict(zip(terms, values, strict=True)))
        self.scaler.step(self.optim)
        self.scaler.update()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()

        parts = dict(zip(terms, values, strict=True)) if len(terms) > 1 else {}
        return {"loss": sum(values), **parts, "acc": accuracy}

    def check_finite(self, terms: dict[str, float]) -> None:
        """Raises FloatingPointError naming the term that is infinite or NaN."""
        for name, value in terms.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f'the loss term "{name}" is {value} in epoch {self.epoch + 1}, batch {self.batch_idx + 1}: lower '
                    f"OPTIM.LR ({self.get_current_lr():g} now) or set TRAINER.{type(self).__name__.upper()}.PREC fp32; "
                    f"the checkpoints in {self.output_dir} are untouched"
                )

    def parse_batch_train(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        return batch["img"].to(self.device, non_blocking=True), batch["label"].to(self.device, non_blocking=True)

    # ---------------------------------------------------------------- the rest of a run

    def train(self):
        if self.learner:
            super().train()
        else:
            print(f"{type(self).__name__} has nothing to train")
            self.test()

    def set_model_mode(self, mode="train", names=None):
        super().set_model_mode(mode, names)
        self.model.train(mode == "train")  # the registered part is only the learner

    def model_inference(self, image: torch.Tensor) -> torch.Tensor:
        with torch.autocast(**self.autocast):
            return self.model(image)

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        # the original Dassl prints the result as a number when it loads, and could not print None
        super().save_model(epoch, directory, is_best, math.nan if val_result is None else val_result, model_name)

    def load_model(self, directory, epoch=None):
        if not directory:
            print("No --model-dir: the model is evaluated as it was built")
        elif self.learner:
            super().load_model(directory, epoch)
        self.model.train(self.model.training)  # forgets the features of the weights before


def extend_cfg(cfg: CN) -> None:
    """Adds the defaults of every registered method to `cfg.TRAINER`, as CoOp's train.py does by hand."""
    for name in TRAINER_REGISTRY.registered_names():
        defaults = getattr(TRAINER_REGISTRY.get(name), "defaults", None)
        if defaults is not None:
            cfg.TRAINER[name.upper()] = CN(defaults)
