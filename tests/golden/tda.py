"""TDA: a stream of images, and the numbers of the images in both caches after each."""

import math

import numpy as np
import torch

from . import recipe
from .case import Case, seed_of
from .tpt import views_of


class Golden(Case):
    trainer = "TDA"

    def settings(self):
        given, node = self.variant["settings"], "TRAINER.TDA."
        positive, negative = given["positive"], given["negative"]
        return {
            node + "VIEWS": given["views"],
            node + "POSITIVE": [positive["alpha"], positive["beta"]],
            node + "POS_CAPACITY": positive["shot_capacity"] * positive["enabled"],
            node + "NEG_CAPACITY": negative["shot_capacity"] * negative["enabled"],
            node + "NEG_ALPHA": negative["alpha"],
            node + "NEG_BETA": negative["beta"],
            node + "NEG_ENTROPY": list(negative["entropy_threshold"].values()),
            node + "NEG_MASK": list(negative["mask_threshold"].values()),
        }

    def stream(self, count: int) -> np.ndarray:
        """Return float32 [count, 3, H, W]."""
        seed, side = seed_of(self.inputs["test_images"]), self.sizes["image_resolution"]
        x = recipe.z(seed, count, 3, side, side).astype(np.float32)
        return np.float32(2 * recipe.z(seed + 200, count, 3, 1, 1) + 0.5 * x)

    @torch.no_grad()
    def figures(self):
        trainer, given = self.build(self.inputs["classnames"]), self.variant["settings"]
        model, seed = trainer.model.eval(), seed_of(self.inputs["test_images"])
        views = views_of(self.stream(given["images"]), seed, given["views"])
        f, z, log_p = model.summary(views)
        p = log_p.exp()
        entropy = -(p * log_p).sum(dim=1)
        out = {"tokens": self.prompts(), "text": model.frozen_text.T, "image_features": f, "clip_logits": z}
        out |= {"entropy": entropy, "probabilities": p, "prediction": z.argmax(dim=1)}
        out["proportion"] = entropy / math.log2(z.shape[1])
        rows = {"final_logits": [], "pos_cache": [], "neg_cache": []}
        for each in zip(f, z, log_p, strict=True):
            rows["final_logits"].append(model.adapt(*each))
            rows["pos_cache"].append(numbers(model.positive, f))
            rows["neg_cache"].append(numbers(model.negative, f))
        out |= {name: torch.stack(values) for name, values in rows.items()}
        return {name: value.numpy() for name, value in out.items()}


def numbers(cache, f: torch.Tensor) -> torch.Tensor:
    """Return the numbers of the images in a cache, int64 [n_cls, capacity]; -1: none."""
    same = (cache.keys.unsqueeze(2) == f).all(dim=-1)
    return torch.where(cache.entropy.isinf(), -1, same.int().argmax(dim=-1))
