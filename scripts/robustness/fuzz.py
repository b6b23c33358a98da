"""Mutated command lines, settings, folders and files: each ends in one line, or in a run that makes sense.

    python -m scripts.robustness.fuzz --count 500 --seed 0
    python -m scripts.robustness.fuzz --start 44 --count 1 --verbose        case 44 again
    python -m scripts.robustness.fuzz --kinds odd_pictures odd_export       only these

A case is one call of an entry point, with training cut to one batch and a benchmark to this process. Many cases share a
process, which has a limit of memory and is replaced when it dies. What happens to a case:

    refused     exit status 1 or 2 and a line that says why
    ran         exit status 0, and what it left is sane by rules of this file, which are not those of the config
    traceback   any other exception
    nonsense    exit status 0 with insane settings or figures; a setting of MUST_FAIL taken; a line of no use;
                a file outside the folders that the run may write to; code of a file that ran
    memory      more than 2 GB beyond what the process had
    hang        more than 60 s
    killed      the process died

Exit status 1 if there is any of the last five kinds, each of which is printed.
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
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import torch
import yaml
from PIL import Image

import benchmark
import datasets
import export
import report
import trainers
from dassl.config import flatten
from dassl.data import data_manager
from dassl.engine.trainer import SimpleTrainer, TrainerBase, TrainerX
from datasets.shapes import Shapes
from datasets.tools import prepare, verify
from orthcr import calibrate
from orthcr.compare import engines, strength_curve
from orthcr.run import runner
from orthcr.run.config import setup_cfg
from orthcr.run.declarations import config_values, default_cfg, discover
from orthcr.run.flags import parse
from predict import main as predict
from scripts.robustness import hostile
from scripts.robustness.processes import fork
from trainers import base
from trainers.shared.backbones import load_clip
from trainers.shared.strength import AUTO

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
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
--template --images --few-shot-split --resume --model-dir --load-epoch --eval-only --no-train
--skip-unreadable""".split()
BYTES = [b"\xe9", b"\0", b"TRAINER: [", b"- 1", b"a: &a [*a]", b"? {}", b"OPTIM:", b"%"]


COMMANDS = {  # any other name is train.py
    "predict": predict,
    "export": export.main,
    "report": report.main,
    "benchmark": benchmark.main,
    "calibrate": calibrate.main,
    "strength": strength_curve.main,
    "prepare": prepare.main,
    "verify": verify.main,
}
SEVERAL = ("predict", "benchmark", "verify", "prepare")  # have a line for each image, run or data set that fails
MEMORY = 2000  # MiB of a case
ADDRESSES = 12_000  # MiB that a process may have beyond its start, so that the machine is not brought down
SECONDS = 60.0  # of a case


class NonsenseError(Exception):
    """A value or a message that should not have been accepted or printed."""


# ------------------------------------------------------------------ mutations


@cache
def defaults(trainer: str) -> dict:
    """Return {key: default} of all settings; the caller must not change it."""
    return config_values(default_cfg(trainer))


@cache
def whole_yaml(trainer: str) -> bytes:
    """Return the YAML of all settings of a small run."""
    return setup_cfg(parse(["--trainer", trainer, *SMALL, *QUICK.get(trainer, [])])).dump().encode()


def value_for(draw, default) -> str:
    """Return an odd value, in most cases of the type of the default."""

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
    keys = [key for key in default if not key.startswith("TRAINER.") or key.split(".")[1] == trainer.upper()]
    for _ in range(draw.randint(1, 3)):
        kind = draw.random()
        if kind < 0.75:
            key = draw.choice(keys)
            pairs += [key, value_for(draw, default[key])]
        elif kind < 0.9:
            flags += [draw.choice(FLAGS), *[draw.choice(ODD)] * draw.randint(0, 2)]
        else:
            words = draw.choice([flags, pairs])
            place = draw.randrange(len(words))
            words[place : place + draw.randint(0, 2)] = [draw.choice([*ODD, *keys])] * draw.randint(0, 1)
    return "train", flags + pairs


def must_fail(draw, world, out):
    """Run train.py with a setting that no run may accept."""
    setting = draw.choice(MUST_FAIL).split(" ")
    flags = ["--root", str(world / "data"), "--output-dir", str(out), "--trainer", draw.choice(TRAINERS)]
    return "must fail", flags + (setting + SMALL if setting[0].startswith("-") else SMALL + setting)


