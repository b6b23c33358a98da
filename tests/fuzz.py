"""Mutated command lines, YAML files and output directories: each ends in one line, or in a run that makes sense.

    python -m tests.fuzz --count 500 --seed 0
    python -m tests.fuzz --start 44 --count 1 --verbose        case 44 again

A case is one call of train.py or predict.py in this process, with training cut to one batch. What happens to it:

    refused     exit status 1 or 2 and one line that says why
    ran         exit status 0, and what it left is sane by rules of this file, which are not those of the config
    traceback   any other exception
    nonsense    exit status 0 with insane settings or figures; a setting of MUST_FAIL taken; a line of no use;
                a file outside the folders that the run may write to

Exit status 1 if there is any of the last two kinds, each of which is printed.
"""

import argparse
import ast
import contextlib
import copy
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from functools import cache
from pathlib import Path
from unittest import mock

import torch
import yaml
from PIL import Image

from dassl.config import flatten
from dassl.data import data_manager
from dassl.engine.trainer import SimpleTrainer, TrainerBase, TrainerX
from datasets.shapes import Shapes
from experiments import run
from experiments.config import default_cfg, parse, plain, setup_cfg
from predict import main as predict
from trainers import base
from trainers.shared.backbones import load_clip

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TRAINERS = ("CoOp", "OrthCR", "ZeroshotCLIP")
SMALL = "VERBOSE False USE_CUDA False DATASET.NUM_SHOTS 1 DATASET.SUBSAMPLE_CLASSES base OPTIM.MAX_EPOCH 1".split()
QUICK = {"OrthCR": ["TRAINER.ORTHCR.LAYERS", "[-1]", "TRAINER.ORTHCR.BLOCK_SIZE", "16"]}
ODD = (
    "None|nope|../x|-7|0|1|7|1000000|1" + "0" * 30 + "|0.5|-1.5|1e30|1e999|nan|-inf|True|[]|[True]|[0.5]|(2,3)|(0.5,)|"
    "[1,2,3]|[None]|[[1]]|{'a':1}|{}{}|é|a b|[1|((((|\x1b[31m|0x10|-1|1e-5|'x'|b'x'|1j|normalize|all|test|%s|x/../../.."
).split("|") + [""]
MUST_FAIL = """TEST.FINAL_MODEL best|TRAIN.COUNT_ITER nonsense|--head nope|--model-dir x|--load-epoch 1|TRAINER.NAME X
DATASET.NUM_SHOTS 0|DATASET.NUM_SHOTS -5|OPTIM.LR 0|OPTIM.LR 1e30|OPTIM.LR None|OPTIM.MAX_EPOCH None|SEED None
INPUT.CUTOUT_LEN -7|INPUT.PIXEL_STD [-1,1,1]|INPUT.PIXEL_MEAN [0.5,0.5]|INPUT.RRCROP_SCALE (2,3)
INPUT.RRCROP_SCALE (0.5,)|INPUT.SIZE [32.0,32.0]|DATALOADER.K_TRANSFORMS 0|DATASET.SUBSAMPLE_CLASSES x/../../..
OPTIM.WEIGHT_DECAY 1e999|TEST.SPLIT ../x|DATASET.NAME ..|INPUT.NO_TRANSFORM True|--config-file gone.yaml
INPUT.TRANSFORMS ['flip']|--transforms nope|OPTIM.LRR 1|OPTIM.GAMMA nan""".replace("\n", "|").split("|")
FLAGS = """--seed --root --transforms --source-domains --config-file --dataset-config-file --trainer --backbone --head
--template --images --resume --model-dir --load-epoch --eval-only --no-train --skip-unreadable""".split()
BYTES = [b"\xe9", b"\0", b"TRAINER: [", b"- 1", b"a: &a [*a]", b"? {}", b"OPTIM:", b"%"]


class Nonsense(Exception):
    """What was accepted, or said, and should not have been."""


# ------------------------------------------------------------------ mutations


@cache
def defaults(trainer: str) -> dict:
    """Not to be changed."""
    return plain(default_cfg(trainer))


@cache
def whole_yaml(trainer: str) -> bytes:
    """All settings of a small run."""
    return setup_cfg(parse(["--trainer", trainer, *SMALL, *QUICK.get(trainer, [])])).dump().encode()


