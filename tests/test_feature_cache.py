"""Frozen features on disk: the same figures to the bit, nothing out of date, whole files, a bounded folder."""

import multiprocessing
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms as T

import trainers
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import Datum
from dassl.data.feature_cache import FeatureCache
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY
from orthcr.compare.command_line import parse_arguments
from orthcr.compare.methods import options_by_trainer
from orthcr.compare.output_folders import feature_cache_option
from orthcr.run.checks import check_same_run
from orthcr.run.config import discover, setup_cfg
from orthcr.run.flags import parse
from orthcr.run.runner import run
from trainers.base import ClipTrainer
from trainers.shared.classifier import ClipClassifier

discover(trainers)
METHODS = [name for name in TRAINER_REGISTRY.registered_names() if issubclass(TRAINER_REGISTRY.get(name), ClipTrainer)]
PLAIN = {"enabled": False, "dtype": None}
RANDOM = ["random_resized_crop", "normalize"]


@pytest.fixture
def items(tmp_path):
    """7 random images of 3 classes."""
    draw, items = np.random.default_rng(), []
    for k in range(7):
        path = tmp_path / f"{k}.bmp"
        Image.fromarray(draw.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(path)
        items.append(Datum(str(path), k % 3, 0, f"class {k % 3}"))
    return items


@pytest.fixture
def encoder():
    conv = nn.Conv2d(3, 4, 3)
    return nn.Sequential(conv, nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 5)).eval().requires_grad_(False)


@pytest.fixture
def loader_of(bare_cfg):
    """loader_of(items, batch_size, *choices): a loader as of a test, or with choices the transform of a training."""

    def make(items, batch_size=3, *choices):
        cfg = bare_cfg("INPUT.SIZE", (8, 8), "INPUT.TRANSFORMS", ("normalize",), "DATALOADER.NUM_WORKERS", 0)
        transform = build_transform(cfg, bool(choices), choices or None, draws_by_item=True)
        options = {"tfm": transform, "is_train": False, "draws_by_item": True}
        return build_data_loader(cfg, data_source=items, batch_size=batch_size, **options)

    return make


def encode_pass(cache, loader, encoder, precision=None):
    """Return the features of a pass, its other values, and whether it was in the cache."""
    one_pass = cache.look_up(loader, encoder, precision or PLAIN)
    encode = lambda batch: encoder(batch["img"])  # noqa: E731
    batches = one_pass.batches() if one_pass.encoded else cache.record(one_pass, encode)
    batches = list(batches)
    others = {key: [batch[key] for batch in batches] for key in ("label", "domain", "index", "impath")}
    return torch.cat([batch["img"] for batch in batches]), str(others), bool(one_pass.encoded)


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(str(tmp_path / "features"), 1.0)


def files_of(cache):
    return sorted(Path(cache.folder).iterdir())


# ------------------------------------------------------------------ passes


@pytest.mark.parametrize("choices", [(), RANDOM], ids=["test", "training"])
def test_a_stored_pass_is_the_pass(cache, loader_of, items, encoder, choices):
    loader, seed = loader_of(items, 3, *choices), random.randrange(2**31)
    torch.manual_seed(seed)
    plain = torch.cat([encoder(batch["img"]) for batch in loader]), torch.get_rng_state()
    passes = []
    for _ in range(2):
        torch.manual_seed(seed)
        passes.append(encode_pass(cache, loader, encoder))
        assert torch.equal(passes[-1][0], plain[0]) and torch.equal(torch.get_rng_state(), plain[1])
    assert passes[0][1] == passes[1][1] and [stored for *_, stored in passes] == [False, True]
    torch.manual_seed(seed + 1)
    assert encode_pass(cache, loader, encoder)[2] == (not choices), "without random parts the seed does not matter"


def test_a_changed_image_is_encoded_again(cache, loader_of, items, encoder):
    loader = loader_of(items)
    before, *_ = encode_pass(cache, loader, encoder)
    path = Path(random.choice(items).impath)
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[-random.randrange(1, 100)] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after, _, stored = encode_pass(cache, loader, encoder)
    assert not stored and not torch.equal(after, before)
    assert torch.equal(after, torch.cat([encoder(batch["img"]) for batch in loader]))


def flip_weight(encoder, loader):
    weight = encoder[random.choice([0, 3])].weight.data.view(-1)
    place = random.randrange(len(weight))
    weight[place] = torch.nextafter(weight[place], torch.tensor(9.0))


