"""The training loop: resuming, checkpoints, determinism, and a trainer file written by somebody else."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import yaml
from torch import nn

from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY, SimpleNet, TrainerBase, TrainerX, TrainerXU
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import tools
from datasets.shapes import Shapes
from experiments.config import discover, parse, setup_cfg
from experiments.run import main

REPO = Path(__file__).resolve().parents[1]
SMALL = {"OrthCR": ["TRAINER.ORTHCR.LAYERS", "[-1]", "TRAINER.ORTHCR.BLOCK_SIZE", "16"], "CoOp": ["OPTIM.LR", "0.05"]}
FOLDER = {"OrthCR": "rotations", "CoOp": "prompt_learner"}
NOT_COMPARED = ("seconds", "peak_memory_mib")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def every_epoch(monkeypatch):
    """A checkpoint to resume from after every epoch."""
    monkeypatch.setattr(TrainerBase, "resume_interval", 0.0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A data root with Shapes, fewer images than the real one, drawn once a session for the files that ask so."""
    root = tmp_path_factory.getbasetemp() / "few-pictures"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shapes, "images", {"train": 8, "val": 4, "test": 8})
        argv = ["--root", str(root), "VERBOSE", "False"]
        Shapes(setup_cfg(parse(argv)))
    return root


@pytest.fixture
def run(tmp_path, pictures):
    """run("a", ...) -> exit code of a small training on Shapes base into tmp_path/a."""

    def run(out, *opts, trainer="OrthCR", seed=1, epochs=3, flags=()):
        return main(
            [
                "--root",
                str(pictures),
                "--output-dir",
                str(tmp_path / out),
                "--seed",
                str(seed),
                "--trainer",
                trainer,
                *flags,
                "VERBOSE",
                "False",
                "DATASET.SUBSAMPLE_CLASSES",
                "base",
                "DATASET.NUM_SHOTS",
                "4",
                "OPTIM.MAX_EPOCH",
                str(epochs),
                *SMALL[trainer],
                *opts,
            ]
        )

    return run


@contextlib.contextmanager
def interrupted(trainer, epoch, batch=1):
    """Ctrl-C in that batch of that epoch, both counted from 0."""
    cls = TRAINER_REGISTRY.get(trainer)
    step = cls.forward_backward

    def forward_backward(self, *args):
        if (self.epoch, self.batch_idx) == (epoch, batch):
            raise KeyboardInterrupt
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "forward_backward", forward_backward)
        yield


def load(path):
    return torch.load(path, map_location="cpu", weights_only=True)


