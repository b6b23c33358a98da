"""The parts of the engine, each against values worked out by hand or by NumPy."""

import io
import json
import math
import os
import platform
import random
import re
import sys
import time
import warnings

import numpy as np
import PIL
import pytest
import torch
import torch.nn as nn
from PIL import Image
from sklearn.metrics import confusion_matrix, f1_score
from tqdm import tqdm

from dassl.config import clean_cfg, get_cfg_default, merge_config
from dassl.evaluation import EVALUATOR_REGISTRY, build_evaluator
from dassl.metrics import compute_accuracy, compute_distance_matrix
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    AverageMeter,
    Logger,
    MetricMeter,
    Registry,
    atomic_write,
    check_availability,
    check_isfile,
    collect_env_info,
    count_num_param,
    download_url,
    get_most_similar_str_to_a_from_b,
    listdir_nohidden,
    load_checkpoint,
    load_pretrained_weights,
    mkdir_if_missing,
    open_all_layers,
    open_specified_layers,
    read_image,
    read_json,
    resume_from_checkpoint,
    save_checkpoint,
    set_random_seed,
    setup_logger,
    tolist_if_not,
    write_json,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.backbone = nn.Linear(3, 4)
        self.classifier = nn.Linear(4, 2)


def one_line(error):
    """The message of a caught exception, which must be one line."""
    message = str(error.value)
    assert message and "\n" not in message, message
    return message


# ---------------------------------------------------------------- schedules


def optim_cfg(**keys):
    cfg = get_cfg_default().OPTIM
    cfg.NAME, cfg.LR, cfg.WEIGHT_DECAY = "sgd", 1.0, 0.0
    for key, value in keys.items():
        setattr(cfg, key, value)
    return cfg


def build_schedule(cfg, lrs=(1.0,)):
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs]
    optimizer = build_optimizer(groups, cfg)
    return optimizer, build_lr_scheduler(optimizer, cfg)


def run(optimizer, scheduler, epochs):
    """Learning rates of `epochs` epochs, one list a parameter group; no warning may be given."""
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(epochs):
            rates.append([g["lr"] for g in optimizer.param_groups])
            assert scheduler.get_last_lr() == rates[-1]
            optimizer.step()
            scheduler.step()
    return rates


C = {"WARMUP_TYPE": "constant", "WARMUP_CONS_LR": 0.125}
L = {"WARMUP_TYPE": "linear", "WARMUP_MIN_LR": 0.01}
STEP = {"LR_SCHEDULER": "single_step", "STEPSIZE": (2,), "GAMMA": 0.5}
MULTI = {"LR_SCHEDULER": "multi_step", "STEPSIZE": (2, 5), "GAMMA": 0.5}
COS = {"LR_SCHEDULER": "cosine", "MAX_EPOCH": 4}
R8 = math.sqrt(0.125)  # cos(pi / 4) / 2
SCHEDULES = [
    (STEP, 0, True, [1, 1, 0.5, 0.5, 0.25]),
    (STEP | {"STEPSIZE": (-1,), "MAX_EPOCH": 3}, 0, True, [1, 1, 1, 0.5]),
    (MULTI, 0, True, [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]),
    (COS, 0, True, [1, 0.5 + R8, 0.5, 0.5 - R8, 0]),
    (STEP | C, 3, True, [0.125, 0.125, 0.125, 1, 1, 0.5, 0.5, 0.25]),
    (STEP | C, 3, False, [0.125, 0.125, 0.125, 1, 0.5, 0.5, 0.25, 0.25]),
    (MULTI | C, 3, True, [0.125, 0.125, 0.125, 1, 1, 0.5, 0.5, 0.5, 0.25]),
    (MULTI | C, 3, False, [0.125, 0.125, 0.125, 1, 1, 0.5, 0.5]),
    (COS | C, 2, True, [0.125, 0.125, 1, 0.5 + R8, 0.5]),
    (COS | C, 2, False, [0.125, 0.125, 1, 1 - 2 * R8, 0]),
    (STEP | L, 4, True, [0.01, 0.25, 0.5, 0.75, 1, 1, 0.5, 0.5]),
    (STEP | L, 3, False, [0.01, 1 / 3, 2 / 3, 1, 0.5, 0.5, 0.25]),
    (MULTI | L, 4, True, [0.01, 0.25, 0.5, 0.75, 1, 1, 0.5, 0.5, 0.5, 0.25]),
    (MULTI | L, 4, False, [0.01, 0.25, 0.5, 0.75, 1, 0.5, 0.5]),
    (COS | L, 1, True, [0.01, 1, 0.5 + R8, 0.5, 0.5 - R8]),
    (COS | L, 1, False, [0.01, 1, 0.5 / (0.5 + R8), (0.5 - R8) / (0.5 + R8), 0]),
]