def odd_yaml(draw, world, out):
    """Run train.py with a YAML file of which some lines, words or bytes are changed."""
    trainer = draw.choice(TRAINERS)
    data = whole_yaml(trainer)
    file = out.parent / "mine.yaml"
    file.write_bytes(change_values(draw, data) if draw.random() < 0.6 else change_text(draw, data))
    flag = draw.choice(["--config-file", "--dataset-config-file"])
    return "train", ["--root", str(world / "data"), "--output-dir", str(out), "--trainer", trainer, flag, str(file)]


def odd_folder(draw, world, out):
    """Evaluate, predict with, or resume an output directory of which a file is changed or exchanged."""
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
        file.write_bytes(change_values(draw, data, extra=[str(world / "elsewhere")]))
    else:
        file.write_bytes(change_text(draw, data))
    how = draw.choice(["predict", "evaluate", "go on"])
    if how == "predict":
        return how, [str(world / "image.png"), "--model-dir", str(out)]
    if how == "evaluate":
        return how, ["--eval-only", "--model-dir", str(out), "--output-dir", str(out.parent / "eval")]
    flags = ["--root", str(world / "data"), "--output-dir", str(out), "--trainer", trainer]
    return how, [*flags, *SMALL, *QUICK.get(trainer, [])]


def change_values(draw, data: bytes, extra=()) -> bytes:
    """Return a YAML file with one to three other values."""
    tree = yaml.safe_load(data)
    for key in draw.sample(sorted(flatten(tree)), draw.randint(1, 3)):
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node[section]
        word = value_for(draw, node[leaf])
        node[leaf] = draw.choice([word, word, word, *extra, None, 10**30, [None], {"a": {"b": 1}}])
    return yaml.safe_dump(tree, allow_unicode=True).encode()


def change_text(draw, data: bytes) -> bytes:
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


# ------------------------------------------------------------------ files and folders of somebody else

OWN = "VERBOSE False USE_CUDA False OPTIM.MAX_EPOCH 1 DATALOADER.NUM_WORKERS 0".split()
LISTS = ("photos.csv", "photos.json", "photos.jsonl")
BENCH = "--protocol few_shot --datasets patterns --shots 1 --seeds 1 --trainers ZeroshotCLIP CoOp".split()
FLAGS_OF = {
    "predict": "--model-dir --load-epoch --classes --template --strength --top --threshold --json --csv --picture",
    "export": "--model-dir --to --output --load-epoch --strength",
    "report": "--seeds --output-dir",
    "benchmark": "--protocol --trainers --datasets --seeds --shots --strength --cfg --workers --memory --sweep",
    "calibrate": "--model-dir --root",
    "strength": "--model-dir --output-dir --root --split --strengths",
    "prepare": "--root --list --keep-archives",
    "verify": "--root --fast",
}
WORDS = (
    "all|auto|openai|onnx|transformers|CoOp|OrthCR|digits|shapes|OxfordPets|base2new|a,b|a|,|OPTIM.LR|1e-3|test".split(
        "|"
    )
)


def own_run(world, out) -> Path:
    """Copy the training on own images, with all that may lie beside a model."""
    return shutil.copytree(world / "own", out)


def export_folder(world, to: str) -> Path:
    """Return the folder of the exported model, made when it is first asked for."""
    folder = world / "exports" / to
    if not folder.exists():
        argv = ["--model-dir", str(world / "own"), "--to", to, "--output", str(folder)]
        status, _, message, _ = call("export", argv)
        assert status == 0, message
    return folder


def formats() -> list[str]:
    """Return those formats that can be exported with what is installed."""
    other_formats = ["openai", "open_clip", "transformers"]
    return [*other_formats, "onnx"] if find_spec("onnxscript") and find_spec("onnxruntime") else other_formats


def odd_pictures(draw, world, out):
    """Predict hostile pictures by a training or an exported model."""
    folder = out.parent / "pictures"
    paths = [hostile.put_picture(draw, folder) for _ in range(draw.randint(1, 3))]
    images = [str(folder)] if draw.random() < 0.5 else [str(path) for path in paths]
    model = world / "own" if draw.random() < 0.7 else export_folder(world, draw.choice(formats()))
    flags = draw.choice([[], ["--json"], ["--csv", "table.csv"], ["--picture", "sheet.png"], ["--csv", "-"]])
    return "predict", ["--model-dir", str(model), *flags, "--", str(world / "image.png"), *images]


