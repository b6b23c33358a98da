"""Random draws of trainers written for Dassl: the order and the generators of the original.

The expected batches come from torchvision's transforms in a plain DataLoader, built as Dassl builds its own.
"""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms as T
from torchvision.transforms.functional import InterpolationMode

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.data.transforms import build_transform
from dassl.data.transforms.transforms import Cutout, GaussianNoise, Random2DTranslation
from dassl.engine import TRAINER_REGISTRY, TrainerX, TrainerXU, build_trainer
from dassl.engine.checkpoint import rng_state
from dassl.utils import set_random_seed
from trainers.base import ClipTrainer

CHOICES = ("random_resized_crop", "random_flip", "normalize")


class Images(Dataset):
    """Image files through a transform, and nothing else."""

    def __init__(self, items, transform):
        self.items, self.transform = items, transform

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        with Image.open(self.items[index].impath) as image:
            return self.transform(image.convert("RGB"))


@pytest.fixture
def items(tmp_path):
    pixels = np.random.default_rng().integers(0, 256, (11, 40, 50, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    return [Datum(str(tmp_path / f"{i}.png"), label=i % 2, domain=i % 2, classname=f"c{i % 2}") for i in range(11)]


@pytest.fixture
def build(items, monkeypatch, bare_cfg, tmp_path):
    """build(trainer, KEY, VALUE...): a trainer on the images, after seeding everything with 5."""

    class Files(DatasetBase):
        def __init__(self, cfg):
            super().__init__(train_x=items, train_u=items[:7], test=items[:3])

    def make(trainer, *opts):
        for registry, added in ((DATASET_REGISTRY, Files), (TRAINER_REGISTRY, trainer)):
            monkeypatch.setitem(registry._obj_map, added.__name__, added)
        names = ["TRAINER.NAME", trainer.__name__, "DATASET.NAME", "Files", "OUTPUT_DIR", str(tmp_path / "out")]
        sizes = ["DATALOADER.TRAIN_X.BATCH_SIZE", 3, "OPTIM.MAX_EPOCH", 2, "INPUT.TRANSFORMS", CHOICES]
        cfg = bare_cfg(*names, *sizes, *opts)
        set_random_seed(5)
        return build_trainer(cfg)

    return make


class Noting(TrainerX):
    """Keeps its batches, and draws one number a step, as dropout would."""

    def build_model(self):
        self.model = torch.nn.Linear(2, 2)
        self.register_model("model", self.model)
        self.seen = []

    def forward_backward(self, batch):
        image, *_ = self.parse_batch_train(batch)
        self.seen.append((image, torch.rand(())))
        return {}

    def get_current_lr(self, names=None):
        return 0.0

    def after_train(self):
        """Leave out the test."""


class NotingU(Noting, TrainerXU):
    run_epoch = TrainerXU.run_epoch

    def forward_backward(self, batch_x, batch_u):
        image, label, unlabelled = TrainerXU.parse_batch_train(self, batch_x, batch_u)
        assert torch.equal(label, batch_x["label"])
        self.seen.append((image, unlabelled, torch.rand(())))
        return {}


def original_transform(cfg):
    return T.Compose(
        [
            T.RandomResizedCrop(cfg.INPUT.SIZE, scale=cfg.INPUT.RRCROP_SCALE, interpolation=InterpolationMode.BILINEAR),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD),
        ]
    )


def original_loader(cfg, items, workers):
    data = Images(items, original_transform(cfg))
    return DataLoader(data, batch_size=3, sampler=RandomSampler(items), num_workers=workers, drop_last=True)


def states_are_equal(a, b):
    same = torch.equal(a["torch"], b["torch"]) and torch.equal(a["numpy"][1], b["numpy"][1])
    return same and a["python"] == b["python"]


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_and_flips_of_a_trainer_for_dassl(build, items, workers):
    trainer = build(Noting, "DATALOADER.NUM_WORKERS", workers)
    set_random_seed(7)
    trainer.train()
    state = rng_state()

    set_random_seed(7)
    loader = original_loader(trainer.cfg, items, workers)
    expected = [(batch, torch.rand(())) for _ in range(2) for batch in loader]
    assert len(expected) == len(trainer.seen) == 6
    for batch, seen in zip(expected, trainer.seen, strict=True):
        assert torch.equal(batch[0], seen[0]) and batch[1] == seen[1]
    assert states_are_equal(rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_trainer_of_unlabelled_images_starts_both_loaders_first(build, items, workers):
    trainer = build(NotingU, "DATALOADER.NUM_WORKERS", workers)
    set_random_seed(7)
    trainer.train()

    set_random_seed(7)
    loaders = [original_loader(trainer.cfg, part, workers) for part in (items, items[:7])]
    expected = []
    for _ in range(2):
        labelled, unlabelled = map(iter, loaders)
        for _ in range(3):  # the labelled images of an epoch; the others end after two batches
            batch_x = next(labelled)
            batch_u = next(unlabelled, None)
            if batch_u is None:
                unlabelled = iter(loaders[1])
                batch_u = next(unlabelled)
            expected.append((batch_x, batch_u, torch.rand(())))
    assert len(trainer.seen) == 6
    for batch, seen in zip(expected, trainer.seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, seen, strict=True))


def test_this_projects_trainers_draw_by_item(build, tmp_path):
    assert ClipTrainer.draws_by_item and not TrainerX.draws_by_item

    class ByItem(Noting):
        draws_by_item = True

    batches = []
    for workers in (0, 2):
        trainer = build(ByItem, "DATALOADER.NUM_WORKERS", workers, "OUTPUT_DIR", str(tmp_path / f"out{workers}"))
        set_random_seed(7)
        trainer.train()
        batches.append(torch.cat([image for image, _ in trainer.seen]))
    assert torch.equal(*batches)


# ------------------------------------------------------------------ the three transforms that torchvision has not


@pytest.mark.parametrize("seed", range(8))
def test_translation_draws_from_pythons_generator(items, seed):
    image = Image.open(items[0].impath).convert("RGB")
    random.seed(seed)
    moved = Random2DTranslation(16, 24)(image)
    state = random.getstate()

    random.seed(seed)
    if random.uniform(0, 1) > 0.5:
        expected = image.resize((24, 16), Image.Resampling.BILINEAR)
    else:  # 18 x 27
        left, top = round(random.uniform(0, 3)), round(random.uniform(0, 2))
        enlarged = image.resize((27, 18), Image.Resampling.BILINEAR)
        expected = enlarged.crop((left, top, left + 24, top + 16))
    assert moved.tobytes() == expected.tobytes() and random.getstate() == state


@pytest.mark.parametrize("seed, length", [(0, 6), (1, 6), (2, 7), (3, 1)])
def test_cutout_draws_from_numpys_generator(seed, length):
    image = torch.rand(3, 12, 17) + 0.1
    np.random.seed(seed)
    cut = Cutout(n_holes=2, length=length)(image)
    state = np.random.get_state()

    np.random.seed(seed)
    expected, half = image.clone(), length // 2
    for _ in range(2):
        row, column = np.random.randint(12), np.random.randint(17)
        rows = slice(max(row - half, 0), min(row + half, 12))
        expected[:, rows, max(column - half, 0) : min(column + half, 17)] = 0
    assert torch.equal(cut, expected) and np.array_equal(np.random.get_state()[1], state[1])


def test_noise_draws_from_pythons_and_torchs_generator():
    image, changed = torch.rand(3, 12, 17), 0
    for seed in range(12):
        set_random_seed(seed)
        noisy = GaussianNoise(mean=0.5, std=0.2)(image)
        set_random_seed(seed)
        expected = image
        if random.uniform(0, 1) <= 0.5:
            expected, changed = image + (torch.randn(image.size()) * 0.2 + 0.5), changed + 1
        assert torch.equal(noisy, expected)
    assert 0 < changed < 12


def test_build_transform_takes_them_unless_it_draws_by_item(bare_cfg):
    names = ["random_translation", "cutout", "gaussian_noise"]
    types = [
        type(step) for step in build_transform(bare_cfg("INPUT.INTERPOLATION", "bicubic"), choices=names).transforms
    ]
    assert {Random2DTranslation, Cutout, GaussianNoise} <= set(types)
    by_item = [type(step) for step in build_transform(bare_cfg(), choices=names, draws_by_item=True).transforms]
    assert not {Random2DTranslation, Cutout, GaussianNoise} & set(by_item)