@pytest.mark.parametrize(("keys", "warmup", "recount", "expected"), SCHEDULES)
def test_schedule_values_and_exact_resume(keys, warmup, recount, expected, tmp_path):
    cfg = optim_cfg(**keys, WARMUP_EPOCH=warmup, WARMUP_RECOUNT=recount)
    lrs = (1.0, 0.3)
    whole = run(*build_schedule(cfg, lrs), len(expected))
    assert [r[0] for r in whole] == pytest.approx(expected, rel=1e-12, abs=1e-12)
    for t, (first, second) in enumerate(whole):  # every group has its own rate, warm-up constants aside
        same = t < warmup and (cfg.WARMUP_TYPE == "constant" or t == 0)
        assert second == pytest.approx(first if same else 0.3 * first, rel=1e-12, abs=1e-12)

    for stop in range(1, len(expected)):
        optimizer, scheduler = build_schedule(cfg, lrs)
        run(optimizer, scheduler, stop)
        torch.save({"o": optimizer.state_dict(), "s": scheduler.state_dict()}, tmp_path / "s.pt")
        state = torch.load(tmp_path / "s.pt", weights_only=True)
        optimizer, scheduler = build_schedule(cfg, lrs)
        optimizer.load_state_dict(state["o"])
        scheduler.load_state_dict(state["s"])
        assert run(optimizer, scheduler, len(expected) - stop) == whole[stop:]


def test_schedule_state_is_plain():
    def check(x):
        assert type(x) in (dict, list, int, float, bool, str, type(None)), type(x)
        for item in [*x, *x.values()] if isinstance(x, dict) else x if isinstance(x, list) else ():
            check(item)

    for keys in (STEP, MULTI, COS):
        for warmup in (0, 2):
            check(build_schedule(optim_cfg(**keys, WARMUP_EPOCH=warmup))[1].state_dict())


def test_coop_schedule():
    """CoOp's own: SGD 0.002, cosine over 50 epochs, one constant epoch at 1e-5."""
    keys = {"LR_SCHEDULER": "cosine", "MAX_EPOCH": 50, "WARMUP_TYPE": "constant", "WARMUP_EPOCH": 1}
    rates = run(*build_schedule(optim_cfg(**keys), (0.002,)), 50)
    expected = [1e-5] + [0.001 * (1 + math.cos(math.pi * t / 50)) for t in range(49)]
    assert [r[0] for r in rates] == pytest.approx(expected, rel=1e-9)


def test_schedule_errors():
    with pytest.raises(ValueError, match='"cosin".*"cosine"'):
        build_schedule(optim_cfg(LR_SCHEDULER="cosin"))
    with pytest.raises(ValueError, match='"constnt".*"constant"'):
        build_schedule(optim_cfg(WARMUP_TYPE="constnt", WARMUP_EPOCH=1))
    with pytest.raises(ValueError, match="STEPSIZE"):
        build_schedule(optim_cfg(STEPSIZE=(1.5,)))
    with pytest.raises(ValueError, match="STEPSIZE"):
        build_schedule(optim_cfg(LR_SCHEDULER="multi_step", STEPSIZE=3))


# ---------------------------------------------------------------- optimizers


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adam", "Adam"),
        ("amsgrad", "Adam"),
        ("sgd", "SGD"),
        ("rmsprop", "RMSprop"),
        ("radam", "RAdam"),
        ("adamw", "AdamW"),
    ],
)
def test_optimizer_by_name_gets_trainable_parameters_only(name, kind):
    cfg = optim_cfg(NAME=name, LR=0.01, WEIGHT_DECAY=0.02, MOMENTUM=0.8, ADAM_BETA1=0.7, ADAM_BETA2=0.95)
    net = Net()
    net.backbone.requires_grad_(False)
    wanted = [net.scale, net.classifier.weight, net.classifier.bias]
    for model in (net, net.parameters(), list(net.parameters()), [{"params": net.parameters()}]):
        optimizer = build_optimizer(model, cfg)
        (group,) = optimizer.param_groups
        assert type(optimizer) is getattr(torch.optim, kind)
        assert [id(p) for p in group["params"]] == [id(p) for p in wanted]
        assert (group["lr"], group["weight_decay"]) == (0.01, 0.02)
        assert group.get("momentum", 0.8) == 0.8 and group.get("betas", (0.7, 0.95)) == (0.7, 0.95)
        assert group.get("amsgrad", False) == (name == "amsgrad")


def test_radam_decouples_weight_decay():
    p = nn.Parameter(torch.tensor([2.0]))
    optimizer = build_optimizer([p], optim_cfg(NAME="radam", LR=0.1, WEIGHT_DECAY=0.5))
    for _ in range(2):  # no adaptive term yet: bias-corrected momentum, which is the gradient
        p.grad = torch.tensor([3.0])
        optimizer.step()
    # p1 = 2 * .95 - .3 = 1.6, p2 = 1.6 * .95 - .3
    assert p.item() == pytest.approx(1.22, rel=1e-6)


