import torch

from dassl.optim import build_optimizer
from trainers.shared.encoders import normalize

from .case import Case

HEAD = "TRAINER.LINEAR_PROBE."


class Golden(Case):
    """`logits` mix both heads; the original trains tensors of KgCoOp that nothing uses."""

    trainer = "DePT"
    unused = ("TRAINER.COOP.ALPHA", "BASE")

    def __init__(self, name, spec, sizes, sha256, golden):
        super().__init__(name, spec, sizes, sha256, golden)
        never_used = self.variant.get("never used", [])
        trained = {key: value for key, value in self.variant["trained"].items() if key not in never_used}
        self.variant = self.variant | {"trained": trained}
        self.golden = {key: array for key, array in golden.items() if key.partition("/")[2] not in never_used}

    def settings(self):
        return super().settings() | {HEAD + "BASE": self.variant["settings"].get("BASE", "CoOp")}

    def ours(self, name):
        return f"learner.{name}"

    def optimizer(self, trainer):
        return build_optimizer(trainer.model.learner, trainer.optim_cfg())

    def terms(self, trainer, terms):
        w = trainer.cfg.TRAINER.LINEAR_PROBE.WEIGHT
        weights = {"ce": 1 - w, "ce_probe": w, "score": trainer.node.W}
        return super().terms(trainer, terms) | {name: term / weights[name] for name, term in terms.items()}

    @torch.no_grad()
    def all_logits(self, trainer):
        model = trainer.model
        f, g = model.image_features(self.image), model.text_features()
        heads = {
            "logits_similarity": model.logits(normalize(f), normalize(g)),
            "logits_probe": model.second_logits(f, g),
        }
        return super().all_logits(trainer) | heads
