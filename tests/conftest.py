"""Shared fixtures: the embedded and random CLIPs, configs and trainers on small embedded data sets."""

import copy
import os
import sys
import threading
import warnings
from functools import cache
from itertools import chain, repeat
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # small tensors: threads cost more than they bring

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")

from clip import clip  # noqa: E402
from clip.model import CLIP  # noqa: E402

import trainers  # noqa: E402
from dassl.config import get_cfg_default, merge_config  # noqa: E402
from dassl.engine import TRAINER_REGISTRY, build_trainer  # noqa: E402
from dassl.utils import set_random_seed  # noqa: E402
from datasets.shapes import Shapes  # noqa: E402
from orthcr.run.config import setup_cfg  # noqa: E402
from orthcr.run.declarations import discover  # noqa: E402
from orthcr.run.flags import parse  # noqa: E402
from trainers.shared.backbones import load_clip  # noqa: E402

VOCABULARY = 49408


@pytest.fixture(scope="session", autouse=True)
def clips_without_random_weights():
    """A CLIP is read without the random weights that its class draws first: most of the time of reading it."""
    build_model, thread = clip.build_model, threading.local()

    def build(state_dict):
        thread.builds = True
        try:
            return build_model(state_dict)
        finally:
            thread.builds = False

    def unless_building(fill):
        return lambda tensor, *args, **kwargs: (
            tensor if getattr(thread, "builds", False) else fill(tensor, *args, **kwargs)
        )

    build.original = build_model
    with pytest.MonkeyPatch.context() as patch:
        for name in ("normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_"):
            patch.setattr(torch.nn.init, name, unless_building(getattr(torch.nn.init, name)))
        patch.setattr(clip, "build_model", build)
        yield


@pytest.fixture
def clips_with_random_weights(monkeypatch):
    """Reading a CLIP takes the random numbers that it takes in other processes, whose figures a test compares."""
    monkeypatch.setattr(clip, "build_model", clip.build_model.original)


@pytest.fixture(scope="session")
def root():
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """Where Shapes and Digits are drawn, once a session; Shapes with fewer images than the real one."""
    images, Shapes.images = Shapes.images, {"train": 16, "val": 4, "test": 2}
    yield tmp_path_factory.mktemp("data")
    Shapes.images = images


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A data root with Shapes for runs from the command line, again with fewer images; drawn once a session."""
    root = tmp_path_factory.getbasetemp() / "few-pictures"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shapes, "images", {"train": 8, "val": 4, "test": 3})
        Shapes(setup_cfg(parse(["--root", str(root), "VERBOSE", "False"])))
    return root


@pytest.fixture
def make_cfg(tmp_path, data_root):
    """make_cfg(KEY, VALUE..., trainer=, dataset=, out=): a small frozen config, by train.py's own way.

    Two shots, no warm-up (its first epoch would hardly move anything), no worker processes. Tests of all trainers give
    a batch size, which LP++ refuses: it is left out there.
    """

    def make(*opts, trainer="OrthCR", dataset="Shapes", out="out"):
        discover(trainers)
        unread = getattr(TRAINER_REGISTRY._obj_map.get(trainer), "unread_keys", ())
        opts = [word for pair in zip(opts[::2], opts[1::2], strict=True) if pair[0] not in unread for word in pair]
        words = [
            "--root",
            data_root,
            "--output-dir",
            tmp_path / out,
            "--trainer",
            trainer,
            "--dataset-config-file",
            ROOT / "configs" / "datasets" / f"{dataset.lower()}.yaml",
            "VERBOSE",
            False,
            "USE_CUDA",
            False,
            "DATASET.NUM_SHOTS",
            2,
            "DATALOADER.NUM_WORKERS",
            0,
            "OPTIM.WARMUP_EPOCH",
            -1,
            *opts,
        ]
        return setup_cfg(parse([str(word) for word in words]))

    return make


@pytest.fixture
def make_trainer(make_cfg):
    """The same arguments: a trainer, built after seeding everything with 1."""

    def make(*opts, **kwargs):
        cfg = make_cfg(*opts, **kwargs)
        set_random_seed(1)
        return build_trainer(cfg)

    return make


@pytest.fixture
def take_steps():
    """take_steps(trainer, n): n real training steps; returns what forward_backward returned."""

    def steps(trainer, n=1):
        trainer.set_model_mode("train")
        trainer.num_batches = n + 1  # the end of the epoch, and of this learning rate, is not reached
        batches = chain.from_iterable(repeat(trainer.train_loader_x))
        return [trainer.forward_backward(batch) for trainer.batch_idx, batch in zip(range(n), batches, strict=False)]

    return steps


@pytest.fixture(scope="session")
def tiny():
    """The embedded CLIP; not to be changed."""
    return load_clip("tiny")


@pytest.fixture(scope="session")
def random_clip():
    """random_clip("vit" or "resnet"): OpenAI's class with small sizes and every tensor random, in eval mode.

    The encoders differ in depth and width, and biases and LayerNorms are not at their neutral start.
    """

    @cache
    def build(kind, seed):
        gen = torch.Generator().manual_seed(seed)
        layers, side, patch, width = (2, 32, 16, 128) if kind == "vit" else ((1, 1, 1, 1), 64, None, 8)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = CLIP(24, side, layers, width, patch, 77, VOCABULARY, 64, 1, 3)
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and name != "logit_scale":
                noise = torch.randn(tensor.shape, generator=gen)
                tensor.add_(noise.abs() if name.endswith("running_var") else 0.05 * noise)
        return model.eval().requires_grad_(False)

    return lambda kind="vit", seed=0: copy.deepcopy(build(kind, seed))


@pytest.fixture(scope="session")
def noise():
    """noise(*shape, seed=0): standard normal float32."""

    def make(*shape, seed=0):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def bare_cfg():
    """bare_cfg(KEY, VALUE...): Dassl's defaults, at 32 x 32 on the CPU without worker processes."""

    def make(*opts):
        cfg = get_cfg_default()
        merge_config(cfg, ["INPUT.SIZE", (32, 32), "DATALOADER.NUM_WORKERS", 0, "USE_CUDA", False, *opts])
        return cfg

    return make


@pytest.fixture
def one_line():
    """one_line(caught): the message of what `pytest.raises` caught, which must be one line."""

    def message(caught):
        text = str(caught.value)
        assert text and "\n" not in text, text
        return text

    return message