def test_sgd_first_steps_by_hand():
    p = nn.Parameter(torch.tensor([1.0]))
    optimizer = build_optimizer([p], optim_cfg(LR=0.5, MOMENTUM=0.5, WEIGHT_DECAY=0.25))
    for _ in range(2):
        p.grad = torch.tensor([2.0])
        optimizer.step()
    # v1 = 2 + .25 = 2.25, p1 = 1 - 1.125 = -.125; v2 = 1.125 + 2 - .03125 = 3.09375, p2 = -.125 - 1.546875
    assert p.item() == pytest.approx(-1.671875, rel=1e-6)


def test_staged_lr_and_param_groups():
    net = Net()
    net.classifier.bias.requires_grad_(False)
    cfg = optim_cfg(LR=0.1, STAGED_LR=True, NEW_LAYERS="classifier", BASE_LR_MULT=0.01)
    base, new = build_optimizer(nn.DataParallel(net), cfg).param_groups
    assert base["lr"] == pytest.approx(0.001) and new["lr"] == 0.1
    assert [id(p) for p in base["params"]] == [id(net.scale), id(net.backbone.weight), id(net.backbone.bias)]
    assert [id(p) for p in new["params"]] == [id(net.classifier.weight)]
    with pytest.warns(UserWarning, match="STAGED_LR"):
        groups = [{"params": net.scale, "lr": 0.7}]
        (group,) = build_optimizer(net, cfg, param_groups=groups).param_groups
    assert group["lr"] == 0.7 and group["params"] == [net.scale]
    with pytest.raises(TypeError, match="STAGED_LR"):
        build_optimizer([net.scale], cfg)


def test_optimizer_errors():
    with pytest.raises(ValueError, match='"adamm".*"adam"'):
        build_optimizer(Net(), optim_cfg(NAME="adamm"))
    with pytest.raises(ValueError, match="Nothing to train"):
        build_optimizer(Net().requires_grad_(False), optim_cfg())


# ---------------------------------------------------------------- files


def test_json_round_trip_and_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_json({"x": [1, 2.5, "é"]}, str(path))
    assert read_json(str(path)) == {"x": [1, 2.5, "é"]}
    with pytest.raises(TypeError):
        write_json({"x": object()}, str(path))
    for failure in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(failure), atomic_write(str(path)) as f:
            f.write(b"half")
            f.flush()
            assert read_json(str(path)) == {"x": [1, 2.5, "é"]}
            raise failure
    assert read_json(str(path)) == {"x": [1, 2.5, "é"]}
    assert os.listdir(path.parent) == ["b.json"]


