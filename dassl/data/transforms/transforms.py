"""Transforms by name, from a PIL image to a float tensor [3, H, W].

`Random2DTranslation`, `Cutout` and `GaussianNoise` draw as Dassl's do, from Python's and NumPy's global generators.
Their subclasses with "Torch" in the name draw from torch's alone: this project's own trainers use them. The policies
and RandAugment are torchvision's and draw from torch's generator for everybody. DataLoader seeds all three generators
in its workers and checkpoints save them, so that runs repeat and resume exactly.
"""

import random
from dataclasses import dataclass

import numpy as np
import torch
from torchvision import transforms as T
from torchvision.transforms import functional as F
from torchvision.transforms.functional import InterpolationMode

from dassl.infrastructure.console import say
from dassl.utils import check_availability

INTERPOLATION_MODES = {name: InterpolationMode(name) for name in ("bilinear", "bicubic", "nearest")}


class Random2DTranslation:
    """With probability `p` resize to 9/8 (height, width) and crop that size at random, else just resize."""

    def __init__(self, height, width, p=0.5, interpolation=InterpolationMode.BILINEAR):
        self.height = height
        self.width = width
        self.p = p
        self.interpolation = interpolation

    def __call__(self, img):
        if not self._draw_whether():
            return F.resize(img, [self.height, self.width], self.interpolation)
        size = [round(side * 1.125) for side in (self.height, self.width)]
        top, left = self._draw_offsets(size[0] - self.height, size[1] - self.width)
        return F.crop(F.resize(img, size, self.interpolation), top, left, self.height, self.width)

    def __repr__(self):
        size = (self.height, self.width)
        return f"{type(self).__name__}(size={size}, p={self.p}, interpolation={self.interpolation.value})"

    def _draw_whether(self):
        return random.uniform(0, 1) <= self.p

    def _draw_offsets(self, rows, columns):
        """Return the crop's top, 0..rows, and left, 0..columns."""
        left = round(random.uniform(0, columns))
        return round(random.uniform(0, rows)), left


class TorchRandom2DTranslation(Random2DTranslation):
    """`Random2DTranslation` with torch's generator, in the order of draws of torchvision's `RandomCrop`."""

    def _draw_whether(self):
        return bool(torch.rand(()) < self.p)

    def _draw_offsets(self, rows, columns):
        if rows == 0 and columns == 0:
            return 0, 0
        top = int(torch.randint(rows + 1, (1,)))
        return top, int(torch.randint(columns + 1, (1,)))


@dataclass
class RandAugmentRandomMagnitude:
    """Apply `num_ops` of RandAugment's operations, each with probability `p` and at its own random magnitude.

    p = 1 is FixMatch's strong augmentation (Sohn et al., 2020, without its Cutout).
    """

    num_ops: int = 2
    p: float = 1.0

    def __call__(self, img):
        for _ in range(self.num_ops):
            if torch.rand(()) < self.p:
                img = T.RandAugment(num_ops=1, magnitude=int(torch.randint(31, ())))(img)
        return img


@dataclass
class Cutout:
    """Set `n_holes` squares to zero, in all channels (DeVries & Taylor, 2017). Tensor [C, H, W] in and out.

    The centre of a hole is any pixel, so a hole may be clipped by the border. As in Dassl, a side is `length` pixels
    long if `length` is even, and `length` - 1 if it is odd.
    """

    n_holes: int = 1
    length: int = 16

    def __call__(self, img):
        height, width = img.shape[-2:]
        img = img.clone()
        for _ in range(self.n_holes):
            top = self._draw_index(height) - self.length // 2
            left = self._draw_index(width) - self.length // 2
            img[..., max(top, 0) : max(top + self._side, 0), max(left, 0) : max(left + self._side, 0)] = 0
        return img

    @property
    def _side(self):
        return self.length // 2 * 2

    def _draw_index(self, n):
        return int(np.random.randint(n))


class TorchCutout(Cutout):
    """`Cutout` with torch's generator, and holes of `length` pixels a side also if `length` is odd."""

    @property
    def _side(self):
        return self.length

    def _draw_index(self, n):
        return int(torch.randint(n, ()))


@dataclass
class GaussianNoise:
    """With probability `p` add independent N(mean, std^2) noise to every value of a tensor."""

    mean: float = 0.0
    std: float = 0.15
    p: float = 0.5

    def __call__(self, img):
        if random.uniform(0, 1) > self.p:
            return img
        return img + (torch.randn(img.size()) * self.std + self.mean)


class TorchGaussianNoise(GaussianNoise):
    """`GaussianNoise` with torch's generator alone."""

    def __call__(self, img):
        if torch.rand(()) >= self.p:
            return img
        return img + torch.randn_like(img) * self.std + self.mean


@dataclass
class InstanceNormalization:
    """Zero mean, unit standard deviation for every channel of a tensor [C, H, W] (Ulyanov et al., 2016)."""

    eps: float = 1e-8

    def __call__(self, img):
        std, mean = torch.std_mean(img, dim=(1, 2), keepdim=True)
        return (img - mean) / (std + self.eps)


def _interpolation(inp):
    check_availability(inp.INTERPOLATION, list(INTERPOLATION_MODES))
    return INTERPOLATION_MODES[inp.INTERPOLATION]


def _randaugment(inp):
    if not 0 <= inp.RANDAUGMENT_M <= 30:
        raise ValueError(f"INPUT.RANDAUGMENT_M must be in 0..30, got {inp.RANDAUGMENT_M}")
    return T.RandAugment(inp.RANDAUGMENT_N, inp.RANDAUGMENT_M)