def same(a, b):
    """Equality of nested containers with tensors, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)  # NaN


def assert_same_run(a, b, epochs, files=()):
    """Weights, optimizer, scheduler, random generators and results of two output directories are equal."""
    (folder,) = [p.parent.name for p in a.glob("*/checkpoint")]
    for name in (f"model.pth.tar-{epochs}", *files):
        one, two = load(a / folder / name), load(b / folder / name)
        assert one["optimizer"]["state"], "the optimizer keeps something worth comparing"
        for key in ("state_dict", "optimizer", "scheduler", "rng", "epoch", "val_result", "best_result"):
            assert same(one[key], two[key]), f"{name}: {key}"
    results = [json.loads((out / "results.json").read_text()) for out in (a, b)]
    for result in results:
        for key in NOT_COMPARED:
            result.pop(key)
        for key in ("OUTPUT_DIR", "RESUME"):
            del result["config"][key]
    assert results[0] == results[1]


def checkpoints(out, trainer="OrthCR"):
    return sorted(p.name for p in (out / FOLDER[trainer]).iterdir())


# ------------------------------------------------------------------ resuming


@pytest.mark.parametrize(
    "trainer, opts, extra",
    [
        ("OrthCR", ["INPUT.TRANSFORMS", "['random_resized_crop','random_flip','cutout','normalize']"], []),
        ("OrthCR", ["DATALOADER.NUM_WORKERS", "2"], []),
        ("OrthCR", ["TEST.FINAL_MODEL", "best_val"], ["model-best.pth.tar"]),
        ("CoOp", [], []),
        ("CoOp", ["TEST.FINAL_MODEL", "best_val", "OPTIM.LR", "1.0"], ["model-best.pth.tar"]),
    ],
    ids=["OrthCR", "OrthCR-workers", "OrthCR-best", "CoOp", "CoOp-best"],
)
def test_an_interrupted_run_ends_bit_for_bit_as_the_whole_one(trainer, opts, extra, run, tmp_path, every_epoch):
    assert run("whole", *opts, trainer=trainer) == 0
    for epoch in (1, 2):
        with interrupted(trainer, epoch):
            assert run("parts", *opts, trainer=trainer) == 130
        assert f"model.pth.tar-{epoch}" in checkpoints(tmp_path / "parts", trainer)
        assert not (tmp_path / "parts" / "results.json").exists()
    assert run("parts", *opts, trainer=trainer) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 3, extra)
    for out in ("whole", "parts"):
        assert checkpoints(tmp_path / out, trainer) == sorted(["checkpoint", *extra, "model.pth.tar-3"])
        assert (tmp_path / out / FOLDER[trainer] / "checkpoint").read_text().strip() == "model.pth.tar-3"


def test_checkpoints_asked_for_stay_and_temporary_ones_go(run, tmp_path, every_epoch):
    with interrupted("CoOp", 3):
        assert run("out", "TRAIN.CHECKPOINT_FREQ", "2", trainer="CoOp", epochs=5) == 130
    assert checkpoints(tmp_path / "out", "CoOp") == ["checkpoint", "model.pth.tar-2", "model.pth.tar-3"]
    assert run("out", "TRAIN.CHECKPOINT_FREQ", "2", trainer="CoOp", epochs=5) == 0
    assert checkpoints(tmp_path / "out", "CoOp") == ["checkpoint", *(f"model.pth.tar-{n}" for n in (2, 4, 5))]


def test_no_checkpoint_in_between_unless_the_last_is_old(run, tmp_path):
    with interrupted("CoOp", 2):
        assert run("out", trainer="CoOp") == 130
    assert not (tmp_path / "out" / "prompt_learner").exists()


def test_resume_of_another_directory_goes_on_from_its_temporary_checkpoint(run, tmp_path, every_epoch):
    assert run("whole", trainer="CoOp") == 0
    with interrupted("CoOp", 1):
        assert run("first", trainer="CoOp") == 130
    assert run("second", trainer="CoOp", flags=("--resume", str(tmp_path / "first"))) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "second", 3)


def test_an_interrupted_resume_goes_on_from_its_own_checkpoints(run, tmp_path, every_epoch, capsys):
    with interrupted("CoOp", 2):
        assert run("first", "TRAIN.CHECKPOINT_FREQ", "1", trainer="CoOp", epochs=5) == 130

    def again():
        flags = ("--resume", str(tmp_path / "first"))
        return run("second", "TRAIN.CHECKPOINT_FREQ", "1", trainer="CoOp", epochs=5, flags=flags)

    with interrupted("CoOp", 4):
        assert again() == 130
    capsys.readouterr()
    assert again() == 0
    assert "resume training after epoch 4" in capsys.readouterr().out


def test_same_seed_same_weights_other_seed_others(run, tmp_path):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(out, "TEST.NO_TEST", "True", trainer="CoOp", seed=seed, epochs=1) == 0
    a, b, c = (load(tmp_path / out / "prompt_learner" / "model.pth.tar-1")["state_dict"]["ctx"] for out in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)


# ------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("trainer", ["OrthCR", "CoOp"])
def test_checkpoints_hold_the_trained_tensors_only(trainer, run, tmp_path):
    assert run("out", "TEST.NO_TEST", "True", trainer=trainer, epochs=1) == 0
    kept = load(tmp_path / "out" / FOLDER[trainer] / "model.pth.tar-1")
    assert (
        sum(t.numel() for t in kept["state_dict"].values())
        == (json.loads((tmp_path / "out" / "results.json").read_text())["trainable_params"])
    )
    assert all(t.abs().sum() > 0 for t in kept["state_dict"].values()), "one step moved every one of them"
    assert kept["epoch"] == 1 and kept["scheduler"]["last_epoch"] == 1


def test_a_crash_while_saving_leaves_the_checkpoint_before_whole(run, tmp_path, every_epoch, monkeypatch, capsys):
    out = tmp_path / "parts" / "prompt_learner"
    assert run("whole", trainer="CoOp") == 0
    replace, save = os.replace, torch.save

    def no_replace(source, target):
        if str(target).endswith("model.pth.tar-2"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    def half_a_save(state, file):
        if state["epoch"] == 3:
            file.write(b"PK half of it")
            raise OSError(28, "No space left on device")
        save(state, file)

    for patch, last in (((tools.os, "replace", no_replace), 1), ((torch, "save", half_a_save), 2)):
        with monkeypatch.context() as m:
            m.setattr(*patch)
            assert run("parts", trainer="CoOp") == 1
        assert "error: [Errno 28] No space left on device" in capsys.readouterr().err
        assert sorted(os.listdir(out)) == ["checkpoint", f"model.pth.tar-{last}"], "no half-written file is left"
        assert (out / "checkpoint").read_text().strip() == f"model.pth.tar-{last}"
        assert load(out / f"model.pth.tar-{last}")["epoch"] == last
    assert run("parts", trainer="CoOp") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 3)
    assert checkpoints(tmp_path / "parts", "CoOp") == ["checkpoint", "model.pth.tar-3"]


def test_a_kill_before_the_old_checkpoint_is_deleted_leaves_no_litter(run, tmp_path, every_epoch, monkeypatch):
    def kill(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr("dassl.engine.trainer.os.remove", kill)
        assert run("out", trainer="CoOp") == 130
    assert run("out", trainer="CoOp") == 0
    assert checkpoints(tmp_path / "out", "CoOp") == ["checkpoint", "model.pth.tar-3"]


class Bare(TrainerBase):
    """Models with an optimizer and a scheduler each, and nothing else."""

    def __init__(self, *names):
        super().__init__()
        cfg = get_cfg_default().OPTIM
        for name in names:
            model = nn.Linear(2, 2)
            optim = build_optimizer(model, cfg)
            self.register_model(name, model, optim, build_lr_scheduler(optim, cfg))


def test_several_models_go_on_from_the_last_epoch_that_all_have(tmp_path, capsys):
    trainer = Bare("a", "b")
    trainer.save_model(0, tmp_path)
    kept = {name: model.weight.detach().clone() for name, model in trainer._models.items()}
    for model in trainer._models.values():
        nn.init.zeros_(model.weight)
    trainer.save_model(1, tmp_path)
    os.remove(tmp_path / "b" / "model.pth.tar-2")  # killed between the two

    other = Bare("a", "b")
    assert other.resume_model_if_exist(str(tmp_path)) == 1
    assert all(torch.equal(other._models[name].weight, weight) for name, weight in kept.items())
    assert Bare("c").resume_model_if_exist(str(tmp_path)) == 0
    assert "from scratch" in capsys.readouterr().out


def test_models_by_name():
    trainer = Bare("a", "b")
    assert trainer.get_model_names() == ["a", "b"] and trainer.get_model_names("b") == ["b"]
    with pytest.raises(ValueError, match=r"\['c'\].*\['a', 'b'\]"):
        trainer.get_model_names(["a", "c"])
    with pytest.raises(ValueError, match='"a"'):
        trainer.register_model("a", nn.Linear(1, 1))
    trainer.set_model_mode("eval", "a")
    assert [model.training for model in trainer._models.values()] == [False, True]
    trainer.epoch = trainer.batch_idx = 0
    with pytest.raises(FloatingPointError, match="OPTIM.LR"):
        trainer.model_backward_and_update(torch.tensor(float("nan"), requires_grad=True))


# ------------------------------------------------------------------ what an epoch is


def loader(name, length):
    return [
        {"img": torch.zeros(1, 2), "label": torch.zeros(1), "domain": torch.zeros(1), "name": f"{name}{i}"}
        for i in range(length)
    ]


class Fake:
    """Runs epochs over lists in place of loaders; notes the batches and steps the scheduler as plugins do."""

    def __init__(self, x, u=0, count="train_x"):
        TrainerBase.__init__(self)
        self.cfg = get_cfg_default()
        self.cfg.TRAIN.COUNT_ITER = count
        self.device = torch.device("cpu")
        self.train_loader_x, self.train_loader_u = loader("x", x), loader("u", u)
        self.seen = []
        model = nn.Linear(2, 2)
        self.optim = build_optimizer(model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("model", model, self.optim, self.sched)

    def forward_backward(self, *batches):
        self.seen.append("".join(batch["name"] for batch in batches))
        parsed = self.parse_batch_train(*batches)
        loss = sum(self._models["model"](img).sum() for img in (parsed[0], parsed[-1]) if img.dim() == 2)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

    def train(self, epochs):
        TrainerBase.train(self, 0, epochs)
        return self.seen


class FakeX(Fake, TrainerX):
    before_train = after_epoch = after_train = TrainerBase.before_train


class FakeXU(Fake, TrainerXU):
    before_train = after_epoch = after_train = TrainerBase.before_train


@pytest.mark.parametrize(
    "count, seen", [("train_x", "x0u0 x1u1"), ("train_u", "x0u0 x1u1 x0u2 x1u3 x0u4"), ("smaller_one", "x0u0 x1u1")]
)
def test_epochs_of_labelled_and_unlabelled_batches(count, seen):
    trainer = FakeXU(2, 5, count)
    assert trainer.train(3) == 3 * seen.split()
    assert trainer.sched.last_epoch == 3, "update_lr once an epoch"
    swapped = {"train_x": 5, "train_u": 2, "smaller_one": 2}[count]
    assert len(FakeXU(5, 2, count).train(1)) == swapped


def test_unknown_count_iter_is_named():
    with pytest.raises(ValueError, match="COUNT_ITER.*bigger.*smaller_one"):
        FakeXU(1, 1, "bigger").train(1)


def test_epochs_of_labelled_batches():
    trainer = FakeX(3)
    assert trainer.train(2) == ["x0", "x1", "x2"] * 2
    assert trainer.sched.last_epoch == 2


# ------------------------------------------------------------------ SimpleNet


@pytest.mark.parametrize(
    "head, classes, width, out",
    [
        ({}, 5, 512, 5),
        ({"NAME": "mlp", "HIDDEN_LAYERS": (64, 32)}, 5, 32, 5),
        ({"NAME": "mlp", "HIDDEN_LAYERS": (64,), "BN": False, "DROPOUT": 0.5, "ACTIVATION": "leaky_relu"}, 5, 64, 5),
        ({}, 0, 512, 512),
    ],
)
def test_simple_net(head, classes, width, out):
    cfg = get_cfg_default()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.PRETRAINED = "resnet18", False
    for key, value in head.items():
        cfg.MODEL.HEAD[key] = value
    net = SimpleNet(cfg, cfg.MODEL, classes)
    image = torch.randn(2, 3, 32, 32)
    assert net(image).shape == (2, out) and net.fdim == width
    if classes:
        logits, features = net(image, return_feature=True)
        assert logits.shape == (2, classes) and features.shape == (2, width)
        assert torch.equal(net.classifier(features), logits)


@pytest.mark.parametrize("name, said", [("resnet19", "resnet19"), ("alexnet", '"fc"')])
def test_simple_net_with_a_wrong_backbone(name, said):
    cfg = get_cfg_default()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.PRETRAINED = name, False
    with pytest.raises(ValueError, match=said):
        SimpleNet(cfg, cfg.MODEL, 2)


# ------------------------------------------------------------------ files of somebody else


def test_a_broken_file_is_named_and_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    package = tmp_path / "some_trainers"
    package.mkdir()
    for name, content in {
        "__init__": "",
        "a_missing": "import a_module_that_is_not_there",
        "b_typo": "def f(:",
        "c_good": "FINE = 1",
        "d_twice": "from dassl.engine import TRAINER_REGISTRY\n@TRAINER_REGISTRY.register()\nclass OrthCR: pass",
    }.items():
        (package / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    discover(SimpleNamespace(__name__="some_trainers", __path__=[str(package)]))
    said = capsys.readouterr().err.splitlines()
    named = [line.split(" is skipped: ")[0] for line in said]
    assert named == [f"some_trainers/{name}.py" for name in ("a_missing", "b_typo", "d_twice")]
    assert "a_module_that_is_not_there" in said[0]
    assert sys.modules["some_trainers.c_good"].FINE == 1


MYCOOP = """
import os.path as osp