def odd_photos(draw, world, out):
    """Training or evaluation on own images, some of them hostile, or on a list of them that is."""
    photos = shutil.copytree(world / "photos", out.parent / "photos")
    source = photos
    if draw.random() < 0.5:
        for _ in range(draw.randint(1, 2)):
            hostile.put_picture(draw, photos / draw.choice(["cat", "dog", "", "new", "cat/.x", "@eaDir", "cat/deep"]))
    else:
        source = photos / draw.choice(LISTS)
        if source.suffix == ".csv" or draw.random() < 0.3:
            source.write_bytes(change_text(draw, source.read_bytes()))
        else:
            hostile.change_file(draw, source)
    flags = ["--images", str(source), "--output-dir", str(out)]
    flags += draw.choice([[], ["--skip-unreadable"]])
    if draw.random() < 0.25:
        return "evaluate", ["--eval-only", "--model-dir", str(world / "own"), *flags, *OWN[:4]]
    return "train", [*flags, "--trainer", draw.choice(TRAINERS[:2]), *OWN]


def odd_run(draw, world, out):
    """Run a command on an output directory of which one or two files are hostile."""
    own_run(world, out)
    files = sorted(p for p in out.rglob("*") if p.is_file() and "tensorboard" not in p.parts)
    read = [p for p in files if p.suffix in (".json", ".yaml") or ".pth" in p.name or p.name == "checkpoint"]
    near = [p for p in read if "eval" not in p.parts]
    for _ in range(draw.randint(1, 2)):
        path = draw.choice(near if draw.random() < 0.8 else read)
        if path.name == "config.yaml" and path.is_file() and draw.random() < 0.7:
            path.write_bytes(change_values(draw, path.read_bytes(), extra=[str(world / "elsewhere")]))
        else:
            hostile.change_file(draw, path)
        if draw.random() < 0.7 and (out / "config.yaml").is_file():
            remove_checksums(out / "config.yaml")
    return next_command(draw, world, out)