# Choice -> transform from cfg.INPUT. The order of the entries is the order of application.
IMAGE_TRANSFORMS = {
    "random_translation": lambda inp: Random2DTranslation(*inp.SIZE),
    "random_crop": lambda inp: T.RandomCrop(inp.SIZE, padding=inp.CROP_PADDING),
    "random_resized_crop": lambda inp: T.RandomResizedCrop(
        inp.SIZE, scale=inp.RRCROP_SCALE, interpolation=_interpolation(inp)
    ),
    "random_flip": lambda inp: T.RandomHorizontalFlip(),
    "imagenet_policy": lambda inp: T.AutoAugment(T.AutoAugmentPolicy.IMAGENET),
    "cifar10_policy": lambda inp: T.AutoAugment(T.AutoAugmentPolicy.CIFAR10),
    "svhn_policy": lambda inp: T.AutoAugment(T.AutoAugmentPolicy.SVHN),
    "randaugment": _randaugment,
    "randaugment_fixmatch": lambda inp: RandAugmentRandomMagnitude(inp.RANDAUGMENT_N),
    "randaugment2": lambda inp: RandAugmentRandomMagnitude(inp.RANDAUGMENT_N, p=0.6),
    "colorjitter": lambda inp: T.ColorJitter(
        inp.COLORJITTER_B, inp.COLORJITTER_C, inp.COLORJITTER_S, inp.COLORJITTER_H
    ),
    "randomgrayscale": lambda inp: T.RandomGrayscale(inp.RGS_P),
    "gaussian_blur": lambda inp: T.RandomApply([T.GaussianBlur(inp.GB_K)], p=inp.GB_P),
}
TENSOR_TRANSFORMS = {
    "cutout": lambda inp: Cutout(inp.CUTOUT_N, inp.CUTOUT_LEN),
    "normalize": lambda inp: T.Normalize(inp.PIXEL_MEAN, inp.PIXEL_STD),
    "gaussian_noise": lambda inp: GaussianNoise(inp.GN_MEAN, inp.GN_STD),
    "instance_norm": lambda inp: InstanceNormalization(),
}
# The choices that draw by item with another transform
BY_ITEM = {
    "random_translation": lambda inp: TorchRandom2DTranslation(*inp.SIZE, interpolation=_interpolation(inp)),
    "cutout": lambda inp: TorchCutout(inp.CUTOUT_N, inp.CUTOUT_LEN),
    "gaussian_noise": lambda inp: TorchGaussianNoise(inp.GN_MEAN, inp.GN_STD),
}
TEST_CHOICES = ["normalize", "instance_norm"]
# "center_crop" is always done in testing and never in training; configs may still name it
AVAI_CHOICES = [*IMAGE_TRANSFORMS, *TENSOR_TRANSFORMS, "center_crop"]


FIXED = (T.Resize, T.CenterCrop, T.ToTensor, T.Normalize, InstanceNormalization)


def is_fixed(transform):
    """Return whether a transform makes the same tensor of an image each time.

    This is known for a `Compose` of some types of steps. All other transforms count as random.
    """
    return isinstance(transform, T.Compose) and all(type(step) in FIXED for step in transform.transforms)


def build_transform(cfg, is_train=True, choices=None, draws_by_item=False):
    """Build the transform PIL image -> float tensor [3, H, W], with (H, W) = ``cfg.INPUT.SIZE``.

    `choices` are names from `AVAI_CHOICES`, by default ``cfg.INPUT.TRANSFORMS``; their order does not
    matter. Training resizes to (H, W) unless a random crop does it. Testing resizes the shorter side to
    max(H, W), crops the centre, and applies only the normalizations among the choices.

    With `draws_by_item`, everything random draws from torch's global generator, for a loader that draws by item (see
    `build_data_loader`). Without, it draws as Dassl's transforms do.

    Returns None if ``cfg.INPUT.NO_TRANSFORM``. Raises ValueError, with the nearest name, for an unknown one.
    """
    inp = cfg.INPUT
    if inp.NO_TRANSFORM:
        say("* No transform (INPUT.NO_TRANSFORM)")
        return None

    choices = inp.TRANSFORMS if choices is None else choices
    for choice in choices:
        check_availability(choice, AVAI_CHOICES)

    image_names, tensor_names = IMAGE_TRANSFORMS, TENSOR_TRANSFORMS
    if draws_by_item:
        image_names, tensor_names = (
            {name: BY_ITEM.get(name, table[name]) for name in table} for table in (image_names, tensor_names)
        )
    if is_train:
        steps = [build(inp) for name, build in image_names.items() if name in choices]
        if not {"random_crop", "random_resized_crop"} & set(choices):
            steps.insert(0, T.Resize(inp.SIZE, _interpolation(inp)))
    else:
        choices = [choice for choice in choices if choice in TEST_CHOICES]
        if inp.RESIZE == "squash":
            steps = [T.Resize(inp.SIZE, _interpolation(inp))]
        else:
            steps = [T.Resize(max(inp.SIZE), _interpolation(inp)), T.CenterCrop(inp.SIZE)]
    steps.append(T.ToTensor())
    steps += [build(inp) for name, build in tensor_names.items() if name in choices]

    say(f"* {'Training' if is_train else 'Test'} transform:")
    for step in steps:
        say(f"  {step}")
    return T.Compose(steps)
