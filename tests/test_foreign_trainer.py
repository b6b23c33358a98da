"""Trainer files written by somebody else: found, skipped when broken, and run unmodified."""

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

from orthcr.run.declarations import discover

REPO = Path(__file__).resolve().parents[1]


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
    for part in ("dassl", "trainers", "datasets", "orthcr", "configs", "assets"):
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
        argv = "train.py --seed 1 --trainer MyCoOp --config-file configs/mycoop.yaml".split()
        argv += ["--dataset-config-file", "configs/datasets/shapes.yaml", "--root", str(pictures), *args]
        return subprocess.run([sys.executable, *argv], cwd=tree, env=env, capture_output=True, text=True, timeout=300)

    return command


def context(path):
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]["ctx"]


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
    assert context(out / "prompt_learner" / "model.pth.tar-2").shape == (4, 64)
    assert (out / "prompt_learner" / "checkpoint").read_text().strip() == "model.pth.tar-2"
    assert list((out / "tensorboard").glob("events.*")) and (out / "log.txt").exists()

    flags = ["--eval-only", "--model-dir", str(out), "--load-epoch", "2", "--output-dir", str(new)]
    tested = elsewhere(*flags, *shots, "DATASET.SUBSAMPLE_CLASSES", "new")
    assert tested.returncode == 0, tested.stderr
    result = json.loads((new / "results.json").read_text())
    assert result["accuracy"] == pytest.approx(accuracy(tested), abs=0.051) and accuracy(tested) > 15
    assert result["classes"] == "new"
    assert result["trained_on"] == {"dataset": "Shapes", "classes": "base", "seed": 1, "shots": 4}


def test_its_amp_branch_runs_on_this_machine(elsewhere, tmp_path):
    small = "DATASET.NUM_SHOTS 2 DATASET.SUBSAMPLE_CLASSES base OPTIM.MAX_EPOCH 1 TEST.NO_TEST True".split()
    process = elsewhere("--output-dir", str(tmp_path), *small, "TRAINER.MYCOOP.PREC", "amp")
    assert process.returncode == 0, process.stderr
    assert context(tmp_path / "prompt_learner" / "model.pth.tar-1").isfinite().all()
