"""ZS-LP, RANDOM, TaskRes and CLAP, one trainer of the original."""

import torch

from trainers.linear_probe import mean_probability
from trainers.shared.encoders import normalize
from trainers.shared.tokens import tokenize

from .case import Case


class Golden(Case):
    trainer = "LinearProbe"

    def settings(self):
        return super().settings() | {"TRAINER.ADAPTER.KEEP_UNDERSCORES": True}

    def tokens(self, trainer):
        return tokenize([self.inputs["template"].format(name) for name in self.inputs["classnames"]])

    def terms(self, trainer, terms):
        return super().terms(trainer, terms) | terms

    def starts(self):
        # stored values are rounded to float32: what we start from by ourselves is compared with them, and kept
        return {name: t for name, t in super().starts().items() if f"init/{name}" not in self.golden}

    def start(self, trainer):
        super().start(trainer)
        adapter = trainer.model.adapter
        with torch.no_grad():
            image, text = trainer.model.encode_image(self.image), normalize(adapter.base_text_features)
            adapter.multipliers = mean_probability(trainer.model.logits(image, text), self.label)
        self.alpha_constraint = adapter.multipliers

    def figures(self):
        return super().figures() | {"alpha_constraint": self.alpha_constraint.numpy()}
