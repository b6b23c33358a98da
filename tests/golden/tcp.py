import torch

from . import kgcoop


class Golden(kgcoop.Golden):
    """The original's W and ALPHA decide nothing; its block is a constant, which the json has as BLOCK."""

    trainer = "TCP"
    unused = ("TRAINER.COOP.ALPHA", "TRAINER.COOP.W", "BLOCK")

    def settings(self):
        return super().settings() | {"TRAINER.COOP.BLOCK": self.variant["settings"]["BLOCK"]}

    @torch.no_grad()
    def all_logits(self, trainer):
        model = trainer.model
        tokens = {
            "frozen_text": model.frozen_text,
            "class_tokens": model.prompt_learner.class_tokens(model.frozen_text),
        }
        return super().all_logits(trainer) | tokens
