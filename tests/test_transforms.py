"""Transforms: their order, their parameters, and what each does to an image."""

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from dassl.data.transforms import INTERPOLATION_MODES, build_transform
from dassl.data.transforms.transforms import (
    AVAI_CHOICES,
    Cutout,
    GaussianNoise,
    InstanceNormalization,
    RandAugmentRandomMagnitude,
    Random2DTranslation,
    TorchCutout,
)


@pytest.fixture
def photo():
    """A random PIL image 40 x 48 (width x height)."""
    return Image.fromarray(np.random.default_rng().integers(0, 256, (48, 40, 3), dtype=np.uint8))


@pytest.mark.parametrize("choice", AVAI_CHOICES)
def test_every_choice_gives_a_float_image(choice, photo, bare_cfg):
    for is_train in (True, False):
        tfm = build_transform(bare_cfg("INPUT.SIZE", (24, 32)), is_train, choices=[choice])
        img = pickle.loads(pickle.dumps(tfm))(photo)  # workers that are spawned get the transform pickled
        assert img.shape == (3, 24, 32) and img.dtype == torch.float32 and img.isfinite().all()


@pytest.mark.parametrize("choice", AVAI_CHOICES)
def test_transforms_that_draw_by_item_follow_torch_seed_alone(choice, photo, bare_cfg):
    tfm = build_transform(bare_cfg(), choices=[choice], draws_by_item=True)
    outputs = []
    for other_seed in (1, 2):
        torch.manual_seed(11)
        random.seed(other_seed)
        np.random.seed(other_seed)
        outputs.append(torch.stack([tfm(photo) for _ in range(4)]))
    assert torch.equal(*outputs)


def test_transform_order_and_parameters(bare_cfg):
    cfg = bare_cfg("INPUT.TRANSFORMS", tuple(reversed(AVAI_CHOICES)), "INPUT.CUTOUT_N", 3, "INPUT.GB_K", 5)
    tfm = build_transform(cfg)
    assert [type(step) for step in tfm.transforms] == [
        Random2DTranslation,
        T.RandomCrop,
        T.RandomResizedCrop,
        T.RandomHorizontalFlip,
        T.AutoAugment,
        T.AutoAugment,
        T.AutoAugment,
        T.RandAugment,
        RandAugmentRandomMagnitude,
        RandAugmentRandomMagnitude,
        T.ColorJitter,
        T.RandomGrayscale,
        T.RandomApply,
        T.ToTensor,
        Cutout,
        T.Normalize,
        GaussianNoise,
        InstanceNormalization,
    ]
    steps = {type(step): step for step in tfm.transforms}
    assert steps[T.RandomResizedCrop].scale == cfg.INPUT.RRCROP_SCALE
    assert (steps[Cutout].n_holes, steps[Cutout].length) == (3, cfg.INPUT.CUTOUT_LEN)
    assert steps[T.RandomApply].transforms[0].kernel_size == (5, 5)
    assert (steps[T.RandAugment].num_ops, steps[T.RandAugment].magnitude) == (2, 10)


def test_every_setting_reaches_its_transform(bare_cfg):
    settings = {
        "CROP_PADDING": 3,
        "RANDAUGMENT_N": 5,
        "COLORJITTER_B": 0.1,
        "COLORJITTER_C": 0.2,
        "COLORJITTER_S": 0.3,
        "COLORJITTER_H": 0.4,
        "RGS_P": 0.6,
        "GB_P": 0.7,
        "GN_MEAN": 0.8,
        "GN_STD": 0.9,
    }
    cfg = bare_cfg(*(word for key, value in settings.items() for word in (f"INPUT.{key}", value)))
    steps = {type(step): step for step in build_transform(cfg, choices=AVAI_CHOICES).transforms}
    jitter = steps[T.ColorJitter]
    assert [jitter.brightness, jitter.contrast, jitter.saturation] == [(0.9, 1.1), (0.8, 1.2), (0.7, 1.3)]
    assert jitter.hue == (-0.4, 0.4)
    assert steps[T.RandomCrop].padding == 3 and steps[T.RandomCrop].size == (32, 32)
    assert steps[T.RandAugment].num_ops == steps[RandAugmentRandomMagnitude].num_ops == 5
    assert steps[T.RandomGrayscale].p == 0.6 and steps[T.RandomApply].p == 0.7
    assert (steps[GaussianNoise].mean, steps[GaussianNoise].std) == (0.8, 0.9)


def test_plain_training_resizes_to_size_and_bicubic_is_passed_on(photo, bare_cfg):
    tfm = build_transform(bare_cfg("INPUT.INTERPOLATION", "bicubic"), choices=["center_crop"])
    expected = photo.resize((32, 32), Image.Resampling.BICUBIC)
    assert torch.equal(tfm(photo), T.functional.to_tensor(expected))
    crop = build_transform(bare_cfg("INPUT.INTERPOLATION", "bicubic"), choices=["random_resized_crop"])
    assert crop.transforms[0].interpolation == INTERPOLATION_MODES["bicubic"]


