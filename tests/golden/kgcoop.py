import torch

from .case import Case


class Golden(Case):
    trainer = "KgCoOp"
    unused = ("TRAINER.COOP.ALPHA", "LOSS.T", "LOSS.LAMBDA")

    def terms(self, trainer, terms):
        score = 1 - torch.cosine_similarity(trainer.model.encode_text(), trainer.model.frozen_text).mean()
        return super().terms(trainer, terms) | {"ce": terms["ce"], "score": score}