def test_atomic_write_keeps_links_and_common_permissions(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_write(str(tmp_path / "link")) as f:
        f.write(b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "real").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_small_file_helpers(tmp_path):
    mkdir_if_missing(str(tmp_path / "x" / "y"))
    mkdir_if_missing(str(tmp_path / "x" / "y"))
    mkdir_if_missing("")
    for name in ("b", "a", ".hidden"):
        (tmp_path / "x" / name).touch()
    assert listdir_nohidden(str(tmp_path / "x"), sort=True) == ["a", "b", "y"]
    with pytest.raises(FileExistsError):
        mkdir_if_missing(str(tmp_path / "x" / "a"))
    assert check_isfile(str(tmp_path / "x" / "a"))
    with pytest.warns(UserWarning, match="No file"):
        assert not check_isfile(str(tmp_path / "x"))


def test_download(tmp_path):
    source, dst = tmp_path / "source.bin", tmp_path / "new" / "dst.bin"
    source.write_bytes(os.urandom(3_000_000))
    download_url(source.as_uri(), str(dst))
    assert dst.read_bytes() == source.read_bytes()
    with pytest.raises(OSError, match="by hand") as error:
        download_url((tmp_path / "missing").as_uri(), str(dst))
    assert "missing" in one_line(error)
    assert dst.read_bytes() == source.read_bytes() and os.listdir(dst.parent) == ["dst.bin"]


def test_download_that_stops_early(tmp_path, monkeypatch):
    class Response(io.BytesIO):
        headers = {"Content-Length": "10"}

    monkeypatch.setattr("urllib.request.urlopen", lambda request, timeout: Response(b"four"))
    with pytest.raises(OSError, match="4 of 10 bytes"):
        download_url("http://x/y", str(tmp_path / "y"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
def test_read_image(mode, tmp_path):
    pixels = np.random.default_rng().integers(0, 256, (9, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    got = read_image(str(path))
    assert got.mode == "RGB" and got.size == (7, 9)
    path.unlink()  # fully decoded: the file is needed no more
    assert np.array_equal(np.asarray(got), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_read_image_errors(suffix, tmp_path):
    path = tmp_path / f"x.{suffix}"
    with pytest.raises(FileNotFoundError, match="DATASET.ROOT") as error:
        read_image(str(path))
    assert str(path) in one_line(error)
    pixels = np.random.default_rng().integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:size])
        with pytest.raises(OSError, match="intact copy") as error:
            read_image(str(path))
        assert str(path) in one_line(error)


# ---------------------------------------------------------------- names, seeds, meters


def test_names():
    assert get_most_similar_str_to_a_from_b("orthcr", ["CoOp", "OrthCR", "MaPLe"]) == "OrthCR"
    assert get_most_similar_str_to_a_from_b("x", []) is None
    check_availability("a", ["a", "b"])
    with pytest.raises(ValueError) as error:
        check_availability("CoOpp", ["MaPLe", "CoOp"])
    assert one_line(error) == '"CoOpp" is not available, do you mean "CoOp"? Available: MaPLe, CoOp'
    assert tolist_if_not(3) == [3] and tolist_if_not([3]) == [3] and tolist_if_not((1,)) == [(1,)]


def test_registry():
    registry = Registry("THING")

    @registry.register()
    class A:
        pass

    def b():
        pass

    registry.register(b)
    assert registry.get("A") is A and registry.get("b") is b and registry.registered_names() == ["A", "b"]
    with pytest.raises(KeyError, match="already registered in the THING"):
        registry.register(b)
    other = type("A", (), {})
    registry.register(other, force=True)
    assert registry.get("A") is other
    with pytest.raises(KeyError, match="THING"):
        registry.get("c")


def test_seed():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    set_random_seed(7)
    first = draw()
    assert draw() != first
    set_random_seed(7)
    assert draw() == first


def test_meters():
    meter = AverageMeter()
    meter.update(torch.tensor([1.0]), n=3)
    meter.update(5)
    assert (meter.val, meter.avg, meter.sum, meter.count) == (5, 2, 8, 4)
    ema = AverageMeter(ema=True)
    ema.update(1.0)
    ema.update(2.0)
    assert ema.avg == pytest.approx(0.29)

    meters = MetricMeter()
    meters.update(None)
    meters.update({"loss": 0.3456, "acc": torch.tensor([65.2468])})
    meters.update({"loss": 0.1234, "acc": 75})
    assert str(meters) == "loss 0.1234 (0.2345) acc 75.0000 (70.1234)"
    with pytest.raises(TypeError):
        meters.update([1])


def test_collect_env_info():
    info = collect_env_info()
    for version in (torch.__version__, np.__version__, platform.python_version(), PIL.__version__):
        assert version in info


# ---------------------------------------------------------------- logger


class Screen(io.StringIO):
    """A stream; `shown` is what it and the other one, on the same terminal, have written."""

    def __init__(self, shown):
        super().__init__()
        self.shown = shown

    def write(self, text):
        self.shown.append(text)
        return super().write(text)


def new_console(monkeypatch):
    """Make sys.stdout and sys.stderr two Screens of one terminal; return the former."""
    shown = []
    monkeypatch.setattr(sys, "stdout", Screen(shown))
    monkeypatch.setattr(sys, "stderr", Screen(shown))
    return sys.stdout


def test_logger_is_undone_and_never_nested(tmp_path, monkeypatch):
    out = new_console(monkeypatch)
    setup_logger(None)
    assert sys.stdout is out
    setup_logger(str(tmp_path / "run"))
    print("one")
    assert (tmp_path / "run" / "log.txt").read_text() == "one\n"  # at once, without a flush
    logger = sys.stdout
    assert logger.isatty() is False and logger.encoding == out.encoding
    with pytest.raises(io.UnsupportedOperation):  # the buffer's own answer
        logger.fileno()

    monkeypatch.setattr(time, "strftime", lambda fmt: "-stamp")
    for _ in range(2):  # even twice within the same second nothing is lost
        setup_logger(str(tmp_path / "run"))
        assert isinstance(sys.stdout, Logger) and sys.stdout.console is out
        print("two")
    sys.stdout.close()
    assert sys.stdout is out and not out.closed
    print("three")
    logger.write("")  # a reference kept by someone else still works
    setup_logger(str(tmp_path / "own.log"))
    print("four")
    sys.stdout.close()

    assert out.getvalue() == "one\ntwo\ntwo\nthree\nfour\n"
    assert sorted(os.listdir(tmp_path / "run")) == ["log.txt", "log.txt-stamp"]
    assert (tmp_path / "run" / "log.txt").read_text() == "one\n"
    assert (tmp_path / "run" / "log.txt-stamp").read_text() == "two\ntwo\n"
    assert (tmp_path / "own.log").read_text() == "four\n"


@pytest.mark.parametrize(("stream", "bars"), [("stderr", 2), ("stderr", 1), ("stdout", 1)])
def test_logger_with_bars(stream, bars, tmp_path, monkeypatch):
    out = new_console(monkeypatch)
    with Logger(str(tmp_path / "log.txt")) as sys.stdout:
        alive = [tqdm(total=3, file=getattr(sys, stream), desc=f"bar{i}") for i in range(bars)]
        print("a", "line")
        after = "".join(out.shown).rpartition("a line\n")[2]
        assert all(f"bar{i}" in after for i in range(bars))  # drawn again below the line
        print("half ", end="")
        print("done")
        for bar in alive[::-1]:
            bar.close()
        print("the end")
    assert sys.stdout is out
    shown = "".join(out.shown)
    for line in ("a line", "half done", "the end"):
        assert re.search(rf"([\r\n]|\x1b\[A){line}\n", shown)  # whole, and from the start of a line
    log = (tmp_path / "log.txt").read_text().split("\n")
    assert [x for x in log if x] == ["a line", "half done", "the end"]


def test_logger_flushes_half_a_line(tmp_path, monkeypatch):
    out = new_console(monkeypatch)
    with Logger(str(tmp_path / "log.txt")) as sys.stdout, tqdm(total=1):
        print("half", end="", flush=True)
        assert out.getvalue() == (tmp_path / "log.txt").read_text() == "half"
        print(" more", end="")
    assert (tmp_path / "log.txt").read_text() == "half more"


def test_logger_on_a_path_that_cannot_be_written(tmp_path, monkeypatch):
    out = new_console(monkeypatch)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="choose an output directory") as error:
        setup_logger(str(tmp_path / "file" / "run"))
    assert str(tmp_path) in one_line(error)
    assert sys.stdout is out


# ---------------------------------------------------------------- checkpoints


def training(seed):
    torch.manual_seed(seed)
    net = Net()
    cfg = optim_cfg(NAME="adam", LR=0.01, LR_SCHEDULER="cosine", WARMUP_EPOCH=2, WARMUP_TYPE="constant")
    optimizer = build_optimizer(net, cfg)
    return net, optimizer, build_lr_scheduler(optimizer, cfg)


def train_epoch(net, optimizer, scheduler):
    x = torch.linspace(-1, 1, 15).view(5, 3)
    optimizer.zero_grad()
    (net.classifier(net.backbone(x).tanh()) * net.scale).square().sum().backward()
    optimizer.step()
    scheduler.step()


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_resume_is_exact(stop, tmp_path):
    whole = training(0)
    for _ in range(6):
        train_epoch(*whole)

    first = training(0)
    for _ in range(stop):
        train_epoch(*first)
    net, optimizer, scheduler = first
    state = {"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}, "epoch": stop}
    state |= {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    state["val_result"] = np.float64(81.25)
    keys = list(state["state_dict"])
    save_checkpoint(state, str(tmp_path), is_best=True)
    assert list(state["state_dict"]) == keys  # the caller's dict is left alone
    best, newest = "model-best.pth.tar", f"model.pth.tar-{stop}"
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", best, newest]
    assert (tmp_path / "checkpoint").read_text() == f"{newest}\n"
    assert (tmp_path / best).read_bytes() == (tmp_path / newest).read_bytes()
    assert load_checkpoint(str(tmp_path / newest))["val_result"] == 81.25

    second = training(1)
    assert resume_from_checkpoint(str(tmp_path), *second) == stop
    for _ in range(6 - stop):
        train_epoch(*second)
    for a, b in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_failed_save_keeps_the_old_checkpoint(tmp_path):
    state = {"state_dict": Net().state_dict(), "epoch": 3}
    save_checkpoint(state, str(tmp_path), model_name="m.pth")
    with pytest.raises(Exception, match="lambda|pickle"):
        save_checkpoint(state | {"bad": lambda: 0}, str(tmp_path), model_name="m.pth")
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "m.pth"]
    assert load_checkpoint(str(tmp_path / "m.pth"))["epoch"] == 3


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_checkpoint_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError):
        load_checkpoint(None)
    with pytest.raises(FileNotFoundError) as error:
        load_checkpoint("missing.pth")
    assert "missing.pth" in one_line(error)
    with pytest.raises(FileNotFoundError) as error:
        resume_from_checkpoint("nowhere", Net())
    assert "nowhere" in one_line(error)

    torch.save({"state_dict": Net().state_dict(), "epoch": 1}, "whole")
    with open("whole", "rb") as f:
        whole = f.read()
    bad = {"half": whole[: len(whole) // 2], "cut": whole[:-30], "empty": b"", "text": b"hello, world\n" * 50}
    for name, content in bad.items():
        with open(name, "wb") as f:
            f.write(content)
        with pytest.raises(ValueError, match="not a checkpoint or is cut off") as error:
            load_checkpoint(name)
        assert name in one_line(error)

    torch.save([1, 2], "list")
    with pytest.raises(ValueError, match="list") as error:
        load_checkpoint("list")
    one_line(error)
    for legacy in (False, True):
        for thing in (Evil(), nn.Linear(2, 2)):
            torch.save({"x": thing}, "pickled", _use_new_zipfile_serialization=not legacy)
            with pytest.raises(ValueError, match="pickled objects") as error:
                load_checkpoint("pickled")
            one_line(error)
    assert not os.path.exists("evil")


@pytest.mark.parametrize("wrapped", [True, False])
def test_load_pretrained_weights(wrapped, tmp_path, capsys):
    net, source = Net(), Net()
    weights = {f"module.{k}": v for k, v in source.state_dict().items()}
    weights["module.classifier.weight"] = torch.zeros(5, 4)
    weights["extra"] = torch.zeros(1)
    path = str(tmp_path / "w.pth")
    torch.save({"state_dict": weights, "epoch": 4} if wrapped else weights, path)
    own = net.classifier.weight.clone()
    load_pretrained_weights(nn.DataParallel(net), path)
    assert torch.equal(net.backbone.weight, source.backbone.weight)
    assert torch.equal(net.classifier.bias, source.classifier.bias)
    assert torch.equal(net.classifier.weight, own)
    assert "['classifier.weight', 'extra']" in capsys.readouterr().out
    torch.save({"other": torch.zeros(1)}, path)
    with pytest.warns(UserWarning, match="nothing is loaded"):
        load_pretrained_weights(net, path)


def test_layers_and_counting():
    net = Net()
    assert count_num_param(net) == 1 + 16 + 10
    assert count_num_param(params=net.backbone.parameters()) == 16
    assert count_num_param(params=[{"params": net.classifier.parameters()}, {"params": net.scale}]) == 11
    with pytest.raises(ValueError):
        count_num_param()
    open_specified_layers(nn.DataParallel(net), "classifier")
    assert net.classifier.training and not net.backbone.training
    assert net.classifier.weight.requires_grad and not net.backbone.weight.requires_grad
    with pytest.raises(ValueError, match='"head".*backbone, classifier'):
        open_specified_layers(net, ["head"])
    open_all_layers(net)
    assert net.backbone.training and all(p.requires_grad for p in net.parameters())


# ---------------------------------------------------------------- config


def trainer_cfg():
    cfg = get_cfg_default()
    cfg.TRAINER.ORTHCR = type(cfg)({"LAMBDA": 1.0, "PREC": "fp32", "ANY": None})
    return cfg


def test_config_is_fresh_and_can_be_cleaned():
    first = get_cfg_default()
    first.OPTIM.LR = 7.0
    first.INPUT.PIXEL_MEAN[0] = 7.0
    second = get_cfg_default()
    assert second.OPTIM.LR == 0.0003 and second.INPUT.PIXEL_MEAN[0] == 0.485
    assert (second.SEED, second.OPTIM.ADAM_BETA2, second.OPTIM.STEPSIZE) == (-1, 0.999, (-1,))
    cfg = trainer_cfg()
    cfg.TRAINER.COOP = type(cfg)({"N_CTX": 4})
    clean_cfg(cfg, "OrthCR")
    assert sorted(cfg.TRAINER) == ["NAME", "ORTHCR"]


def test_merge_file_then_options(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "OPTIM:\n  LR: 1e-5\n  MAX_EPOCH: 20\n  STEPSIZE: [5, 10]\nINPUT:\n  SIZE: (32, 48)\n"
        "  PIXEL_STD: (1, 2, 3)\nTRAINER:\n  ORTHCR:\n    LAMBDA: 4\nTEST:\n  # all commented out\n"
    )
    cfg = trainer_cfg()
    merge_config(cfg, path)
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.STEPSIZE) == (1e-5, 20, (5, 10))
    assert cfg.INPUT.SIZE == (32, 48) and cfg.INPUT.PIXEL_STD == [1, 2, 3]
    assert type(cfg.TRAINER.ORTHCR.LAMBDA) is float and cfg.TRAINER.ORTHCR.LAMBDA == 4.0
    opts = ["OPTIM.LR", "1", "OPTIM.STEPSIZE", "(7,)", "DATASET.NAME", "123", "OUTPUT_DIR", "a b"]
    merge_config(cfg, [*opts, "USE_CUDA", "False", "TRAINER.ORTHCR.ANY", "[1]", "SEED", 3])
    assert type(cfg.OPTIM.LR) is float and cfg.OPTIM.LR == 1 and cfg.OPTIM.STEPSIZE == (7,)
    assert (cfg.DATASET.NAME, cfg.OUTPUT_DIR, cfg.USE_CUDA, cfg.SEED) == ("123", "a b", False, 3)
    assert cfg.TRAINER.ORTHCR.ANY == [1]
    merge_config(cfg, [])
    (tmp_path / "empty.yaml").touch()
    merge_config(cfg, str(tmp_path / "empty.yaml"))


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("OPTIM.LRR", "OPTIM.LR"),
        ("TRAINER.ORTHCR.LAMDA", "TRAINER.ORTHCR.LAMBDA"),
        ("OPTIMM.MAX_EPOCH", "OPTIM.MAX_EPOCH"),
        ("optim.lr", "OPTIM.LR"),
        ("SEEDS", "SEED"),
        ("DATASET.NUM_SHOT", "DATASET.NUM_SHOTS"),
        ("SEED.X", "SEED"),
    ],
)
def test_unknown_keys_name_the_nearest(key, nearest, tmp_path):
    cfg = trainer_cfg()
    with pytest.raises(ValueError) as error:
        merge_config(cfg, ["SEED", "5", key, "1"])
    assert one_line(error) == f'Unknown config key "{key}" on the command line, do you mean "{nearest}"?'
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps({"SEED": 5} | nest(key)))
    with pytest.raises(ValueError) as error:
        merge_config(cfg, str(path))
    assert one_line(error) == f'Unknown config key "{key}" in "{path}", do you mean "{nearest}"?'
    assert cfg == trainer_cfg()  # nothing is merged by halves


def nest(key):
    tree = 1
    for name in reversed(key.split(".")):
        tree = {name: tree}
    return tree


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("OPTIM.LR", "fast", "float"),
        ("OPTIM.LR", "True", "float"),
        ("OPTIM.MAX_EPOCH", "1.5", "int"),
        ("USE_CUDA", "1", "bool"),
        ("INPUT.SIZE", "32", "tuple"),
        ("INPUT.PIXEL_MEAN", "grey", "list"),
    ],
)
def test_wrong_types(key, value, wanted):
    with pytest.raises(ValueError) as error:
        merge_config(get_cfg_default(), [key, value])
    assert key in one_line(error) and value in str(error.value) and f"type {wanted}," in str(error.value)