def test_test_transform_is_resize_center_crop_normalize(photo, capsys, bare_cfg):
    cfg = bare_cfg("INPUT.SIZE", (16, 20), "INPUT.TRANSFORMS", ("random_flip", "cutout", "normalize"))
    img = build_transform(cfg, is_train=False)(photo)
    # 40 x 48 -> shorter side 20: 20 x 24 -> the centre 20 wide and 16 high, antialiased as PIL does it
    resized = photo.resize((20, 24), Image.Resampling.BILINEAR).crop((0, 4, 20, 20))
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    torch.testing.assert_close(img, (pixels - mean) / std)
    printed = capsys.readouterr().out
    assert "CenterCrop" in printed and "Cutout" not in printed and "Flip" not in printed


def test_unknown_names_give_the_nearest(photo, bare_cfg):
    with pytest.raises(ValueError, match="cutout"):
        build_transform(bare_cfg(), choices=["cut_out"])
    with pytest.raises(ValueError, match="bicubic"):
        build_transform(bare_cfg("INPUT.INTERPOLATION", "bicubics"))
    with pytest.raises(ValueError, match="RANDAUGMENT_M"):
        build_transform(bare_cfg("INPUT.RANDAUGMENT_M", 31), choices=["randaugment"])


def test_no_transform(bare_cfg):
    assert build_transform(bare_cfg("INPUT.NO_TRANSFORM", True)) is None


@pytest.mark.parametrize("kind, length", [(Cutout, 4), (TorchCutout, 4), (TorchCutout, 5)])
def test_cutout_hole_is_a_square_clipped_by_the_border(kind, length):
    cutout, image = kind(n_holes=1, length=length), torch.rand(3, 12, 17) + 0.1
    original, sides = image.clone(), set()
    for _ in range(300):
        out = cutout(image)
        hole = (out == 0).all(dim=0)
        rows, cols = hole.any(dim=1).nonzero().flatten(), hole.any(dim=0).nonzero().flatten()
        height, width = len(rows), len(cols)
        assert hole.sum() == height * width and rows[-1] - rows[0] + 1 == height
        assert torch.equal(out[:, ~hole], image[:, ~hole])
        sides.add((height, width))
        # a side is shorter than the length only at the border
        assert height == length or rows[0] == 0 or rows[-1] == 11
        assert width == length or cols[0] == 0 or cols[-1] == 16
    assert torch.equal(image, original)  # the input is left alone
    assert max(sides) == (length, length)
    # the centre lies inside the image, so at least half of a side does
    assert min(side for pair in sides for side in pair) == (length + 1) // 2


def test_cutout_number_of_holes():
    torch.manual_seed(0)
    # 1 x 1 holes in a large image practically never meet: the zeros count the holes
    zeros = [(TorchCutout(n_holes=3, length=1)(torch.ones(3, 400, 400))[0] == 0).sum().item() for _ in range(20)]
    assert set(zeros) == {3}


def test_cutout_comes_before_normalize(photo, bare_cfg):
    cfg = bare_cfg("INPUT.CUTOUT_LEN", 200)  # a hole over everything
    img = build_transform(cfg, choices=["normalize", "cutout"])(photo)
    black = -torch.tensor(cfg.INPUT.PIXEL_MEAN) / torch.tensor(cfg.INPUT.PIXEL_STD)
    torch.testing.assert_close(img, black.view(3, 1, 1).expand(3, 32, 32))


def test_instance_normalization_and_gaussian_noise():
    image = torch.rand(3, 50, 60) * 4 + 2
    out = InstanceNormalization()(image)
    torch.testing.assert_close(out.mean(dim=(1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(dim=(1, 2)), torch.ones(3))
    noise = GaussianNoise(mean=0.5, std=0.2, p=1.0)(image) - image
    assert noise.mean() == pytest.approx(0.5, abs=0.02) and noise.std() == pytest.approx(0.2, abs=0.02)
    changed = sum(not torch.equal(GaussianNoise(p=0.5)(image), image) for _ in range(200))
    assert 60 < changed < 140


def test_random_translation(photo):
    plain = photo.resize((20, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(np.array(Random2DTranslation(16, 20, p=0.0)(photo)), np.array(plain))
    enlarged = np.array(photo.resize((22, 18), Image.Resampling.BILINEAR))
    seen = set()
    for _ in range(200):
        out = np.array(Random2DTranslation(16, 20, p=1.0)(photo))
        seen |= {(y, x) for y in range(3) for x in range(3) if np.array_equal(out, enlarged[y : y + 16, x : x + 20])}
    assert len(seen) == 9  # every offset of the crop occurs