import torch
from clip import clip
from torch import nn
from torch.cuda.amp import GradScaler, autocast
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, load_pretrained_weights


def load_clip_to_cpu(cfg):
    file = clip._download(clip._MODELS[cfg.MODEL.BACKBONE.NAME])
    try:
        archive, state = torch.jit.load(file, map_location="cpu").eval(), None
    except RuntimeError:
        archive, state = None, torch.load(file, map_location="cpu")
    return clip.build_model(state or archive.state_dict())


class TextEncoder(nn.Module):
    def __init__(self, clip_model):
        super().__init__()
        self.transformer = clip_model.transformer
        self.positional_embedding = clip_model.positional_embedding
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.dtype = clip_model.dtype

    def forward(self, prompts, tokenized_prompts):
        assert prompts.shape[1] == 77
        x = (prompts + self.positional_embedding.type(self.dtype)).permute(1, 0, 2)
        x = self.ln_final(self.transformer(x).permute(1, 0, 2)).type(self.dtype)
        last = tokenized_prompts.argmax(dim=-1)
        return x[torch.arange(len(x)), last] @ self.text_projection


class PromptLearner(nn.Module):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        own, dtype = cfg.TRAINER.MYCOOP, clip_model.dtype
        vectors = torch.empty(own.N_CTX, clip_model.ln_final.weight.shape[0], dtype=dtype)
        nn.init.normal_(vectors, std=own.INIT.STD)
        self.ctx = nn.Parameter(vectors)
        prompts = [" ".join(["X"] * own.N_CTX) + f" {name.replace('_', ' ')}." for name in classnames]
        tokens = torch.cat([clip.tokenize(prompt) for prompt in prompts])
        with torch.no_grad():
            embedding = clip_model.token_embedding(tokens).type(dtype)
        self.register_buffer("token_prefix", embedding[:, :1])
        self.register_buffer("token_suffix", embedding[:, 1 + own.N_CTX :])
        self.tokenized_prompts = tokens
        self.n_cls = len(classnames)

    def forward(self):
        ctx = self.ctx.unsqueeze(0).expand(self.n_cls, -1, -1)
        return torch.cat([self.token_prefix, ctx, self.token_suffix], dim=1)