def test_other_config_errors(tmp_path):
    cfg = get_cfg_default()
    (tmp_path / "vit_b16.yaml").write_text("OPTIM:\n  LR: [1\nSEED: 2\n")
    (tmp_path / "rn50.yaml").write_text("- 1\n")
    (tmp_path / "prec.yaml").write_text("DATASET:\n  NAME: no\n")
    with pytest.raises(FileNotFoundError, match=r"vit_b6\.yaml.*vit_b16\.yaml") as error:
        merge_config(cfg, str(tmp_path / "vit_b6.yaml"))
    one_line(error)
    with pytest.raises(FileNotFoundError, match="folder does not exist") as error:
        merge_config(cfg, str(tmp_path / "no" / "x.yaml"))
    one_line(error)
    with pytest.raises(ValueError, match=r"vit_b16\.yaml.*line 3") as error:
        merge_config(cfg, str(tmp_path / "vit_b16.yaml"))
    one_line(error)
    with pytest.raises(ValueError, match=r"rn50\.yaml"):
        merge_config(cfg, str(tmp_path / "rn50.yaml"))
    with pytest.raises(ValueError, match="DATASET.NAME.*type str, got False"):
        merge_config(cfg, str(tmp_path / "prec.yaml"))
    with pytest.raises(ValueError, match="3 words: SEED 1 OPTIM.LR") as error:
        merge_config(cfg, ["SEED", "1", "OPTIM.LR"])
    one_line(error)
    with pytest.raises(ValueError, match='"OPTIM" on the command line is a section'):
        merge_config(cfg, ["OPTIM", "1"])
    assert cfg == get_cfg_default()
    cfg.freeze()
    with pytest.raises(AttributeError):
        merge_config(cfg, ["SEED", "1"])


