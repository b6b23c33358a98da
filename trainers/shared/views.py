"""Random views of a test image, for methods that adapt to each image while they are tested."""

import math
from threading import Lock

import torch
from torch.distributions import Dirichlet
from torchvision import transforms as T
from torchvision.transforms import functional as F

from dassl.data.transforms import build_transform

from .beside_dassl import BY_ITEM

SEEDING = Lock()  # threads share one generator


def affine(image, angle=0.0, translate=(0, 0), shear=(0.0, 0.0)):
    return F.affine(image, angle=angle, translate=list(translate), scale=1.0, shear=list(shear))


def degrees(fraction: float) -> float:
    """Return the angle of a shear by 0.3 times a fraction."""
    return math.degrees(math.atan(0.3 * fraction))


OPERATIONS = [  # of an image and a fraction of the largest change, with its sign
    lambda image, x: F.autocontrast(image),
    lambda image, x: F.equalize(image),
    lambda image, x: F.posterize(image, 4 - int(4 * abs(x))),
    lambda image, x: affine(image, angle=float(int(30 * x))),
    lambda image, x: F.solarize(image, 256 - int(256 * abs(x))),
    lambda image, x: affine(image, shear=(degrees(x), 0.0)),
    lambda image, x: affine(image, shear=(0.0, degrees(x))),
    lambda image, x: affine(image, translate=(int(x * image.width / 3), 0)),
    lambda image, x: affine(image, translate=(0, int(x * image.height / 3))),
]


class AugMix:
    """AugMix (Hendrycks et al. 2020) at severity 1: an image mixed with three chains of one to three operations.

        m x + (1 - m) sum_i w_i chain_i(x),   w from Dirichlet(1, 1, 1),   m uniform

    It draws from PyTorch's generator alone, and makes a tensor [3, H, W] of a PIL image.
    """

    def __call__(self, image) -> torch.Tensor:
        mixture, weights, m = 0, Dirichlet(torch.ones(3)).sample(), torch.rand(())
        for weight in weights:
            chain = image
            for _ in range(int(torch.randint(1, 4, ()))):
                operation = OPERATIONS[int(torch.randint(len(OPERATIONS), ()))]
                fraction, sign = 0.01 + 0.09 * torch.rand(()).item(), 1 if torch.rand(()) < 0.5 else -1
                chain = operation(chain, sign * fraction)
            mixture = mixture + weight * F.to_tensor(chain)
        return m * F.to_tensor(image) + (1 - m) * mixture

    def __repr__(self):
        return "AugMix()"


class Views:
    """A transform of a PIL image to float [n, 3, H, W]: by the test transform, and n - 1 times by the training's.

    Args:
        cfg: config with INPUT.
        n: number of views.
        augmix: whether AugMix follows the random crops and flips.
        seed: seed of the random views, for equal views in each call; None: the caller seeds PyTorch's generator.
    """

    def __init__(self, cfg, n: int, augmix: bool, seed: int | None = None):
        self.seed = seed
        self.n, self.test = n, build_transform(cfg, is_train=False, **BY_ITEM)
        self.random = build_transform(cfg, is_train=True, **BY_ITEM) if n > 1 else None
        if augmix and n > 1:
            steps = [AugMix() if isinstance(step, T.ToTensor) else step for step in self.random.transforms]
            self.random = T.Compose(steps)

    def __call__(self, image) -> torch.Tensor:
        if self.seed is None or self.n == 1:
            return self.draw(image)
        with SEEDING, torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.draw(image)

    def draw(self, image) -> torch.Tensor:
        return torch.stack([self.test(image), *(self.random(image) for _ in range(self.n - 1))])


def confident(entropy: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return the positions int64 [B, k] of the views with the least entropy, float [B, n]; k is at least 1."""
    k = max(1, int(fraction * entropy.shape[1]))
    return entropy.argsort(dim=1, stable=True)[:, :k]


def mean_log_probability(logits: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the mean over views of softmax(logits), float [B, C] of [B, k, C]."""
    return logits.log_softmax(dim=-1).logsumexp(dim=1) - math.log(logits.shape[1])


def entropy_of(log_probability: torch.Tensor) -> torch.Tensor:
    """Return the entropy in nats over the last dimension."""
    return -(log_probability.exp() * log_probability).sum(dim=-1)