class CustomCLIP(nn.Module):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        self.prompt_learner = PromptLearner(cfg, classnames, clip_model)
        self.tokenized_prompts = self.prompt_learner.tokenized_prompts
        self.image_encoder = clip_model.visual
        self.text_encoder = TextEncoder(clip_model)
        self.logit_scale = clip_model.logit_scale
        self.dtype = clip_model.dtype

    def forward(self, image):
        images = self.image_encoder(image.type(self.dtype))
        texts = self.text_encoder(self.prompt_learner(), self.tokenized_prompts)
        images = images / images.norm(dim=-1, keepdim=True)
        texts = texts / texts.norm(dim=-1, keepdim=True)
        return self.logit_scale.exp() * images @ texts.t()


@TRAINER_REGISTRY.register()
class MyCoOp(TrainerX):
    def check_cfg(self, cfg):
        assert cfg.TRAINER.MYCOOP.PREC in ["fp16", "fp32", "amp"]

    def build_model(self):
        cfg = self.cfg
        clip_model = load_clip_to_cpu(cfg)
        if cfg.TRAINER.MYCOOP.PREC in ("fp32", "amp"):
            clip_model.float()
        self.model = CustomCLIP(cfg, self.dm.dataset.classnames, clip_model)
        for name, param in self.model.named_parameters():
            if "prompt_learner" not in name:
                param.requires_grad_(False)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model.prompt_learner, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model.prompt_learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)
        self.scaler = GradScaler() if cfg.TRAINER.MYCOOP.PREC == "amp" else None

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        if self.cfg.TRAINER.MYCOOP.PREC == "amp":
            with autocast():
                output = self.model(image)
                loss = F.cross_entropy(output, label)
            self.optim.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optim)
            self.scaler.update()
        else:
            output = self.model(image)
            loss = F.cross_entropy(output, label)
            self.model_backward_and_update(loss)
        summary = {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return summary

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def load_model(self, directory, epoch=None):
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        for name in self.get_model_names():
            file = osp.join(directory, name, "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}")
            if not osp.exists(file):
                raise FileNotFoundError(f'Model not found at "{file}"')
            state = load_checkpoint(file)["state_dict"]
            for fixed in ("token_prefix", "token_suffix"):
                state.pop(fixed, None)
            self._models[name].load_state_dict(state, strict=False)
"""

MYCOOP_CONFIG = {
    "DATALOADER": {"TRAIN_X": {"BATCH_SIZE": 32}, "TEST": {"BATCH_SIZE": 100}, "NUM_WORKERS": 0},
    "INPUT": {
        "SIZE": [32, 32],
        "INTERPOLATION": "bicubic",
        "PIXEL_MEAN": [0.48145466, 0.4578275, 0.40821073],
        "PIXEL_STD": [0.26862954, 0.26130258, 0.27577711],
        "TRANSFORMS": ["random_resized_crop", "random_flip", "normalize"],
    },
    "OPTIM": {
        "NAME": "sgd",
        "LR": 0.02,
        "MAX_EPOCH": 2,
        "LR_SCHEDULER": "cosine",
        "WARMUP_EPOCH": 1,
        "WARMUP_TYPE": "constant",
        "WARMUP_CONS_LR": "1e-5",
    },
    "TRAIN": {"PRINT_FREQ": 5},
    "MODEL": {"BACKBONE": {"NAME": "Nano/8"}},
    "TRAINER": {"MYCOOP": {"N_CTX": 4, "INIT": {"STD": 0.02}, "PREC": "fp32"}},
}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, pictures):
    """A copy of the repository with two files of somebody else in trainers/, and a home with downloaded weights."""
    tree, home = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("home")
    for part in ("dassl", "trainers", "datasets", "experiments", "configs", "assets"):
        shutil.copytree(REPO / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPO / "train.py", tree)
    weights = home / ".cache" / "clip" / "Nano-8.pt"
    weights.parent.mkdir(parents=True)
    torch.save(safetensors.torch.load_file(REPO / "assets" / "tiny_clip.safetensors"), weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    (tree / "trainers" / "aaa_models.py").write_text(
        f'from clip import clip\nclip._MODELS["Nano/8"] = "https://127.0.0.1:9/{digest}/Nano-8.pt"\n'
    )
    (tree / "trainers" / "broken.py").write_text("import a_module_that_is_not_there\n")
    (tree / "trainers" / "mycoop.py").write_text(MYCOOP)
    (tree / "configs" / "mycoop.yaml").write_text(yaml.safe_dump(MYCOOP_CONFIG))

    def command(*args):
        env = {**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1"}
        env.pop("PYTHONPATH", None)
        return subprocess.run(
            [
                sys.executable,
                "train.py",
                "--root",
                str(pictures),
                "--seed",
                "1",
                "--trainer",
                "MyCoOp",
                "--config-file",
                "configs/mycoop.yaml",
                "--dataset-config-file",
                "configs/datasets/shapes.yaml",
                *args,
            ],
            cwd=tree,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return command


def accuracy(process):
    (line,) = [line for line in process.stdout.splitlines() if line.startswith("* accuracy: ")]
    assert line.endswith("%")
    return float(line.removeprefix("* accuracy: ").removesuffix("%"))


def test_a_coop_style_trainer_of_somebody_else_runs_unmodified(elsewhere, tmp_path):
    out, new = tmp_path / "out", tmp_path / "new"
    shots = ["DATASET.NUM_SHOTS", "4"]
    trained = elsewhere("--output-dir", str(out), *shots, "DATASET.SUBSAMPLE_CLASSES", "base")
    assert trained.returncode == 0, trained.stderr
    assert "trainers/broken.py is skipped: ModuleNotFoundError" in trained.stderr
    assert accuracy(trained) > 15, "20 classes: chance is 5"
    assert load(out / "prompt_learner" / "model.pth.tar-2")["state_dict"]["ctx"].shape == (4, 64)
    assert (out / "prompt_learner" / "checkpoint").read_text().strip() == "model.pth.tar-2"
    assert list((out / "tensorboard").glob("events.*")) and (out / "log.txt").exists()

    tested = elsewhere(
        "--eval-only",
        "--model-dir",
        str(out),
        "--load-epoch",
        "2",
        "--output-dir",
        str(new),
        *shots,
        "DATASET.SUBSAMPLE_CLASSES",
        "new",
    )
    assert tested.returncode == 0, tested.stderr
    result = json.loads((new / "results.json").read_text())
    assert result["accuracy"] == pytest.approx(accuracy(tested), abs=0.051) and accuracy(tested) > 15
    assert (result["classes"], result["trained_on"]) == (
        "new",
        {"dataset": "Shapes", "classes": "base", "seed": 1, "shots": 4},
    )


def test_its_amp_branch_runs_on_this_machine(elsewhere, tmp_path):
    process = elsewhere(
        "--output-dir",
        str(tmp_path),
        "DATASET.NUM_SHOTS",
        "2",
        "DATASET.SUBSAMPLE_CLASSES",
        "base",
        "OPTIM.MAX_EPOCH",
        "1",
        "TEST.NO_TEST",
        "True",
        "TRAINER.MYCOOP.PREC",
        "amp",
    )
    assert process.returncode == 0, process.stderr
    assert load(tmp_path / "prompt_learner" / "model.pth.tar-1")["state_dict"]["ctx"].isfinite().all()