def test_allow_new(tmp_path):
    cfg = get_cfg_default()
    path = tmp_path / "c.yaml"
    path.write_text("TRAINER:\n  COOP:\n    N_CTX: 16\n    DEEP:\n      W: (1, 2)\n  MAPLE:\nSEED: 2\n")
    with pytest.raises(ValueError, match="TRAINER.COOP.N_CTX"):
        merge_config(cfg, str(path), allow_new=("TRAINER.MAPLE",))
    merge_config(cfg, str(path), allow_new=("TRAINER.COOP", "TRAINER.MAPLE"))
    assert (cfg.TRAINER.COOP.N_CTX, cfg.TRAINER.COOP.DEEP.W, cfg.SEED) == (16, (1, 2), 2)
    with pytest.raises(ValueError, match="TRAINER.COOPX.A"):
        merge_config(cfg, ["TRAINER.COOPX.A", "1"], allow_new=("TRAINER.COOP",))
    with pytest.raises(ValueError, match="section"):
        merge_config(cfg, ["TRAINER.COOP", "1"], allow_new=("TRAINER.COOP",))


# ---------------------------------------------------------------- metrics


def test_compute_accuracy():
    rng = np.random.default_rng()
    scores, labels = rng.normal(size=(37, 9)), rng.integers(0, 9, 37)
    order = np.argsort(-scores, axis=1)
    got = compute_accuracy((torch.from_numpy(scores), None), torch.from_numpy(labels), topk=(1, 3, 9))
    for k, acc in zip((1, 3, 9), got, strict=True):
        expected = 100 * np.mean([label in row[:k] for label, row in zip(labels, order, strict=True)])
        assert acc.shape == (1,) and acc.dtype == torch.float32
        assert acc.item() == pytest.approx(expected, rel=1e-5)


