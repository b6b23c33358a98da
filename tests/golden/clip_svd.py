"""CLIP-SVD: AdamW on the singular values, with its schedule."""

import re

import torch

from dassl.optim import build_lr_scheduler
from trainers.clip_svd import PUBLISHED

from .case import Case

LAYER = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.vector_S")
PLACES = {name: place for place, name in PUBLISHED.items()}


class Golden(Case):
    trainer = "CLIP_SVD"

    def settings(self):
        given, node = self.variant["settings"], "TRAINER.CLIP_SVD."
        switches = {"mlp": ["c_fc", "c_proj"], "q": ["q"], "k": ["k"], "v": ["v"], "o_proj": ["out"]}
        encoders = [name for name in ("image", "text") if given[f"train_{name}_encoder"]]
        return {
            "OPTIM.NAME": "adamw",
            "OPTIM.LR": given["lr"],
            "OPTIM.WEIGHT_DECAY": given["weight_decay"],
            "OPTIM.LR_SCHEDULER": "cosine",
            "OPTIM.MAX_EPOCH": given["n_iters"] * given["shots"],
            node + "ENCODERS": encoders,
            node + "WEIGHTS": [place for key, places in switches.items() if given[f"train_{key}"] for place in places],
        }

    def ours(self, name):
        image, block, layer = LAYER.fullmatch(name).groups()
        return f"svd.vector_S.{'image' if image else 'text'}_{block}_{PLACES[layer]}"

    def starts(self):
        return {}  # stored values are rounded to float32: ours are compared with them, and kept

    def optimizer(self, trainer):
        optimizer = super().optimizer(trainer)
        self.rates, self.group = [], optimizer.param_groups[0]
        self.schedule = build_lr_scheduler(optimizer, trainer.cfg.OPTIM)
        self.schedule.eta_min = trainer.node.LR_MIN
        return optimizer

    def after_step(self, trainer, step):
        self.rates.append(self.group["lr"])
        self.schedule.step()

    def figures(self):
        trainer = self.build(self.inputs["classnames"])
        assert {self.ours(n) for n in self.variant["trained"]} == {
            f"svd.{n}" for n, _ in trainer.model.svd.named_parameters()
        }
        out = {f"init/{name}": self.parameter(trainer, name) for name in self.variant["trained"]}
        out |= {"tokens": self.prompts(), "test_zero_shot": self.logits(trainer, self.test_images)}
        with torch.no_grad():
            out["train_logits"] = trainer.model.train()(self.image)
        out |= self.steps(trainer)
        out |= {"learning_rates": torch.tensor(self.rates), "test_logits": self.logits(trainer, self.test_images)}
        out = {name: value.detach() for name, value in out.items()}
        return {name: (value[None] if "vector_S" in name else value).numpy() for name, value in out.items()}
