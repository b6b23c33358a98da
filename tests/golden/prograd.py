import torch

from .case import Case


class Golden(Case):
    trainer = "ProGrad"
    unused = ("TRAINER.COOP.ALPHA",)

    def terms(self, trainer, terms):
        (ctx,) = trainer.model.prompt_learner.parameters()
        grads = [torch.autograd.grad(terms[name], ctx, retain_graph=True)[0] for name in ("ce", "kl")]
        self.grads = getattr(self, "grads", grads)  # of the first step
        return terms | {"cosine": torch.cosine_similarity(*(grad.flatten() for grad in grads), dim=0)}

    def steps(self, trainer, count=3):
        out = super().steps(trainer, count)
        name = "prompt_learner.ctx"
        return out | {f"grad_xe/{name}": self.grads[0], f"grad_kl/{name}": self.grads[1]}