def change_setting(encoder, loader):
    encoder[1].eps *= 2


def change_transform(encoder, loader):
    loader.dataset.transform.transforms[-1].std[1] += 1e-9


def change_order(encoder, loader):
    items = loader.dataset.data_source
    items[:] = items[1:] + items[:1]


def train_part(encoder, loader):
    encoder[1].train()


@pytest.mark.parametrize("change", [flip_weight, change_setting, change_transform, change_order, train_part])
def test_what_else_is_encoded_again(cache, loader_of, items, encoder, change):
    loader = loader_of(items)
    encode_pass(cache, loader, encoder)
    assert encode_pass(cache, loader, encoder)[2]
    change(encoder, loader)
    assert not encode_pass(cache, loader, encoder)[2]


def test_batches_precision_and_threads_are_part_of_a_pass(cache, loader_of, items, encoder, monkeypatch):
    encode_pass(cache, loader_of(items, 3), encoder)
    assert not encode_pass(cache, loader_of(items, 2), encoder)[2]
    assert not encode_pass(cache, loader_of(items, 3), encoder, {"enabled": True, "dtype": torch.bfloat16})[2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert not encode_pass(cache, loader_of(items, 3), encoder)[2]


class Mine(T.CenterCrop):
    pass


@pytest.mark.parametrize(
    "step", [Mine(8), T.Lambda(lambda image: image), lambda image: image], ids=["subclass", "Lambda", "function"]
)
def test_an_unknown_transform_is_not_cached(cache, loader_of, items, encoder, step):
    loader = loader_of(items)
    loader.dataset.transform.transforms.insert(0, step)
    assert not cache.look_up(loader, encoder, PLAIN).name


def test_what_else_is_not_cached(cache, loader_of, items, encoder):
    loader = loader_of(items)
    assert cache.look_up(loader, encoder, PLAIN).name
    encoder[0].bias.requires_grad_()
    assert not cache.look_up(loader, encoder, PLAIN).name, "it is trained"
    encoder.requires_grad_(False)
    handle = encoder[2].register_forward_hook(lambda *_: None)
    assert not cache.look_up(loader, encoder, PLAIN).name, "something else may change it"
    handle.remove()
    os.remove(items[3].impath)
    assert not cache.look_up(loader, encoder, PLAIN).name, "the loader raises an error with advice"


# ------------------------------------------------------------------ files


def test_a_damaged_file_is_encoded_again(cache, loader_of, items, encoder, capsys):
    loader = loader_of(items)
    features, *_ = encode_pass(cache, loader, encoder)
    (path,) = files_of(cache)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[random.randrange(len(whole))] ^= 1 << random.randrange(8)
    encode_pass(cache, loader_of(items[1:]), encoder)
    (other,) = set(files_of(cache)) - {path}
    for content in (whole[: random.randrange(len(whole))], b"", flipped, other.read_bytes(), whole + b"0"):
        path.write_bytes(content)
        capsys.readouterr()
        again, _, stored = encode_pass(cache, loader, encoder)
        assert not stored and torch.equal(again, features) and "encoded again" in capsys.readouterr().out
        assert encode_pass(cache, loader, encoder)[2], "it is whole again"


def test_a_folder_that_cannot_be_written(loader_of, items, encoder, tmp_path, capsys):
    (tmp_path / "file").touch()
    cache, loader = FeatureCache(str(tmp_path / "file" / "features"), 1.0), loader_of(items)
    expected = torch.cat([encoder(batch["img"]) for batch in loader])
    features, _, stored = encode_pass(cache, loader, encoder)
    assert torch.equal(features, expected) and not stored and "not kept in" in capsys.readouterr().out


def test_the_folder_is_bounded(cache, loader_of, items, encoder, capsys):
    loaders = [loader_of(items[k:] + items[:k]) for k in range(5)]
    encode_pass(cache, loaders[0], encoder)
    size = files_of(cache)[0].stat().st_size
    mine = Path(cache.folder, "mine.features")
    mine.write_bytes(bytes(10 * size))
    small = FeatureCache(cache.folder, (3 * size + 1) / 2**30)
    for k, loader in enumerate(loaders):
        encode_pass(small, loader, encoder)
        if k:
            assert encode_pass(small, loaders[0], encoder)[2], "it was used each time"
        assert sum(path.stat().st_size for path in files_of(cache) if path != mine) <= 3 * size + 1
    assert len(files_of(cache)) == 3 + 1 and mine.exists()
    assert not encode_pass(small, loaders[2], encoder)[2], "it was not used for the longest time"
    tiny = FeatureCache(cache.folder, (size - 1) / 2**30)
    shutil.rmtree(cache.folder)
    encode_pass(tiny, loaders[0], encoder)
    assert not Path(cache.folder).exists() and "they exceed" in capsys.readouterr().out


def use_at_once(cache, loaders, encoder, expected, seed):
    draw = random.Random(seed)
    for k in draw.choices(range(len(loaders)), k=40):
        assert torch.equal(encode_pass(cache, loaders[k], encoder)[0], expected[k])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system does not fork")
def test_processes_at_once(cache, loader_of, items, encoder):
    loaders = [loader_of(items[k:] + items[:k]) for k in range(4)]
    expected = [torch.cat([encoder(batch["img"]) for batch in loader]) for loader in loaders]
    encode_pass(cache, loaders[0], encoder)
    size = files_of(cache)[0].stat().st_size
    small, fork = FeatureCache(cache.folder, 2.5 * size / 2**30), multiprocessing.get_context("fork")
    seeds = [random.randrange(2**31) for _ in range(3)]
    processes = [fork.Process(target=use_at_once, args=(small, loaders, encoder, expected, seed)) for seed in seeds]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 3
    assert len(files_of(cache)) <= 2 and not [path for path in files_of(cache) if path.suffix == ".tmp"]


# ------------------------------------------------------------------ runs


@pytest.fixture
def encoded_images(monkeypatch):
    """A list that grows by the number of images at each run of CLIP's image encoder."""
    sizes, tokens = [], trainers.shared.encoders.ImageEncoder.tokens

    def counted(self, image, *args, **kwargs):
        sizes.append(len(image))
        return tokens(self, image, *args, **kwargs)

    monkeypatch.setattr("trainers.shared.encoders.ImageEncoder.tokens", counted)
    return sizes


VOLATILE = {"seconds", "peak_memory_mib", "config", "model_dir"}


@pytest.mark.parametrize("name", ["ZeroshotCLIP", "GDA", "TipAdapter", "LPpp", "LinearProbe", "CoOp"])
def test_runs_have_the_same_results(pictures, tmp_path, encoded_images, name):
    words = ["--root", pictures, "--trainer", name, "DATASET.NUM_SHOTS", 2, "USE_CUDA", False]
    if name in ("LPpp", "LinearProbe", "CoOp"):
        words += ["OPTIM.MAX_EPOCH", 2]
    if name == "LinearProbe":
        words += ["TRAINER.ADAPTER.PASSES", 2]
    results, states, counts = [], [], []
    for out in ("none", "first", "second"):
        encoded_images.clear()
        opts = [] if out == "none" else ["DATASET.FEATURE_CACHE", tmp_path / "features"]
        figures = run(parse([str(word) for word in ["--output-dir", tmp_path / out, *words, *opts]]))
        results.append({key: value for key, value in figures.items() if key not in VOLATILE})
        counts.append(sum(encoded_images))
        checkpoints = [torch.load(path, weights_only=False) for path in (tmp_path / out).rglob("model.pth.tar-*")]
        states.append([(checkpoint["state_dict"], checkpoint["rng"]) for checkpoint in checkpoints])
    assert results[0] == results[1] == results[2] and "accuracy" in results[0]
    assert same(states[0], states[1]) and same(states[0], states[2])
    assert counts[0] == counts[1] > counts[2]
    assert bool(counts[2]) == (name == "CoOp"), "CoOp encodes its training images in random batches"


def same(one, other):
    """Return whether two nested containers of tensors are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(np.all(one == other))


def test_models_that_take_features_give_the_same_scores(make_trainer):
    """Of each method: those that take no features get images also with a cache."""
    for name in METHODS:
        trainer = make_trainer("DATASET.FEATURE_CACHE", "unused", trainer=name, out=name)
        batch = next(iter(trainer.test_loader))
        if not trainer.model.takes_features or batch["img"].dim() == 5:
            continue
        trainer.set_model_mode("eval")
        with torch.no_grad():
            scores = [trainer.model_inference(x) for x in (batch["img"], trainer.encode_batch(batch))]
        assert torch.equal(*scores), name


@pytest.mark.parametrize("hook", ["model_inference", "parse_batch_test", "frozen_features"])
def test_methods_with_a_way_of_their_own_see_images(make_trainer, monkeypatch, tmp_path, hook):
    """Of a method of another file, with one more hook overridden."""
    base = TRAINER_REGISTRY.get("ZeroshotCLIP")
    shapes = []

    def overridden(self, value):
        shapes.append((value["img"] if isinstance(value, dict) else value).shape[1:])
        return getattr(super(owner, self), hook)(value)

    if hook == "frozen_features":
        owner = type("Own", (ClipClassifier,), {hook: overridden})
        build = lambda self, clip, names: owner(clip, names, ["a {}."])  # noqa: E731
        monkeypatch.setattr(base, "build_classifier", build)
    else:
        owner = type("Own", (base,), {hook: overridden})
        monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "ZeroshotCLIP", owner)
        monkeypatch.setattr(owner, "node_name", "ZEROSHOTCLIP")
    for _ in range(2):
        make_trainer("DATASET.FEATURE_CACHE", tmp_path / "features", trainer="ZeroshotCLIP").test()
    assert shapes and set(shapes) == {(3, 32, 32)}


def test_a_training_has_the_seconds_of_its_passes(make_trainer, tmp_path):
    seconds = []
    for out in ("first", "second"):
        options = ["TRAINER.GDA.AUGMENT_EPOCH", 2, "DATASET.FEATURE_CACHE", tmp_path / "features"]
        trainer = make_trainer(*options, trainer="GDA", out=out)
        for path in (tmp_path / "features").glob("*"):  # as if the passes had taken an hour each
            name = path.stem
            encoded = trainer.feature_cache.read(name)
            trainer.feature_cache.write(name, type(encoded)(encoded.features, 3600.0))
        trainer.train()
        seconds.append(trainer.train_seconds)
    assert seconds[0] < 3600 and 3 * 3600 < seconds[1] < 4 * 3600, "two passes and val, not the test"


# ------------------------------------------------------------------ settings


def test_settings_without_effect(make_cfg, tmp_path, one_line):
    with pytest.raises(ValueError, match="no effect without a folder") as error:
        make_cfg("DATASET.FEATURE_CACHE_GIB", 4.0)
    one_line(error)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="must be a folder") as error:
        make_cfg("DATASET.FEATURE_CACHE", tmp_path / "file")
    one_line(error)


def test_several_processes_are_refused(make_trainer, monkeypatch, one_line):
    monkeypatch.setattr("trainers.base.size", lambda: 2)
    with pytest.raises(ValueError, match="one process") as error:
        make_trainer("DATASET.FEATURE_CACHE", "features", trainer="GDA")
    one_line(error)


def test_the_folder_is_no_setting_of_a_model(make_cfg, tmp_path):
    opts = ["DATASET.FEATURE_CACHE", "elsewhere", "DATASET.FEATURE_CACHE_GIB", 1.0]
    cfg = make_cfg(*opts, trainer="GDA")
    Path(cfg.OUTPUT_DIR).mkdir()
    Path(cfg.OUTPUT_DIR, "config.yaml").write_text(cfg.dump())
    check_same_run(make_cfg(trainer="GDA"))
    words = ["--eval-only", "--model-dir", cfg.OUTPUT_DIR, "--output-dir", str(tmp_path / "eval")]
    assert setup_cfg(parse(words)).DATASET.FEATURE_CACHE == ""
    assert setup_cfg(parse([*words, "DATASET.FEATURE_CACHE", "here"])).DATASET.FEATURE_CACHE == "here"


def test_a_benchmark_has_a_folder(tmp_path, monkeypatch):
    args = parse_arguments(["--output-dir", str(tmp_path)])
    pair = ("DATASET.FEATURE_CACHE", str(tmp_path / "features"))
    assert feature_cache_option(args) == pair
    assert feature_cache_option(parse_arguments(["DATASET.FEATURE_CACHE", ""])) == ()
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "Foreign", type("Foreign", (), {}))
    assert options_by_trainer(pair, ["GDA", "Foreign"]) == {"GDA": pair, "Foreign": ()}
    (tmp_path / "features").symlink_to(tmp_path.parent)
    with pytest.raises(ValueError, match="behind a link"):
        feature_cache_option(args)
