"""Data sets, few-shot sampling and loaders."""

import json
import pickle
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from dassl.data import DataManager, DatasetWrapper, build_data_loader, data_manager
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
from dassl.data.transforms import build_transform
from dassl.engine.checkpoint import rng_state, set_rng_state
from dassl.utils import set_random_seed

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"


def items_of(labels, domains=None):
    domains = domains or [0] * len(labels)
    return [Datum(f"{i}.png", label, domains[i], f"class {label}") for i, label in enumerate(labels)]


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
def registered(files, monkeypatch):
    """A data set named Tiny, registered during the test: train 8, val 0, test 4 images."""

    class Tiny(DatasetBase):
        val_items, unlabelled = [], []

        def __init__(self, cfg):
            super().__init__(train_x=files[:8], train_u=self.unlabelled, val=self.val_items, test=files[8:])

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "Tiny", Tiny)
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


def test_items_by_label_and_by_domain():
    items = items_of([1, 0, 1, 2], [3, 3, 0, 3])
    by_label = DatasetBase.split_dataset_by_label(items)
    assert list(by_label.items()) == [(1, [items[0], items[2]]), (0, [items[1]]), (2, [items[3]])]
    by_domain = DatasetBase.split_dataset_by_domain(items)
    assert list(by_domain.items()) == [(3, [items[0], items[1], items[3]]), (0, [items[2]])]


def test_download_from_google_drive(tmp_path, monkeypatch):
    def download(url, dst):
        with tarfile.open(dst, "w") as tar:
            tar.addfile(tarfile.TarInfo(url))

    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=download))
    DatasetBase.download_data("inside", str(tmp_path / "new" / "x.tar"))
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["inside", "x.tar"]


def test_build_dataset_names_the_nearest(registered, bare_cfg):
    assert isinstance(build_dataset(bare_cfg("DATASET.NAME", "Tiny")), registered)
    with pytest.raises(ValueError, match="Tiny"):
        build_dataset(bare_cfg("DATASET.NAME", "Tinny"))


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


# ---------------------------------------------------------------- loaders


def test_dataset_wrapper_items(files, bare_cfg):
    cfg = bare_cfg("DATALOADER.RETURN_IMG0", True, "INPUT.TRANSFORMS", ("normalize",))
    halves = [lambda img: T.functional.to_tensor(img), lambda img: T.functional.to_tensor(img) / 2]
    item = DatasetWrapper(cfg, files, transform=halves)[5]
    assert (item["label"], item["domain"], item["impath"], item["index"]) == (1, 1, files[5].impath, 5)
    assert set(item) == {"label", "domain", "impath", "index", "img", "img2", "img0"}
    torch.testing.assert_close(item["img"], item["img2"] * 2)
    with Image.open(files[5].impath) as image:
        plain = T.functional.to_tensor(image.resize((32, 32), Image.Resampling.BILINEAR))
    expected = T.functional.normalize(plain, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)
    torch.testing.assert_close(item["img0"], expected)
    assert "img" not in DatasetWrapper(bare_cfg(), files)[0]


def test_k_transforms(files, bare_cfg):
    cfg = bare_cfg("DATALOADER.K_TRANSFORMS", 3)
    tfm = build_transform(cfg, choices=["random_resized_crop"])
    imgs = DatasetWrapper(cfg, files, transform=tfm, is_train=True)[0]["img"]
    assert len(imgs) == 3 and not torch.equal(imgs[0], imgs[1])
    assert torch.is_tensor(DatasetWrapper(cfg, files, transform=tfm, is_train=False)[0]["img"])
    batch = next(iter(build_data_loader(cfg, data_source=files, batch_size=4, tfm=tfm)))
    assert [img.shape for img in batch["img"]] == [(4, 3, 32, 32)] * 3
    with pytest.raises(ValueError, match="K_TRANSFORMS=3"):
        DatasetWrapper(cfg, files, is_train=True)


@pytest.mark.parametrize("content", [b"not an image", None])
def test_unreadable_image_is_named_on_one_line(tmp_path, content, bare_cfg):
    path = tmp_path / "broken.png"
    if content is None:
        Image.new("RGB", (64, 64), "red").save(path)
        content = path.read_bytes()[:-60]  # a truncated file
    path.write_bytes(content)
    cfg = bare_cfg()
    with pytest.raises(OSError) as error:
        DatasetWrapper(cfg, [Datum(str(path))], transform=build_transform(cfg, False))[0]
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_drop_last_and_empty_sources(files, bare_cfg):
    cfg = bare_cfg()
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
    """Adds a draw from each of the three global generators."""

    def __getitem__(self, idx):
        assert type(idx) is int
        draws = torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])
        return super().__getitem__(idx) | {"draws": draws}