def remove_checksums(path: Path) -> None:
    """Remove the checksums of a config.yaml, as somebody would who changes it and the files beside it."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if not line.startswith(b"# sha256")))


def next_command(draw, world, out):
    """Return a command that reads the output directory `out`."""
    made, auto = str(out.parent / "made"), draw.choice([[], [], ["--strength", "auto"]])
    return draw.choice(
        [
            ("predict", ["--model-dir", str(out), str(world / "image.png"), *auto]),
            ("predict", ["--model-dir", str(out), str(world / "image.png"), "--classes", "a,b"]),
            ("evaluate", ["--eval-only", "--model-dir", str(out), "--output-dir", made, *auto]),
            ("go on", ["--images", str(world / "photos"), "--output-dir", str(out), "--trainer", "OrthCR", *OWN]),
            ("export", ["--model-dir", str(out), "--output", made, "--to", draw.choice(formats()[:3])]),
            ("calibrate", ["--model-dir", str(out)]),
            ("strength", ["--model-dir", str(out), "--output-dir", made]),
            ("report", [str(out), "--output-dir", made]),
        ]
    )


def odd_export(draw, world, out):
    """Use an exported folder with a hostile file, for prediction or as the backbone of a training."""
    to = draw.choice(formats())
    shutil.copytree(export_folder(world, to), out)
    path = draw.choice([out / "export.json", draw.choice(sorted(out.iterdir()))])
    if draw.random() < 0.6 and path.name != "export.json":  # as somebody would who makes it by hand
        facts = json.loads((out / "export.json").read_bytes())
        facts.pop("sha256", None)
        facts.pop("files", None)
        (out / "export.json").write_text(json.dumps(facts))
    hostile.change_file(draw, path)
    if draw.random() < 0.7 or to == "onnx":
        words = draw.choice([[], [], ["--classes", "a,b"], ["--csv", "table.csv"], ["--json"]])
        return "predict", ["--model-dir", str(out), str(world / "image.png"), *words]
    root = ["--root", str(world / "data"), "--output-dir", str(out.parent / "made")]
    return "train", [*root, "--trainer", "CoOp", "--backbone", str(out), *SMALL]


def odd_results(draw, world, out):
    """Report on a tree of hostile results and logs."""
    for name in ("own", *TRAINERS[:2], "bench"):
        keep = ("results.json", "config.yaml", "log.txt")
        for path in (world / name).rglob("*"):
            if path.is_file() and path.name.startswith(keep):
                place = out / path.relative_to(world)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)
    files = sorted(p for p in out.rglob("*") if p.is_file())
    for path in draw.sample(files, draw.randint(1, 3)):
        if path.name.startswith("log.txt") and draw.random() < 0.7:
            results = path.parent / "results.json"
            if not results.is_dir():  # of the file that was changed before
                results.unlink(missing_ok=True)
            path.write_bytes(change_text(draw, path.read_bytes()))
        elif path.is_file():
            hostile.change_file(draw, path)
    return "report", [str(out), *draw.choice([[], ["--output-dir", str(out.parent / "made")], ["--seeds", "1", "7"]])]


def odd_benchmark(draw, world, out):
    """Resume a benchmark in a tree with hostile files, or start one with odd words."""
    base_ = ["--root", str(world / "data"), "--output-dir", str(out), *BENCH]
    small = ["OPTIM.MAX_EPOCH", "1", "VERBOSE", "False"]
    if draw.random() < 0.5:
        shutil.copytree(world / "bench", out)
        files = sorted(p for p in out.rglob("*") if p.is_file() and "tensorboard" not in p.parts)
        for path in draw.sample(files, draw.randint(1, 2)):
            hostile.change_file(draw, path)
        return "benchmark", [*base_, *small]
    words = odd_words(draw, "benchmark", base_)
    return "benchmark", words + (small if draw.random() < 0.8 else [draw.choice([*ODD, *WORDS])] * draw.randint(1, 3))


def odd_words(draw, name: str, words: list[str]) -> list[str]:
    """Return the words of a command with one to three flags or values more, fewer or exchanged."""
    words = list(words)
    for _ in range(draw.randint(1, 3)):
        if draw.random() < 0.6:
            values = [draw.choice([*ODD, *WORDS]) for _ in range(draw.choice([0, 1, 1, 1, 1, 2]))]
            words += [draw.choice(FLAGS_OF[name].split()), *values]
        else:
            place = draw.randrange(len(words) + 1)
            words[place : place + draw.randint(0, 2)] = [draw.choice([*ODD, *WORDS])] * draw.randint(0, 1)
    return words


def odd_flags(draw, world, out):
    """Run a command other than train.py with odd words."""
    model, made = str(world / "own"), str(out.parent / "made")
    pictures = [str(world / "image.png")]
    name, words = draw.choice(
        [
            ("predict", ["--model-dir", model, *pictures]),
            ("predict", ["--model-dir", str(export_folder(world, draw.choice(formats()))), *pictures]),
            ("export", ["--model-dir", model, "--to", draw.choice(formats()), "--output", made]),
            ("report", [model, str(world / "CoOp"), "--output-dir", made]),
            ("calibrate", ["--model-dir", str(own_run(world, out))]),
            ("strength", ["--model-dir", model, "--output-dir", made]),
        ]
    )
    return name, odd_words(draw, name, words)


def odd_data(draw, world, out):
    """`prepare` without downloading, and `verify` of a data set with hostile files."""
    if draw.random() < 0.4:
        words = odd_words(draw, "prepare", ["--root", str(out), draw.choice(["OxfordPets", "dtd", "all", "x"])])
        return "prepare", ["--dry-run", *words]
    shutil.copytree(world / "sets", out)
    pets = out / "oxford_pets"
    way = draw.random()
    if way < 0.5:
        hostile.change_file(draw, pets / "split_zhou_OxfordPets.json")
    elif way < 0.8:
        (pets / "images" / "0.jpg").unlink()
        hostile.put_picture(draw, pets / "images").rename(pets / "images" / "0.jpg")
    else:
        hostile.put_odd_thing(draw, draw.choice([pets, pets / "images", pets / "images" / "1.jpg"]))
    words = ["--root", str(out), "OxfordPets"]
    if draw.random() < 0.3:
        return "train", [
            *[
                "--root",
                str(out),
                "--output-dir",
                str(out.parent / "made"),
                "--trainer",
                "CoOp",
                "--dataset-config-file",
            ],
            *[str(CONFIGS / "datasets" / "oxford_pets.yaml"), *OWN, "DATASET.NUM_SHOTS", "1"],
        ]
    return "verify", words if draw.random() < 0.7 else odd_words(draw, "verify", words)


def odd_descriptions(draw, world, out):
    """Training with descriptions of somebody else that are hostile, or a run of CuPL whose copy of them is."""
    if draw.random() < 0.3:
        shutil.copytree(world / "CuPL", out)
        hostile.change_file(draw, out / "descriptions.json")
        if draw.random() < 0.7:
            remove_checksums(out / "config.yaml")
        words = draw.choice([[], ["--classes", "zero,one"], ["--classes", "a,b"]])
        return "predict", ["--model-dir", str(out), str(world / "image.png"), *words]
    file = shutil.copyfile(CONFIGS / "descriptions" / "embedded.json", out.parent / "mine.json")
    hostile.change_file(draw, file)
    trainer = draw.choice(["CuPL", "KgCoOp", "PromptSRC", "OrthCR"])
    flags = ["--root", str(world / "data"), "--output-dir", str(out), "--trainer", trainer]
    return "train", [*flags, "--descriptions", str(file), *SMALL, *QUICK.get(trainer, [])]


def odd_split(draw, world, out):
    """Training or evaluation with a few-shot split of somebody else that is hostile."""
    for name in ("few_train.jsonl", "few_val.jsonl"):
        shutil.copyfile(world / name, out.parent / name)
    path = out.parent / draw.choice(["few_train.jsonl", "few_train.jsonl", "few_val.jsonl"])
    if draw.random() < 0.7:
        lines = path.read_bytes().splitlines()
        place = draw.randrange(len(lines))
        lines[place] = hostile.change_json(draw, lines[place]).replace(b"\n", b" ")
        path.write_bytes(b"\n".join(lines))
    else:
        hostile.change_file(draw, path)
    flags = ["--few-shot-split", str(out.parent / "few_train.jsonl"), "--output-dir", str(out)]
    if draw.random() < 0.2:
        return "evaluate", ["--eval-only", "--model-dir", str(world / "CoOp"), *flags, "TEST.SPLIT", "val"]
    return "train", ["--root", str(world / "data"), *flags, "--trainer", "CoOp", *SMALL]


SETTINGS = (odd_command, odd_command, must_fail, odd_yaml, odd_yaml, odd_folder, odd_folder)
FILES = (
    odd_pictures,
    odd_photos,
    odd_run,
    odd_run,
    odd_export,
    odd_results,
    odd_benchmark,
    odd_flags,
    odd_data,
    odd_split,
    odd_descriptions,
)
KINDS = {kind.__name__: kind for kind in (*SETTINGS, *FILES)}


# ------------------------------------------------------------------ what must hold


def check_refused(command: str, message: str) -> None:
    lines = [line for line in message.splitlines() if line.startswith("error: ") or ": error: " in line]
    if not lines or len(lines) > 1 and command not in SEVERAL or "Traceback" in message:
        raise NonsenseError(f"not one line: {message[-300:]!r}")
    for line in lines:
        echoes = ": error: " in line  # argparse says the user's own words again
        if not 20 < len(line) < 1500 or not (echoes or line.isprintable()):
            raise NonsenseError(f"not a line for people: {line[:300]!r}")
        if re.search(r"<[^>]*object|NoneType|has no attribute|unsupported operand|0x[0-9a-f]{8}|Errno", line):
            raise NonsenseError(f"words of Python: {line[:300]}")
        if "not enough memory" in line:
            raise NonsenseError(f"the memory was filled: {line[:300]}")


def check_ran(command: str, argv: list[str], out: str, printed: str) -> None:
    if command == "must fail":
        raise NonsenseError("accepted")
    if command in ("predict", "report", "strength", "calibrate"):
        if re.search(r"\bnan\b", printed):
            raise NonsenseError(f"figures: {printed[-200:]}")
    if command in COMMANDS:
        return
    if "--no-train" in argv and "--eval-only" not in argv:
        return

    def strict(word):
        raise NonsenseError(f"results.json has {word}")

    results = json.loads(Path(out, "results.json").read_text(), parse_constant=strict)
    if "accuracy" in results and not 0 <= results["accuracy"] <= 100:
        raise NonsenseError(f"accuracy {results['accuracy']}")
    check_sane(results["config"], training=not results["eval_only"])


def check_sane(config: dict, training: bool) -> None:
    """Raise Nonsense for a config that no reader of a paper would believe."""
    default = defaults(config["TRAINER.NAME"])
    for key, value in config.items():
        is_list = isinstance(default[key], list)
        for one in value if is_list and isinstance(value, list) else [value]:
            pattern = default[key][:1] if is_list else [default[key]]
            if key.endswith(".STRENGTH") and one == AUTO:
                continue
            if type(one) is not type((pattern or [one])[0]) and not (type(one) is int and type(pattern[0]) is float):
                raise NonsenseError(f"{key} is {value!r}")
            if isinstance(one, float) and not math.isfinite(one):
                raise NonsenseError(f"{key} is {value!r}")
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
            raise NonsenseError(f"insane: {name}")


# ------------------------------------------------------------------ running


def call(command: str, argv: list[str]) -> tuple[int, str, str, str]:
    """(exit status, stdout, stderr, output directory that the run had)."""
    printed, errors, output_dir = io.StringIO(), io.StringIO(), []

    def set_up(args):
        cfg = setup_cfg(args)
        output_dir.append(cfg.OUTPUT_DIR)
        return cfg

    context = mock.patch.object(runner, "setup_cfg", set_up)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors), context:
        try:
            status = COMMANDS.get(command, runner.main)(argv)
        except SystemExit as end:
            status = end.code
    return status, printed.getvalue(), errors.getvalue(), output_dir[-1] if output_dir else ""


def run_in_this_process(work, jobs, slots) -> Iterator[tuple]:
    """Do the jobs of a plan, one after the other, as `engines.run_locally` does them side by side."""
    for job in jobs:
        yield job, work(job)


def forbid_download(*_args, **_kwargs):
    raise AssertionError("something was to be downloaded")


@contextlib.contextmanager
def shorten_runs():
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
        mock.patch.object(engines, "run_locally", run_in_this_process),
        mock.patch.object(prepare, "fetch", forbid_download),
        mock.patch("urllib.request.urlopen", forbid_download),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def make_world(world: Path) -> None:
    """Make data, images, finished trainings, one of them on own images, a benchmark and a data set to be verified."""
    Image.new("RGB", (40, 50), "teal").save(world / "image.png")
    for trainer in TRAINERS[:2]:
        flags = ["--root", str(world / "data"), "--output-dir", str(world / trainer), "--trainer", trainer]
        succeed("train", [*flags, *SMALL, *QUICK.get(trainer, [])])
    cupl = ["--root", str(world / "data"), "--output-dir", str(world / "CuPL"), "--trainer", "CuPL"]
    succeed("train", [*cupl, *SMALL])
    split = json.loads((world / "data" / "shapes" / "split.json").read_text())
    for part in ("train", "val"):
        first = {label: (path, name) for path, label, name in reversed(split[part])}
        keys = "_impath", "_label", "_domain", "_classname"
        lines = [zip(keys, (f"shapes/images/{p}", k, -1, n), strict=True) for k, (p, n) in sorted(first.items())]
        (world / f"few_{part}.jsonl").write_text("".join(json.dumps(dict(line)) + "\n" for line in lines))
    rows = []
    for number in range(16):
        name = ("cat", "dog")[number % 2]
        place = world / "photos" / name / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30 + number), (12 * number, 90, 30)).save(place)
        rows.append({"path": str(place.relative_to(world / "photos")), "label": name})
    lines = [json.dumps(row) + "\n" for row in rows]
    (world / "photos" / "photos.jsonl").write_text("".join(lines))
    (world / "photos" / "photos.json").write_text(json.dumps(rows))
    (world / "photos" / "photos.csv").write_text("path,label\n" + "".join(f"{r['path']},{r['label']}\n" for r in rows))
    photos = ["--images", str(world / "photos"), "--output-dir", str(world / "own"), "--trainer", "OrthCR"]
    succeed("train", [*photos, *OWN, *QUICK["OrthCR"]])
    evaluation = ["--eval-only", "--model-dir", str(world / "own"), "--strength", "auto"]  # which keeps strength.json
    succeed("evaluate", [*evaluation, "--output-dir", str(world / "own" / "eval" / "auto")])
    call("calibrate", ["--model-dir", str(world / "own")])
    write_temperature(world / "own")
    small = ["OPTIM.MAX_EPOCH", "1", "VERBOSE", "False"]
    succeed("benchmark", ["--root", str(world / "data"), "--output-dir", str(world / "bench"), *BENCH, *small])
    (world / "exports").mkdir()
    images = world / "sets" / "oxford_pets" / "images"
    images.mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (30, 30), (40 * number, 9, 9)).save(images / f"{number}.jpg")
    split = {part: [[f"{k}.jpg", k % 2, ("cat", "dog")[k % 2]] for k in range(6)] for part in ("train", "val", "test")}
    (images.parent / "split_zhou_OxfordPets.json").write_text(json.dumps(split))


def succeed(command: str, argv: list[str]) -> None:
    status, _, message, _ = call(command, argv)
    assert status == 0, message


def write_temperature(folder: Path) -> None:
    """Make a temperature.json if calibration had none to write, as all val images may be right."""
    if not (folder / "temperature.json").exists():
        identity = {"checkpoints": {}, "strength": 1.0}
        (folder / "temperature.json").write_text(json.dumps({"temperature": 1.5, "split": "val", "of": identity}))


# ------------------------------------------------------------------ cases, in processes that may die


@dataclass
class Report:
    """The outcomes of all cases, as "kind: outcome", a text on each fault, and what the largest case took."""

    outcomes: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    memory: tuple[int, int] = (0, 0)  # MiB beyond the start, and the case
    seconds: tuple[float, int] = (0.0, 0)


def prepare_world(folder: Path) -> Path:
    """Fill a folder with the trainings, exports and photographs that the cases change; return it."""
    world = folder.resolve()
    with shorten_runs():
        if run_in_child(lambda tell: make_world(world), lambda row: None, seconds=600):
            raise AssertionError("the world cannot be made")
    return world


def fuzz(world: Path, count: int, seed: int, start: int = 0, verbose=False, kinds=SETTINGS, to_first=False) -> Report:
    """Run the cases `start` to `start + count`, in child processes.

    Args:
        world: folder of `prepare_world`.
        count: number of cases.
        seed: seed of the cases.
        start: number of the first case.
        verbose: whether to print each case.
        kinds: functions that draw a case.
        to_first: whether to stop at the first fault.
    """
    report_ = Report()
    with shorten_runs():
        for package in (trainers, datasets):
            discover(package)
        case, end = start, start + count

        def keep(row: Row) -> None:
            nonlocal case
            add(report_, row, verbose)
            case = row.case + 1

        while case < end and not (to_first and report_.faults):
            work = partial(run_cases, range(case, end), seed, world, kinds, to_first)
            status = run_in_child(work, keep, SECONDS)
            if case < end and not (to_first and report_.faults):
                outcome = "hang" if status is None else "killed"
                kind, how, argv = describe(world)
                add(report_, Row(case, kind, how, argv, outcome, f"exit status {status}"), verbose)
                case += 1
    return report_


@dataclass
class Row:
    """A case: what was called, how it ended and what it took."""

    case: int
    kind: str
    how: str
    argv: list[str]
    outcome: str
    why: str = ""
    said: str = ""
    memory: int = 0
    seconds: float = 0.0


def add(report_: Report, row: Row, verbose: bool) -> None:
    report_.outcomes[f"{row.kind}: {row.outcome}"] += 1
    report_.memory = max(report_.memory, (row.memory, row.case))
    report_.seconds = max(report_.seconds, (row.seconds, row.case))
    if row.outcome not in ("refused", "ran"):
        report_.faults.append(f"case {row.case}, {row.kind}: {row.how} {' '.join(map(ascii, row.argv))}\n    {row.why}")
    if verbose:
        print(
            f"{row.case} {row.kind} {row.how}, {row.outcome}, {row.memory} MiB, {row.seconds:.1f} s: {row.said}",
            flush=True,
        )


def run_in_child(work, keep, seconds: float) -> int | None:
    """Call work(tell) in a forked process, and keep(row) here for each row that it tells.

    Returns:
        Its exit status; None if nothing was told for `seconds`.
    """
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = fork()
    if not child:
        status = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as pipe:
                work(lambda row: print(json.dumps(vars(row)), file=pipe, flush=True))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(writing)
    hanging = False
    with os.fdopen(reading) as pipe:
        while not hanging:
            hanging = not select.select([pipe], [], [], seconds)[0]
            line = "" if hanging else pipe.readline()  # a row is written at once
            if line:
                keep(Row(**json.loads(line)))
            else:
                break
    if hanging:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if hanging else status


def run_cases(cases: range, seed: int, world: Path, kinds, to_first: bool, tell) -> None:
    """Run cases one after the other; `tell` gets the row of each. Stop at the first fault if `to_first`."""
    os.chdir(world)
    clean(world)
    limit_memory()
    files_before = contents(world)
    for case in cases:
        row = run_case(case, seed, world, kinds)
        clean(world)
        lost_files = sorted(files_before ^ contents(world))
        files_before = contents(world)
        if lost_files and row.outcome in ("refused", "ran"):
            row.outcome, row.why = "nonsense", f"changed outside: {lost_files[:5]}"
        tell(row)
        if to_first and row.outcome not in ("refused", "ran"):
            return


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + (ADDRESSES << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def clean(world: Path) -> None:
    """Remove what the last case made."""
    for path in (world / "case", world / "note.json"):
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def contents(world: Path) -> set[tuple]:
    """Return {(path, bytes, time)} of all files of the world, but for data that are drawn, and exports."""
    files = set()
    for path in world.rglob("*"):
        if path.relative_to(world).parts[0] not in ("data", "exports", "case", "note.json") and path.is_file():
            stat = path.lstat()
            files.add((str(path.relative_to(world)), stat.st_size, stat.st_mtime_ns))
    return files


def describe(world: Path) -> tuple[str, str, list[str]]:
    """Return what the case is that its process did not survive."""
    try:
        return tuple(json.loads((world / "note.json").read_text()))
    except (OSError, ValueError):
        return "unknown", "unknown", []


def run_case(case: int, seed: int, world: Path, kinds) -> Row:
    draw = random.Random(f"{seed} {case}")
    mutate, sandbox = draw.choice(kinds), world / "case"
    sandbox.mkdir()
    os.chdir(sandbox)
    (world / "note.json").write_text(json.dumps([mutate.__name__, "making it", []]))
    how, argv = mutate(draw, world, sandbox / "out")
    (world / "note.json").write_text(json.dumps([mutate.__name__, how, argv]))
    row, start, memory = Row(case, mutate.__name__, how, argv, "refused"), time.time(), forget_peak()
    try:
        status, printed, said, out = call(how, argv)
        row.said = (said.strip().splitlines()[-1:] or [""])[0][:500]
        if status:
            check_refused(how, said)
        else:
            row.outcome = "ran"
            check_ran(how, argv, out, printed)
        if list(world.rglob("pwned")):
            raise NonsenseError("code of the file ran")
    except NonsenseError as error:
        row.outcome, row.why = "nonsense", str(error)
    except Exception:
        row.outcome, row.why = "traceback", "".join(traceback.format_exc().splitlines(True)[-8:])
    finally:
        os.chdir(world)
    row.memory, row.seconds = peak() - memory, time.time() - start
    if row.memory > MEMORY and row.outcome != "traceback":
        row.outcome, row.why = "memory", f"{row.memory} MiB: {row.said}"
    if row.seconds > SECONDS:
        row.outcome, row.why = "hang", f"{row.seconds:.0f} s: {row.said}"
    return row


def forget_peak() -> int:
    """Let the peak begin anew; return the MiB that the process has now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Return the most MiB that the process had at once since `forget_peak`."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", text)[1]) >> 10


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="only cases of these functions; default: all")
    parser.add_argument("--verbose", action="store_true", help="print what each case said")
    args = parser.parse_args(argv)
    kinds = tuple(KINDS[name] for name in args.kinds or KINDS)
    with tempfile.TemporaryDirectory() as folder:
        world = prepare_world(Path(folder))
        result = fuzz(world, args.count, args.seed, args.start, args.verbose, kinds)
    for fault in result.faults:
        print(fault)
    for outcome, number in sorted(result.outcomes.items()):
        print(f"{number:5} {outcome}")
    memory, seconds = result.memory, result.seconds
    print(f"at most {memory[0]} MiB (case {memory[1]}) and {seconds[0]:.1f} s (case {seconds[1]})")
    return 1 if result.faults else 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