def value_for(draw, default) -> str:
    """An odd value, more often than not of the type of the default."""

    def kind(word):
        with contextlib.suppress(Exception):
            value = ast.literal_eval(word)
            return list if isinstance(value, tuple) else float if type(value) is int else type(value)
        return str

    wanted = float if type(default) is int else type(default)
    alike = [
        word for word in [*ODD, "False", "3", "16", "0.9", "[0, 1]", "(5, 9)", "['q', 'text']"] if kind(word) is wanted
    ]
    return draw.choice(alike if alike and draw.random() < 0.75 else ODD)


def odd_command(draw, world, out) -> tuple[str, list[str]]:
    """train.py with one to three words that it should not have, or has."""
    trainer = draw.choice(TRAINERS)
    flags = ["--root", str(world / "data"), "--output-dir", str(out), "--trainer", trainer]
    pairs, default = [*SMALL, *QUICK.get(trainer, [])], defaults(trainer)
    known = [key for key in default if not key.startswith("TRAINER.") or key.split(".")[1] == trainer.upper()]
    for _ in range(draw.randint(1, 3)):
        kind = draw.random()
        if kind < 0.75:
            key = draw.choice(known)
            pairs += [key, value_for(draw, default[key])]
        elif kind < 0.9:
            flags += [draw.choice(FLAGS), *[draw.choice(ODD)] * draw.randint(0, 2)]
        else:
            words = draw.choice([flags, pairs])
            place = draw.randrange(len(words))
            words[place : place + draw.randint(0, 2)] = [draw.choice([*ODD, *known])] * draw.randint(0, 1)
    return "train", flags + pairs


def must_fail(draw, world, out):
    """train.py with a setting that no run may accept."""
    given = draw.choice(MUST_FAIL).split(" ")
    flags = ["--root", str(world / "data"), "--output-dir", str(out), "--trainer", draw.choice(TRAINERS)]
    return "must fail", flags + (given + SMALL if given[0].startswith("-") else SMALL + given)


def odd_yaml(draw, world, out):
    """train.py with a YAML file of which some lines, words or bytes are changed."""
    trainer = draw.choice(TRAINERS)
    data = whole_yaml(trainer)
    file = out.parent / "mine.yaml"
    file.write_bytes(changed_values(draw, data) if draw.random() < 0.6 else changed_text(draw, data))
    where = draw.choice(["--config-file", "--dataset-config-file"])
    return "train", ["--root", str(world / "data"), "--output-dir", str(out), "--trainer", trainer, where, str(file)]


def odd_folder(draw, world, out):
    """Evaluation of, prediction with, or going on in an output directory of which a file is changed or exchanged."""
    trainer = draw.choice(TRAINERS[:2])
    shutil.copytree(world / trainer, out)
    files = sorted(p for p in out.rglob("*") if p.is_file() and "tensorboard" not in p.parts)
    file = draw.choice([*files, out / "config.yaml", out / "config.yaml", out / "classes.json"])
    data, way = file.read_bytes(), draw.random()
    if way < 0.15:
        file.unlink()
    elif way < 0.3:
        file.write_bytes(draw.choice(files).read_bytes())
    elif way < 0.45 or "model.pth" in file.name:
        file.write_bytes(data[: draw.randrange(len(data))])
    elif file.name == "config.yaml" and way < 0.8:
        file.write_bytes(changed_values(draw, data, extra=[str(world / "elsewhere")]))
    else:
        file.write_bytes(changed_text(draw, data))
    how = draw.choice(["predict", "evaluate", "go on"])
    if how == "predict":
        return how, [str(world / "image.png"), "--model-dir", str(out)]
    if how == "evaluate":
        return how, ["--eval-only", "--model-dir", str(out), "--output-dir", str(out.parent / "eval")]
    flags = ["--root", str(world / "data"), "--output-dir", str(out), "--trainer", trainer]
    return how, [*flags, *SMALL, *QUICK.get(trainer, [])]


def changed_values(draw, data: bytes, extra=()) -> bytes:
    """A YAML file with one to three other values."""
    tree = yaml.safe_load(data)
    for key in draw.sample(sorted(flatten(tree)), draw.randint(1, 3)):
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node[section]
        word = value_for(draw, node[leaf])
        node[leaf] = draw.choice([word, word, word, *extra, None, 10**30, [None], {"a": {"b": 1}}])
    return yaml.safe_dump(tree, allow_unicode=True).encode()