class PlainWrapper(Dataset):
    """Somebody's own, which knows of indices only."""

    def __init__(self, cfg, data_source, transform, is_train):
        self.data_source = data_source

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, idx):
        return {"index": idx, "draws": torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])}


BY_ITEM = {"draws_by_item": True}


def draw_epochs(cfg, files, seed, wrapper=StreamsWrapper, sampler="RandomSampler", epochs=2):
    """[index, img, draws] of all items of some epochs, and the global generators' states behind them."""
    set_random_seed(seed)
    tfm = build_transform(cfg, choices=["random_resized_crop", "random_flip", "cutout", "gaussian_noise"], **BY_ITEM)
    loader = build_data_loader(
        cfg, sampler, data_source=files, batch_size=2, tfm=tfm, dataset_wrapper=wrapper, n_ins=2, **BY_ITEM
    )
    batches = [batch for _ in range(epochs) for batch in loader]
    items = [torch.cat([b[key] for b in batches]) for key in ("index", "img", "draws") if key in batches[0]]
    return items, rng_state()


def states_are_equal(a, b):
    return (
        torch.equal(a["torch"], b["torch"]) and a["python"] == b["python"] and torch.equal(a["numpy"][1], b["numpy"][1])
    )


def test_what_is_random_in_an_item_depends_on_its_place_only(files, bare_cfg):
    """Not on the number of workers, and not on what was drawn before; and it leaves no trace."""
    none, (two, state) = (draw_epochs(bare_cfg("DATALOADER.NUM_WORKERS", n), files, seed=1) for n in (0, 2))
    assert all(torch.equal(a, b) for a, b in zip(none[0], two, strict=True)) and states_are_equal(none[1], state)
    index, img, draws = two
    assert sorted(index[:12].tolist()) == list(range(12)) and not torch.equal(index[:12], index[12:])
    assert all(len(column.unique()) == 24 for column in draws.T), "each item of each epoch has its own stream"
    other, _ = draw_epochs(bare_cfg(), files, seed=2)
    assert not any(torch.equal(a, b) for a, b in zip(two, other, strict=True))

    torch.manual_seed(3)  # the second epoch alone, from the state that a checkpoint has
    loader = build_data_loader(
        bare_cfg(), "RandomSampler", files, 2, tfm=T.ToTensor(), dataset_wrapper=StreamsWrapper, **BY_ITEM
    )
    list(loader)
    state = rng_state()
    second = list(loader)
    random.random(), np.random.rand(), torch.rand(3)
    set_rng_state(state)
    again = list(loader)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(second, again, strict=True) for key in ("index", "draws"))


def test_an_item_that_comes_twice_in_an_epoch_is_augmented_twice(files, bare_cfg):
    files = [files[0], *files[4:6]]  # the class of the first has too few for the sampler, which takes it twice
    (index, img, draws), _ = draw_epochs(bare_cfg(), files, 1, sampler="RandomClassSampler", epochs=1)
    first = (index == 0).nonzero().flatten()
    assert len(first) == 2 and not torch.equal(*draws[first]) and not torch.equal(*img[first])


def test_workers_stay_where_they_carry_no_state(files, bare_cfg):
    cfg = bare_cfg("DATALOADER.NUM_WORKERS", 2)
    for wrapper, is_train, stay in ((None, True, True), (None, False, False), (PlainWrapper, True, False)):
        own = {"is_train": is_train, "dataset_wrapper": wrapper, **BY_ITEM}
        loader = build_data_loader(cfg, data_source=files, batch_size=4, **own)
        assert loader.persistent_workers is stay
    assert not build_data_loader(cfg, data_source=files, batch_size=4).persistent_workers, "Dassl's end with the epoch"
    cfg.TEST.FINAL_MODEL = "best_val"
    loader = build_data_loader(cfg, data_source=files, is_train=False, **BY_ITEM)
    assert loader.persistent_workers, "val, in every epoch"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_wrapper_of_somebody_else_draws_as_in_dassl(files, bare_cfg, workers):
    cfg = bare_cfg("DATALOADER.NUM_WORKERS", workers)
    (index, draws), _ = draw_epochs(cfg, files, 1, PlainWrapper)
    (_, again), _ = draw_epochs(cfg, files, 1, PlainWrapper)
    assert index.dtype == torch.int64 and torch.equal(draws, again)
    assert all(len(column.unique()) == 24 for column in draws.T), "no two workers share a stream"


def test_the_own_loader_of_somebody_else_takes_a_wrapper_as_it_is(files, bare_cfg):
    data = DatasetWrapper(bare_cfg(), files, transform=T.ToTensor())
    batch = next(iter(DataLoader(data, batch_size=4)))
    assert batch["index"].tolist() == [0, 1, 2, 3] and torch.equal(batch["img"][3], data[3]["img"])


