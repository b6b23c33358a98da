"""dassl.data: sampling, transforms, loaders."""

import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from dassl.config import get_cfg_default
from dassl.data import DataManager, DatasetWrapper, build_data_loader
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
from dassl.data.samplers import RandomClassSampler, RandomDomainSampler, SeqDomainSampler, build_sampler
from dassl.data.transforms import INTERPOLATION_MODES, build_transform
from dassl.data.transforms.transforms import (
    AVAI_CHOICES,
    Cutout,
    GaussianNoise,
    InstanceNormalization,
    RandAugmentRandomMagnitude,
    Random2DTranslation,
)

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"


def make_cfg(**options):
    """The default config at 32 x 32 without workers; options: DATALOADER__NUM_WORKERS=2, ..."""
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (32, 32)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.USE_CUDA = False
    for name, value in options.items():
        cfg.merge_from_list([name.replace("__", "."), value])
    return cfg


def items_of(labels, domains=None):
    domains = domains or [0] * len(labels)
    return [
        Datum(f"{i}.png", label, domain, f"class {label}")
        for i, (label, domain) in enumerate(zip(labels, domains, strict=True))
    ]


@pytest.fixture
def photo():
    """A random PIL image 40 x 48 (width x height)."""
    return Image.fromarray(np.random.default_rng().integers(0, 256, (48, 40, 3), dtype=np.uint8))


