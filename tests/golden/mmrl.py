import torch

from trainers.mmrl import MultiModalRepresentationLearner

from .case import Case


class Golden(Case):
    """logits are those of the class token, logits_rep those of the inserted tokens, logits_fusion both."""

    trainer = "MMRL"

    def ours(self, name):
        return f"representation_learner.{MultiModalRepresentationLearner.own_name(name)}"

    def tokens(self, trainer):
        return trainer.model.tokens

    def terms(self, trainer, terms):
        own = dict(trainer.node)
        trainer.node.update(ALPHA=0.5, REG_WEIGHT=1.0)
        halved, _ = trainer.losses(self.image, self.label)
        trainer.node.update(own)
        unweighted = {name: term * (2 if name.startswith("ce") else 1) for name, term in halved.items()}
        return super().terms(trainer, terms) | unweighted

    @torch.no_grad()
    def all_logits(self, trainer):
        out, model = {}, trainer.model
        for name, fused in (("logits", False), ("logits_fusion", True)):
            model.fused = fused
            out[name] = self.logits(trainer)
        (_, f_r), g = model.encode_both(self.image), model.encode_text()
        return out | {"logits_rep": model.logits(f_r, g)}