def test_images_of_every_epoch_are_decoded_once(files, bare_cfg, monkeypatch):
    """Before the first batch, as far as they fit, and to the same pixels; what does not fit is read again."""
    broken = Path(files[0].impath).parent / "broken.png"
    broken.write_bytes(b"no image")
    monkeypatch.setattr(data_manager, "COPIES", 3 * 36 * 44 * 5)
    wanted = [T.functional.to_tensor(Image.open(item.impath).convert("RGB")) for item in files]
    opened, image_open = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path, **options: opened.append(path) or image_open(path, **options))
    loader = build_data_loader(bare_cfg(), data_source=[Datum(str(broken)), *files], batch_size=1, tfm=T.ToTensor())
    assert not opened and not loader.dataset.copies, "an evaluation never asks for the training images"
    with pytest.raises(OSError, match="broken.png"):
        next(iter(loader))
    opened.clear()
    loader = build_data_loader(bare_cfg(), data_source=files, batch_size=4, tfm=T.ToTensor())
    for _ in range(2):
        assert torch.equal(torch.cat([batch["img"] for batch in loader]), torch.stack(wanted))
    assert list(loader.dataset.copies) == [item.impath for item in files[:5]]
    counts = [opened.count(item.impath) for item in files]
    assert counts[:5] == [1] * 5 and min(counts[5:]) >= 2
    loader = build_data_loader(bare_cfg(), data_source=files, batch_size=4, tfm=T.ToTensor(), is_train=False)
    list(loader)
    assert not loader.dataset.copies, "a test set is read once"


def test_data_manager(registered, files, capsys, bare_cfg):
    cfg = bare_cfg("DATASET.NAME", "Tiny", "DATALOADER.TRAIN_X.BATCH_SIZE", 3, "DATALOADER.TEST.BATCH_SIZE", 3)
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


def test_loaders_of_unlabelled_images_and_of_several_domains(registered, files, bare_cfg, capsys):
    registered.unlabelled = files  # two domains, which alternate
    domains = ["DATASET.SOURCE_DOMAINS", ("photo", "sketch"), "DATASET.TARGET_DOMAINS", ("cartoon",)]
    labelled = ["DATALOADER.TRAIN_X.SAMPLER", "SeqDomainSampler", "DATALOADER.TRAIN_X.BATCH_SIZE", 4]
    cfg = bare_cfg("DATASET.NAME", "Tiny", *domains, *labelled)
    manager = DataManager(cfg)
    assert manager.num_source_domains == 2
    table = capsys.readouterr().out
    assert "('photo', 'sketch')" in table and "('cartoon',)" in table and "# train_u  12" in table
    for loader, batches in ((manager.train_loader_x, 2), (manager.train_loader_u, 3)):  # the same settings
        assert [batch["domain"].tolist() for batch in loader] == [[0, 0, 1, 1]] * batches

    own = ["SAMPLER", "RandomClassSampler", "BATCH_SIZE", 6, "N_INS", 2]
    own = [f"DATALOADER.TRAIN_U.{word}" if i % 2 == 0 else word for i, word in enumerate(own)]
    manager = DataManager(bare_cfg("DATASET.NAME", "Tiny", "DATALOADER.TRAIN_U.SAME_AS_X", False, *labelled, *own))
    assert [sorted(batch["label"].tolist()) for batch in manager.train_loader_u] == [[0, 0, 1, 1, 2, 2]] * 2
    assert [len(batch["label"]) for batch in manager.train_loader_x] == [4, 4]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="it looks for processes in /proc")
def test_workers_end_with_a_run_that_is_killed(tmp_path):
    """Even those that wait for ever: PyTorch's own look at the parent comes between two items only."""
    code = """
import os, time, torch
from dassl.config import get_cfg_default
from dassl.data import build_data_loader
class Stuck(torch.utils.data.Dataset):
    def __init__(self, *args, **kwargs): pass
    def __len__(self): return 8
    def __getitem__(self, k):
        print(os.getpid(), flush=True)
        time.sleep(1000)
cfg = get_cfg_default()
cfg.DATALOADER.NUM_WORKERS = 2
next(iter(build_data_loader(cfg, data_source=[1] * 8, batch_size=4, dataset_wrapper=Stuck)))
"""
    run = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True
    )
    workers = [int(run.stdout.readline()) for _ in range(2)]
    assert all(Path(f"/proc/{pid}").exists() for pid in workers)
    run.kill()
    run.wait()
    end = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)


def alive(pid):
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rsplit(")", 1)[1].split()[0] != "Z"