@pytest.fixture
def files(tmp_path):
    """12 random images on disk as Datum, 3 classes of 4."""
    rng = np.random.default_rng()
    items = []
    for i in range(12):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (36, 44, 3), dtype=np.uint8)).save(path)
        items.append(Datum(str(path), i // 4, i % 2, f"class {i // 4}"))
    return items


@pytest.fixture
def registered(files):
    """A data set named Tiny, in the registry for the test: train 8, val 0, test 4 images."""

    class Tiny(DatasetBase):
        val_items = []

        def __init__(self, cfg):
            super().__init__(train_x=files[:8], val=self.val_items, test=files[8:])

    DATASET_REGISTRY.register(Tiny, force=True)
    return Tiny


# ---------------------------------------------------------------- data sets


def test_datum_fields_pickle_and_old_caches():
    datum = Datum("a.png", 3, 1, "cat")
    assert (datum.impath, datum.label, datum.domain, datum.classname) == ("a.png", 3, 1, "cat")
    assert Datum("a.png") == Datum("a.png", label=0, domain=0, classname="")
    assert pickle.loads(pickle.dumps(datum)) == datum
    # What Dassl.pytorch's few-shot pickles hold: the same class path, state under underscored names.
    old = Datum.__new__(Datum)
    old.__setstate__({"_impath": "b.png", "_label": 7, "_domain": 0, "_classname": "dog"})
    assert old == Datum("b.png", 7, 0, "dog")
    with pytest.raises(AttributeError):
        datum.label = 4


def test_dataset_base_classes():
    dataset = DatasetBase(train_x=items_of([2, 0, 2, 5]), val=[], test=items_of([1]))
    assert dataset.num_classes == 6  # largest label + 1, although only three labels occur
    assert dataset.lab2cname == {0: "class 0", 2: "class 2", 5: "class 5"}
    assert dataset.classnames == ["class 0", "class 2", "class 5"]
    assert dataset.train_u is None and dataset.val == [] and len(dataset.test) == 1
    with pytest.raises(ValueError, match="train_x"):
        DatasetBase(train_x=[], test=items_of([1]))


def test_dataset_domains():
    class Domains(DatasetBase):
        domains = ["photo", "sketch"]

    dataset = Domains(train_x=items_of([0]))
    dataset.check_input_domains(["photo"], ["sketch"])
    with pytest.raises(ValueError, match="sketch"):
        dataset.check_input_domains(["photo"], ["sketsh"])


def test_build_dataset_names_the_nearest(registered):
    assert isinstance(build_dataset(make_cfg(DATASET__NAME="Tiny")), registered)
    with pytest.raises(ValueError, match="Tiny"):
        build_dataset(make_cfg(DATASET__NAME="Tinny"))


@pytest.mark.parametrize("num_shots", [1, 3])
def test_fewshot_is_random_sample_per_class_in_order_of_appearance(num_shots):
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    sources = [items_of(rng.choices([4, 1, 7, 0], k=60)), items_of(rng.choices([2, 1], k=30))]
    dataset = DatasetBase(train_x=sources[0])

    random.seed(seed)
    expected = []
    for source in sources:
        picks = []
        for label in dict.fromkeys(item.label for item in source):
            picks += random.sample([item for item in source if item.label == label], num_shots)
        expected.append(picks)

    random.seed(seed)
    assert dataset.generate_fewshot_dataset(*sources, num_shots=num_shots) == expected
    rng = random.Random(seed)
    state = random.getstate()
    assert dataset.generate_fewshot_dataset(sources[0], num_shots=num_shots, rng=rng) == expected[0]
    assert random.getstate() == state  # an own generator leaves the global one alone


def test_fewshot_with_too_few_items():
    source = items_of([0] * 5 + [1] * 2)
    dataset = DatasetBase(train_x=source)
    assert dataset.generate_fewshot_dataset(source) is source
    assert dataset.generate_fewshot_dataset(source, num_shots=4)[4:] == source[5:]
    repeated = dataset.generate_fewshot_dataset(source, num_shots=4, repeat=True)
    assert [d.label for d in repeated] == [0] * 4 + [1] * 4
    assert set(repeated[4:]) <= set(source[5:])


@pytest.mark.skipif(not REFERENCE.exists(), reason="needs the published splits")
@pytest.mark.parametrize("name", ["caltech101", "dtd", "oxford_pets"])
def test_fewshot_picks_the_published_images(name):
    (split_path,) = (REFERENCE / name).glob("split_zhou_*.json")
    split = {
        part: [Datum(*row[:2], 0, row[2]) for row in rows] for part, rows in json.loads(split_path.read_text()).items()
    }
    dataset = DatasetBase(train_x=split["train"])
    for path in (REFERENCE / name).glob("shot_*-seed_*.json"):
        num_shots, seed = (int(part.split("_")[1]) for part in path.stem.split("-"))
        random.seed(seed)
        picks = {
            "train": dataset.generate_fewshot_dataset(split["train"], num_shots=num_shots),
            "val": dataset.generate_fewshot_dataset(split["val"], num_shots=min(num_shots, 4)),
        }
        published = json.loads(path.read_text())
        for part, rows in published.items():
            assert [[d.impath, d.label, d.classname] for d in picks[part]] == rows, (path.name, part)


# ---------------------------------------------------------------- samplers


def batches_of(sampler, size):
    indices = list(sampler)
    assert len(indices) == len(sampler) and len(indices) % size == 0
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def test_random_domain_sampler():
    # Groups of 3: 10, 4, 4 and 2. Two of different domains a batch: all 20 groups fit into 10 batches.
    items = items_of([0] * 62, [0] * 30 + [1] * 13 + [2] * 13 + [3] * 6)
    sampler = RandomDomainSampler(items, batch_size=6, n_domain=2)
    batches = batches_of(sampler, 6)
    assert len(batches) == 10
    for batch in batches:
        domains = [items[i].domain for i in batch]
        assert len(set(domains)) == 2 and all(domains.count(d) == 3 for d in set(domains))
    assert len(set(sum(batches, []))) == 60  # no image twice in an epoch
    assert batches_of(sampler, 6) != batches  # another epoch, another order
    torch.manual_seed(3)
    first = list(sampler)
    torch.manual_seed(3)
    assert list(sampler) == first
    assert len(RandomDomainSampler(items, batch_size=8, n_domain=0)) == 3 * 8  # all 4 domains, 6 // 2 batches
    with pytest.raises(ValueError, match="multiple"):
        RandomDomainSampler(items, batch_size=7, n_domain=2)
    with pytest.raises(ValueError, match="4 domains"):
        RandomDomainSampler(items, batch_size=10, n_domain=5)


def test_seq_domain_sampler():
    items = items_of([0] * 20, [2] * 9 + [0] * 5 + [1] * 6)
    batches = batches_of(SeqDomainSampler(items, batch_size=6), 6)
    assert len(batches) == 2  # domain 0 has 5 // 2 pairs
    assert [[items[i].domain for i in batch] for batch in batches] == [[0, 0, 1, 1, 2, 2]] * 2
    assert len(set(sum(batches, []))) == 12
    with pytest.raises(ValueError, match="number of domains"):
        SeqDomainSampler(items, batch_size=7)


def test_random_class_sampler():
    items = items_of([5] * 8 + [1] * 9 + [3] * 4 + [9] * 2)  # groups of 4: 2, 2, 1 and 1 (with repeats)
    sampler = RandomClassSampler(items, batch_size=8, n_ins=4)
    batches = batches_of(sampler, 8)
    assert len(batches) == 3
    for batch in batches:
        labels = [items[i].label for i in batch]
        assert len(set(labels)) == 2 and all(labels.count(label) == 4 for label in set(labels))
    full = [i for i in sum(batches, []) if items[i].label != 9]
    assert len(set(full)) == len(full) == 20
    with pytest.raises(ValueError, match="needs 5 classes"):
        RandomClassSampler(items, batch_size=20, n_ins=4)


def test_build_sampler():
    items = items_of([0, 1] * 4, [0] * 4 + [1] * 4)
    for name in ["RandomSampler", "SequentialSampler", "RandomDomainSampler", "SeqDomainSampler"]:
        sampler = build_sampler(name, data_source=items, batch_size=4)
        assert type(sampler).__name__ == name and sorted(sampler) == list(range(8))
    assert len(list(build_sampler("RandomClassSampler", data_source=items, batch_size=4, n_ins=2))) == 8
    with pytest.raises(ValueError, match="RandomSampler"):
        build_sampler("RandomSampeler", data_source=items)


# ---------------------------------------------------------------- transforms


@pytest.mark.parametrize("choice", AVAI_CHOICES)
def test_every_choice_gives_a_float_image(choice, photo):
    for is_train in (True, False):
        tfm = build_transform(make_cfg(INPUT__SIZE=(24, 32)), is_train, choices=[choice])
        img = pickle.loads(pickle.dumps(tfm))(photo)  # workers that are spawned get the transform pickled
        assert img.shape == (3, 24, 32) and img.dtype == torch.float32 and img.isfinite().all()


@pytest.mark.parametrize("choice", AVAI_CHOICES)
def test_training_transforms_follow_torch_seed_alone(choice, photo):
    tfm = build_transform(make_cfg(), choices=[choice])
    outputs = []
    for other_seed in (1, 2):
        torch.manual_seed(11)
        random.seed(other_seed)
        np.random.seed(other_seed)
        outputs.append(torch.stack([tfm(photo) for _ in range(4)]))
    assert torch.equal(*outputs)


def test_transform_order_and_parameters():
    cfg = make_cfg(INPUT__TRANSFORMS=tuple(reversed(AVAI_CHOICES)), INPUT__CUTOUT_N=3, INPUT__GB_K=5)
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


def test_plain_training_resizes_to_size_and_bicubic_is_passed_on(photo):
    tfm = build_transform(make_cfg(INPUT__INTERPOLATION="bicubic"), choices=["center_crop"])
    expected = photo.resize((32, 32), Image.Resampling.BICUBIC)
    assert torch.equal(tfm(photo), T.functional.to_tensor(expected))
    crop = build_transform(make_cfg(INPUT__INTERPOLATION="bicubic"), choices=["random_resized_crop"])
    assert crop.transforms[0].interpolation == INTERPOLATION_MODES["bicubic"]


def test_test_transform_is_resize_center_crop_normalize(photo, capsys):
    cfg = make_cfg(INPUT__SIZE=(16, 20), INPUT__TRANSFORMS=("random_flip", "cutout", "normalize"))
    img = build_transform(cfg, is_train=False)(photo)
    # 40 x 48 -> shorter side 20: 20 x 24 -> the centre 20 wide and 16 high, antialiased as PIL does it
    resized = photo.resize((20, 24), Image.Resampling.BILINEAR).crop((0, 4, 20, 20))
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    torch.testing.assert_close(img, (pixels - mean) / std)
    printed = capsys.readouterr().out
    assert "CenterCrop" in printed and "Cutout" not in printed and "Flip" not in printed


def test_unknown_names_give_the_nearest(photo):
    with pytest.raises(ValueError, match="cutout"):
        build_transform(make_cfg(), choices=["cut_out"])
    with pytest.raises(ValueError, match="bicubic"):
        build_transform(make_cfg(INPUT__INTERPOLATION="bicubics"))
    with pytest.raises(ValueError, match="RANDAUGMENT_M"):
        build_transform(make_cfg(INPUT__RANDAUGMENT_M=31), choices=["randaugment"])


def test_no_transform():
    assert build_transform(make_cfg(INPUT__NO_TRANSFORM=True)) is None


@pytest.mark.parametrize("length", [4, 5])
def test_cutout_hole_is_a_square_clipped_by_the_border(length):
    cutout, image = Cutout(n_holes=1, length=length), torch.rand(3, 12, 17) + 0.1
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
    zeros = [(Cutout(n_holes=3, length=1)(torch.ones(3, 400, 400))[0] == 0).sum().item() for _ in range(20)]
    assert set(zeros) == {3}


def test_cutout_comes_before_normalize(photo):
    cfg = make_cfg(INPUT__CUTOUT_LEN=200)  # a hole over everything
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


# ---------------------------------------------------------------- loaders


def test_dataset_wrapper_items(files):
    cfg = make_cfg(DATALOADER__RETURN_IMG0=True, INPUT__TRANSFORMS=("normalize",))
    halves = [lambda img: T.functional.to_tensor(img), lambda img: T.functional.to_tensor(img) / 2]
    item = DatasetWrapper(cfg, files, transform=halves)[5]
    assert (item["label"], item["domain"], item["impath"], item["index"]) == (1, 1, files[5].impath, 5)
    assert set(item) == {"label", "domain", "impath", "index", "img", "img2", "img0"}
    torch.testing.assert_close(item["img"], item["img2"] * 2)
    with Image.open(files[5].impath) as image:
        plain = T.functional.to_tensor(image.resize((32, 32), Image.Resampling.BILINEAR))
    expected = T.functional.normalize(plain, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)
    torch.testing.assert_close(item["img0"], expected)
    assert "img" not in DatasetWrapper(make_cfg(), files)[0]


def test_k_transforms(files):
    cfg = make_cfg(DATALOADER__K_TRANSFORMS=3)
    tfm = build_transform(cfg, choices=["random_resized_crop"])
    imgs = DatasetWrapper(cfg, files, transform=tfm, is_train=True)[0]["img"]
    assert len(imgs) == 3 and not torch.equal(imgs[0], imgs[1])
    assert torch.is_tensor(DatasetWrapper(cfg, files, transform=tfm, is_train=False)[0]["img"])
    batch = next(iter(build_data_loader(cfg, data_source=files, batch_size=4, tfm=tfm)))
    assert [img.shape for img in batch["img"]] == [(4, 3, 32, 32)] * 3
    with pytest.raises(ValueError, match="K_TRANSFORMS=3"):
        DatasetWrapper(cfg, files, is_train=True)


@pytest.mark.parametrize("content", [b"not an image", None])
def test_unreadable_image_is_named_on_one_line(tmp_path, content):
    path = tmp_path / "broken.png"
    if content is None:
        Image.new("RGB", (64, 64), "red").save(path)
        content = path.read_bytes()[:-60]  # a truncated file
    path.write_bytes(content)
    cfg = make_cfg()
    with pytest.raises(OSError) as error:
        DatasetWrapper(cfg, [Datum(str(path))], transform=build_transform(cfg, False))[0]
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_drop_last_and_empty_sources(files):
    cfg = make_cfg()
    tfm = build_transform(cfg)

    def sizes(batch_size, is_train):
        loader = build_data_loader(cfg, data_source=files, batch_size=batch_size, tfm=tfm, is_train=is_train)
        return [len(batch["label"]) for batch in loader]

    assert sizes(5, True) == [5, 5]
    assert sizes(5, False) == [5, 5, 2]
    assert sizes(13, True) == [12]  # larger than the data set: kept
    with pytest.raises(ValueError, match="No items"):
        build_data_loader(cfg, data_source=[], tfm=tfm)
    with pytest.raises(ValueError, match="one batch of 16"):  # 2 domains x 8, which have 6 images each
        build_data_loader(cfg, "SeqDomainSampler", data_source=files, batch_size=16, tfm=tfm)


class StreamsWrapper(DatasetWrapper):
    """Adds a draw from each of the three global generators, as they are seeded in the worker."""

    def __getitem__(self, idx):
        draws = torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])
        return super().__getitem__(idx) | {"draws": draws}


