"""TPT: one image after the other, each with its views."""

import numpy as np
import torch

from trainers.shared.views import confident, entropy_of, mean_log_probability

from . import recipe
from .case import Case, seed_of


def views_of(x: np.ndarray, seed: int, count: int) -> torch.Tensor:
    """Return the views float [n, count, 3, H, W] of images float32 [n, 3, H, W], the first of which is the image."""
    x = x.astype(np.float64)
    views = [x, *(np.float32(0.8 * x + 0.6 * recipe.z(seed + 300 + v, *x.shape)) for v in range(1, count))]
    return torch.from_numpy(np.stack(views, axis=1)).to(torch.get_default_dtype())


class Golden(Case):
    trainer = "TPT"

    def settings(self):
        given = self.variant["settings"]
        return {
            "OPTIM.NAME": "adamw",
            "OPTIM.LR": given["lr"],
            "OPTIM.WEIGHT_DECAY": 0.01,
            "TRAINER.TPT.CTX_INIT": given["ctx_init"] or "",
            **({} if given["ctx_init"] else {"TRAINER.TPT.N_CTX": given["n_ctx"]}),
            "TRAINER.TPT.VIEWS": given["views"],
            "TRAINER.TPT.SELECTION_P": given["selection_p"],
            "TRAINER.TPT.TTA_STEPS": given["tta_steps"],
        }

    def ours(self, name):
        return f"prompt_learner.{name}"

    def figures(self):
        trainer, given = self.build(self.inputs["classnames"]), self.variant["settings"]
        model = trainer.model.eval()
        if given["ctx_init"] is None:  # a start from words is ours, and compared
            self.start(trainer)
        out = {"init/ctx": self.parameter(trainer, "ctx"), "tokens": self.tokens(trainer)}
        seed, side = seed_of(self.inputs["test_images"]), self.sizes["image_resolution"]
        views = views_of(recipe.z(seed, given["images"], 3, side, side).astype(np.float32), seed, given["views"])
        f = model.frozen_image(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        ctx = model.prompt_learner.ctx.detach().repeat(len(f), 1, 1)
        with torch.no_grad():
            out["view_logits"] = model.view_logits(f, ctx)
        out["view_entropy"] = entropy_of(out["view_logits"].log_softmax(dim=-1))
        out["selected"] = confident(out["view_entropy"], given["selection_p"])
        losses, gradients, gradient = [], [], model.gradient

        def noted(loss, ctx):
            gradients.append(gradient(loss, ctx))
            z = model.view_logits(f, ctx.detach()).gather(1, out["selected"].unsqueeze(-1).expand(-1, -1, 5))
            losses.append(entropy_of(mean_log_probability(z)))
            return gradients[-1]

        model.gradient = noted
        out["after/ctx"] = model.tune(f)
        out |= {"loss": torch.stack(losses, dim=1), "grad/ctx": gradients[0], "logits_after": model(views)}
        tokens = out["tokens"]
        out["tokens"] = torch.nn.functional.pad(tokens, (0, self.sizes["context_length"] - tokens.shape[1]))
        return {name: value.detach().numpy() for name, value in out.items()}