def test_distances():
    rng = np.random.default_rng()
    a, b = rng.normal(size=(6, 5)), rng.normal(size=(4, 5))
    euclidean = ((a[:, None] - b[None]) ** 2).sum(-1)
    cosine = 1 - (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    np.testing.assert_allclose(compute_distance_matrix(x, y).numpy(), euclidean, rtol=1e-10)
    np.testing.assert_allclose(compute_distance_matrix(x, y, "cosine").numpy(), cosine, rtol=1e-9, atol=1e-12)
    assert compute_distance_matrix(1e3 * x.float(), 1e3 * x.float()).min() >= 0
    with pytest.raises(ValueError, match="choose euclidean or cosine"):
        compute_distance_matrix(x, y, "manhattan")
    with pytest.raises(ValueError, match="shapes"):
        compute_distance_matrix(x, y[:, :3])


# ---------------------------------------------------------------- evaluation


def eval_cfg(tmp_path, **keys):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    for key, value in keys.items():
        setattr(cfg.TEST, key, value)
    return cfg


def test_classification_by_hand(tmp_path, capsys):
    cfg = eval_cfg(tmp_path, PER_CLASS_RESULT=True, COMPUTE_CMAT=True)
    evaluator = build_evaluator(cfg, lab2cname={0: "cat", 1: "dog", 2: "emu", 3: "fox"})
    evaluator.process(torch.eye(4)[[3]], torch.tensor([0]))
    evaluator.reset()  # forgets that batch
    true = torch.tensor([0, 0, 0, 0, 2, 2, 3])
    pred = torch.tensor([0, 0, 0, 2, 2, 1, 3])
    evaluator.process(torch.eye(4)[pred[:3]], true[:3])
    evaluator.process(torch.eye(4)[pred[3:]], true[3:])
    results = evaluator.evaluate()
    # F1: cat 2*3/(4+3) = 6/7, emu 2*1/(2+2) = 1/2, fox 1; dog has no sample
    expected = {"accuracy": 500 / 7, "error_rate": 200 / 7, "macro_f1": 100 * (6 / 7 + 0.5 + 1) / 3}
    expected["perclass_accuracy"] = 75.0
    assert list(results) == list(expected) and all(type(v) is float for v in results.values())
    assert results == pytest.approx(expected, rel=1e-12)
    assert capsys.readouterr().out == (
        "Loading evaluator: Classification\n"
        "=> result\n* total: 7\n* correct: 5\n* accuracy: 71.4%\n* error: 28.6%\n* macro_f1: 78.6%\n"
        "=> per-class result\n"
        "* class: 0 (cat)\ttotal: 4\tcorrect: 3\tacc: 75.0%\n"
        "* class: 2 (emu)\ttotal: 2\tcorrect: 1\tacc: 50.0%\n"
        "* class: 3 (fox)\ttotal: 1\tcorrect: 1\tacc: 100.0%\n"
        "* average: 75.0%\n"
        f'Confusion matrix is saved to "{tmp_path}/cmat.pt"\n'
    )
    cmat = torch.load(tmp_path / "cmat.pt", weights_only=True)
    hand = [[0.75, 0, 0.25, 0], [0, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]]
    assert torch.equal(cmat, torch.tensor(hand, dtype=torch.float64))


def test_classification_against_scikit_learn(tmp_path, capsys):
    rng = np.random.default_rng()
    # Labels 5...29: not all of them occur, and some are predicted that never occur
    true, scores = rng.integers(5, 25, 3000), rng.normal(size=(3000, 30))
    scores[np.arange(3000), true] += 2
    pred = scores.argmax(1)
    evaluator = build_evaluator(eval_cfg(tmp_path, COMPUTE_CMAT=True))
    for i in range(0, 3000, 128):
        evaluator.process(torch.from_numpy(scores[i : i + 128]), torch.from_numpy(true[i : i + 128]))
    results = evaluator.evaluate()
    f1 = 100 * f1_score(true, pred, average="macro", labels=np.unique(true))
    assert results["macro_f1"] == pytest.approx(f1, rel=1e-10)
    assert results["accuracy"] == pytest.approx(100 * np.mean(true == pred), rel=1e-12)
    cmat = torch.load(tmp_path / "cmat.pt", weights_only=True)
    np.testing.assert_allclose(cmat.numpy(), confusion_matrix(true, pred, normalize="true"), rtol=1e-12)
    assert "* total: 3,000\n" in capsys.readouterr().out


def test_evaluator_errors(tmp_path):
    assert EVALUATOR_REGISTRY.registered_names() == ["Classification"]
    with pytest.raises(ValueError, match='"Clasification".*"Classification"'):
        build_evaluator(eval_cfg(tmp_path, EVALUATOR="Clasification"))
    with pytest.raises(ValueError, match="lab2cname"):
        build_evaluator(eval_cfg(tmp_path, PER_CLASS_RESULT=True))
    with pytest.raises(ValueError, match="no batch"):
        build_evaluator(eval_cfg(tmp_path)).evaluate()