def test_workers_are_deterministic_and_differ(files):
    cfg = make_cfg(DATALOADER__NUM_WORKERS=2)
    tfm = build_transform(cfg, choices=["random_resized_crop", "random_flip", "cutout", "gaussian_noise"])

    def epoch(seed):
        torch.manual_seed(seed)
        loader = build_data_loader(
            cfg, "RandomSampler", data_source=files, batch_size=2, tfm=tfm, dataset_wrapper=StreamsWrapper
        )
        assert not loader.persistent_workers
        batches = list(loader)
        return [torch.cat([b[key] for b in batches]) for key in ("index", "img", "draws")]

    first, again, other = epoch(1), epoch(1), epoch(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert all(len(draws.unique()) == 12 for draws in first[2].T)  # no two workers share a stream


def test_data_manager(registered, files, capsys):
    cfg = make_cfg(DATASET__NAME="Tiny", DATALOADER__TRAIN_X__BATCH_SIZE=3, DATALOADER__TEST__BATCH_SIZE=3)
    manager = DataManager(cfg)
    assert manager.num_classes == 2 and manager.lab2cname == {0: "class 0", 1: "class 1"}
    assert manager.num_source_domains == 0
    assert manager.train_loader_u is None and manager.val_loader is None
    assert len(manager.train_loader_x) == 2 and len(manager.test_loader) == 2
    assert [i for batch in manager.test_loader for i in batch["impath"]] == [d.impath for d in files[8:]]
    table = capsys.readouterr().out
    assert "# train_x  8" in table and "# test     4" in table and "# val" not in table

    registered.val_items = files[4:6]
    manager = DataManager(cfg, custom_tfm_train=T.ToTensor(), custom_tfm_test=T.ToTensor())
    assert next(iter(manager.val_loader))["img"].shape == (2, 3, 36, 44)
    assert next(iter(manager.train_loader_x))["img"].shape == (3, 3, 36, 44)
