"""CLIP-LoRA: its optimizers and rates, and what its gradients are without dropout."""

import re
from copy import deepcopy

import numpy as np
import torch
from torch.nn import functional as F

from dassl.optim import build_lr_scheduler
from trainers.shared.classifier import ClipClassifier

from .case import Case

ENCODERS = {"both": ["image", "text"], "vision": ["image"], "text": ["text"]}
PRODUCT = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.attn\.(\w+)_proj\.(w_lora_[AB])")


class Golden(Case):
    trainer = "CLIPLoRA"

    def settings(self):
        given, node = self.variant["settings"], "TRAINER.CLIPLORA."
        sgd = {"OPTIM.NAME": "sgd", "OPTIM.MOMENTUM": 0.0, "OPTIM.WEIGHT_DECAY": 0.0}
        adamw = {"OPTIM.NAME": "adamw", "OPTIM.WEIGHT_DECAY": 0.01, "OPTIM.LR_SCHEDULER": "cosine"}
        return (sgd if given["optimizer"] == "sgd" else adamw) | {
            "OPTIM.LR": given["lr"],
            "OPTIM.MAX_EPOCH": given["n_iters"] * given["shots"],
            node + "ENCODERS": ENCODERS[given["encoder"]],
            node + "WEIGHTS": given["params"],
            node + "R": given["r"],
            node + "ALPHA": float(given["alpha"]),
            node + "DROPOUT": 0.0,  # 1e-300 drops nothing: it only takes the original's other branch
        }

    def ours(self, name):
        image, block, weight, matrix = PRODUCT.fullmatch(name).groups()
        return f"lora.{matrix}.{'image' if image else 'text'}_{block}_{weight}"

    def build(self, classnames):
        trainer = super().build(classnames)
        if self.name == "as_is_without_dropout":  # the gradient of a layer's input misses the product
            model = trainer.model

            def apply_change(factors, x, weight, bias):
                a, b = factors
                return F.linear(x, weight, bias) + model.scale * F.linear(F.linear(x.detach(), a), b)

            model.apply_change = apply_change
        return trainer

    def optimizer(self, trainer):
        optimizer = super().optimizer(trainer)
        self.rates, self.group, self.schedule = [], optimizer.param_groups[0], None
        if self.variant["settings"]["optimizer"] == "adamw":
            self.schedule = build_lr_scheduler(optimizer, trainer.cfg.OPTIM)
            self.schedule.eta_min = trainer.node.LR_MIN
        return optimizer

    def after_step(self, trainer, step):
        self.rates.append(self.group["lr"])
        if self.schedule is not None:
            self.schedule.step()

    def figures(self):
        out = super().figures() | {"learning_rates": np.array(self.rates)}
        trainer = self.build(self.inputs["classnames"])
        self.start(trainer)
        with torch.no_grad():
            out["logits_training_mode"] = trainer.model.train()(self.image).numpy()
            out["zero_shot"] = self.plain(trainer, {})(self.image).numpy()
            out["logits_merged_into_plain_clip"] = self.plain(trainer, trainer.model.merge_weights())(
                self.image
            ).numpy()
        return out

    def plain(self, trainer, weights: dict) -> ClipClassifier:
        """Zero-shot CLIP with weights by encoder."""
        model = ClipClassifier(deepcopy(self.clip), trainer.model.classnames, trainer.model.templates).eval()
        model.logit_scale.fill_(trainer.node.LOGIT_SCALE)
        for encoder, changed in weights.items():
            model.get_submodule(f"{encoder}_encoder").load_state_dict(changed, strict=False)
        return model