def changed_text(draw, data: bytes) -> bytes:
    for _ in range(draw.randint(1, 3)):
        lines = data.split(b"\n")
        k, way = draw.randrange(len(lines)), draw.randrange(7)
        if way == 0:
            lines.insert(k, draw.choice(lines))
        elif way == 1:
            del lines[k]
        elif way == 2:
            lines[k] = lines[k].split(b":")[0] + b": " + draw.choice(ODD).encode()
        elif way == 3:
            lines[k] = b" " * draw.randint(1, 4) + lines[k]
        elif way == 4:
            lines[k:] = [lines[k][: len(lines[k]) // 2]]
        elif way == 5:
            lines.insert(k, draw.choice(BYTES))
        else:
            lines[k] = bytes(b ^ (draw.random() < 0.1) << draw.randrange(8) for b in lines[k])
        data = b"\n".join(lines)
    return data


KINDS = (odd_command, odd_command, must_fail, odd_yaml, odd_yaml, odd_folder, odd_folder)


# ------------------------------------------------------------------ what must hold


def check_refused(said: str, argv: list[str]) -> None:
    lines = [line for line in said.splitlines() if line.startswith("error: ") or ": error: " in line]
    if len(lines) != 1 or "Traceback" in said:
        raise Nonsense(f"not one line: {said[-300:]!r}")
    if not 20 < len(lines[0]) < 1500 or not lines[0].isprintable():
        raise Nonsense(f"not a line for people: {lines[0][:300]!r}")
    if re.search(r"object|NoneType|has no attribute|unsupported operand|0x[0-9a-f]{8}", lines[0]):
        raise Nonsense(f"words of Python: {lines[0][:300]}")


def check_ran(how: str, argv: list[str], out: str, printed: str) -> None:
    if how == "must fail":
        raise Nonsense("accepted")
    if how == "predict":
        if re.search(r"\bnan\b", printed):
            raise Nonsense(f"figures: {printed[-200:]}")
        return
    if "--no-train" in argv and "--eval-only" not in argv:
        return

    def strict(word):
        raise Nonsense(f"results.json has {word}")

    results = json.loads(Path(out, "results.json").read_text(), parse_constant=strict)
    if "accuracy" in results and not 0 <= results["accuracy"] <= 100:
        raise Nonsense(f"accuracy {results['accuracy']}")
    check_sane(results["config"], training=not results["eval_only"])


def check_sane(config: dict, training: bool) -> None:
    """Raises Nonsense for a config that no reader of a paper would believe."""
    default = defaults(config["TRAINER.NAME"])
    for key, value in config.items():
        many = isinstance(default[key], list)
        for one in value if many and isinstance(value, list) else [value]:
            alike = default[key][:1] if many else [default[key]]
            if type(one) is not type((alike or [one])[0]) and not (type(one) is int and type(alike[0]) is float):
                raise Nonsense(f"{key} is {value!r}")
            if isinstance(one, float) and not math.isfinite(one):
                raise Nonsense(f"{key} is {value!r}")
    c = {key.split(".", 1)[-1]: value for key, value in config.items()}
    template = config.get(f"TRAINER.{config['TRAINER.NAME'].upper()}.TEMPLATE", "")
    rules = {
        "normalize": "normalize" in c["TRANSFORMS"],
        "PIXEL_STD": len(c["PIXEL_STD"]) == 3 and min(c["PIXEL_STD"]) > 0,
        "PIXEL_MEAN": len(c["PIXEL_MEAN"]) == 3 and 0 <= min(c["PIXEL_MEAN"]) <= max(c["PIXEL_MEAN"]) <= 1,
        "SIZE": c["SIZE"] == [32, 32],
        "RRCROP_SCALE": 0 < c["RRCROP_SCALE"][0] <= c["RRCROP_SCALE"][1] <= 1,
        "CUTOUT": "cutout" not in c["TRANSFORMS"] or 0 <= c["CUTOUT_LEN"] <= 32,
        "NUM_SHOTS": c["NUM_SHOTS"] == -1 or c["NUM_SHOTS"] > 0,
        "LR": 0 < c["LR"] < 1e6 or not training,
        "MAX_EPOCH": c["MAX_EPOCH"] > 0,
        "SPLIT": config["TEST.SPLIT"] in ("test", "val"),
        "SUBSAMPLE_CLASSES": c["SUBSAMPLE_CLASSES"] in ("all", "base", "new"),
        "FINAL_MODEL": c["FINAL_MODEL"] in ("last_step", "best_val"),
        "HEAD": config["MODEL.HEAD.NAME"] == "",
        "TEMPLATE": template == "" or template.count("{}") == 1,
        "ADAM": 0 <= c["ADAM_BETA1"] < 1 and 0 <= c["ADAM_BETA2"] < 1,
        "probabilities": all(0 <= c[key] <= 1 for key in ("RGS_P", "GB_P")),
    }
    for name, holds in rules.items():
        if not holds:
            raise Nonsense(f"insane: {name}")


# ------------------------------------------------------------------ running


def call(how: str, argv: list[str]) -> tuple[int, str, str, str]:
    """(exit status, stdout, stderr, output directory that the run had)."""
    printed, said, used = io.StringIO(), io.StringIO(), []

    def set_up(args):
        cfg = setup_cfg(args)
        used.append(cfg.OUTPUT_DIR)
        return cfg

    watched = mock.patch.object(run, "setup_cfg", set_up)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said), watched:
        try:
            status = predict(argv) if how == "predict" else run.main(argv)
        except SystemExit as end:
            status = end.code
    return status, printed.getvalue(), said.getvalue(), used[-1] if used else ""


@contextlib.contextmanager
def cut_short():
    """One batch an epoch, one epoch a run, no worker processes, few pictures, one loading of the tiny CLIP."""
    tiny, train = load_clip("tiny"), TrainerBase.train

    def load(name, device="cpu"):
        return copy.deepcopy(tiny).to(device) if name == "tiny" else load_clip(name, device)

    def one_batch(self):
        self.num_batches = len(self.train_loader_x)
        self._run_batches((batch,) for batch in itertools.islice(self.train_loader_x, 1))

    patches = [
        mock.patch.object(base, "load_clip", load),
        mock.patch.object(TrainerX, "run_epoch", one_batch),
        mock.patch.object(TrainerBase, "train", lambda self, start, end: train(self, start, min(end, start + 1))),
        mock.patch.object(SimpleTrainer, "init_writer", lambda self, folder: None),
        mock.patch.object(data_manager, "workers_that_fit", lambda *a: 0),
        mock.patch.object(Shapes, "images", {"train": 2, "val": 1, "test": 1}),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def make_world(world: Path) -> None:
    """Data, an image, and a finished training of each trainer."""
    Image.new("RGB", (40, 50), "teal").save(world / "image.png")
    for trainer in TRAINERS[:2]:
        flags = ["--root", str(world / "data"), "--output-dir", str(world / trainer), "--trainer", trainer]
        status, _, said, _ = call("train", [*flags, *SMALL, *QUICK.get(trainer, [])])
        assert status == 0, said


def fuzz(count: int, seed: int, start: int = 0, verbose: bool = False) -> tuple[Counter, list[str]]:
    """How often each outcome was, and a report on every traceback and nonsense."""
    outcomes, faults, here = Counter(), [], os.getcwd()
    with tempfile.TemporaryDirectory() as folder, cut_short():
        world = Path(folder).resolve()
        make_world(world)
        before = sorted(world.iterdir())
        for case in range(start, start + count):
            draw = random.Random(f"{seed} {case}")
            mutate, sandbox = draw.choice(KINDS), world / "case"
            sandbox.mkdir()
            os.chdir(sandbox)
            how, argv = mutate(draw, world, sandbox / "out")
            try:
                status, printed, said, out = call(how, argv)
                if status:
                    check_refused(said, argv)
                else:
                    check_ran(how, argv, out, printed)
                outcome, why = ("refused" if status else "ran"), ""
                strangers = set(world.iterdir()) - {*before, sandbox}
                if strangers and mutate is odd_folder:
                    raise Nonsense(f"made outside: {strangers}")
            except Nonsense as error:
                outcome, why = "nonsense", str(error)
            except Exception:
                outcome, why = "traceback", "".join(traceback.format_exc().splitlines(True)[-6:])
            finally:
                os.chdir(here)
                for path in set(world.iterdir()) - set(before):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            outcomes[f"{mutate.__name__}: {outcome}"] += 1
            if verbose:
                line = said.strip().splitlines()[-1:] if status else ["ran"]
                print(f"{case} {how}: {line}")
            if why:
                faults.append(f"case {case}, {how}: {' '.join(map(ascii, argv))}\n    {why}")
    return outcomes, faults


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--verbose", action="store_true", help="print what each case said")
    args = parser.parse_args(argv)
    outcomes, faults = fuzz(args.count, args.seed, args.start, args.verbose)
    for fault in faults:
        print(fault)
    for outcome, number in sorted(outcomes.items()):
        print(f"{number:5} {outcome}")
    return 1 if faults else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
