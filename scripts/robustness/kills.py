"""Kills real commands at random moments, gives them again, and compares with a command that nobody disturbed.

    python -m scripts.robustness.kills --count 100 --seed 0
    python -m scripts.robustness.kills --cases export calibrate

A trial of a training is a process of its own that draws its data, trains, keeps a checkpoint after each epoch, and
tests. TPT and TDA train nothing; they keep the state of their test after each batch. A trial of another command reads
a finished training and writes beside it. benchmark.py has a script of its own, kill_benchmark.py. A trial gets
SIGKILL, SIGTERM or SIGINT, half of the time at a random moment of its life, half of it up to 3 ms after a random one
of its changes to files (open, mkdir, rename, remove), where a write may be under way. It is killed once to three times
and then left alone. Then it must have left the files of the undisturbed run and no more: weights, optimizer and random
generators bit for bit, and the data set; logs and times are not compared.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

import export
import predict
import report
from dassl.engine import TrainerBase
from dassl.utils import load_checkpoint
from datasets.shapes import Shapes
from orthcr import calibrate
from orthcr.compare import strength_curve
from orthcr.run.runner import main as train
from scripts.robustness.processes import fork

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")  # audit events
NOT_COMPARED = ("seconds", "peak_memory_mib", "sha256", "git_revision")
SMALL = "VERBOSE False DATASET.SUBSAMPLE_CLASSES base DATASET.NUM_SHOTS 4 OPTIM.MAX_EPOCH 3".split()
ORTHCR = "TRAINER.ORTHCR.LAYERS [-1] TRAINER.ORTHCR.BLOCK_SIZE 16".split()
INTERRUPTED_STATUSES = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 130)  # exit statuses


@dataclass(frozen=True)
class Case:
    """A command that is killed.

    Attributes:
        words: its arguments, with {} for the folder of the trial.
        main: `main` of its entry point.
        once: the path that it makes and that no second run may replace.
    """

    words: tuple[str, ...]
    main: Callable = train
    once: str = ""

    @property
    def trains(self) -> bool:
        return self.main is train

    def argv(self, folder: Path) -> list[str]:
        return [word.replace("{}", str(folder)) for word in self.words]


def training(trainer: str, *opts: str) -> Case:
    flags = ["--root", "{}/data", "--output-dir", "{}/out", "--seed", "1", "--trainer", trainer]
    return Case((*flags, *SMALL, *opts))


def make_case(main: Callable, words: str, once: str = "") -> Case:
    """Return the case of a command that reads the finished training {}/model."""
    return Case(tuple(words.split()), main, once)


CASES = {  # what is run, beside the data set of 40 classes
    "OrthCR": training("OrthCR", *ORTHCR),
    "CoOp": training("CoOp", "TRAIN.CHECKPOINT_FREQ", "2", "TEST.FINAL_MODEL", "best_val"),
    "workers": training("CoOp", "DATALOADER.NUM_WORKERS", "2"),
    "TPT": training("TPT", "DATALOADER.TEST.BATCH_SIZE", "2", "TRAINER.TPT.VIEWS", "4"),
    "TDA": training("TDA", "DATALOADER.TEST.BATCH_SIZE", "1"),
    "openai": make_case(export.main, "--model-dir {}/model --to openai --output {}/out/model", "out/model"),
    "transformers": make_case(export.main, "--model-dir {}/model --to transformers --output {}/out/model", "out/model"),
    "calibrate": make_case(calibrate.main, "--model-dir {}/model --root {}/data"),
    "csv": make_case(predict.main, "--model-dir {}/model {}/images --csv {}/table.csv --picture {}/sheet.png"),
    "report": make_case(report.main, "{}/model --output-dir {}/out"),
    "strength": make_case(
        strength_curve.main, "--model-dir {}/model --root {}/data --output-dir {}/out --strengths 0 1"
    ),
}


def make_model(folder: Path) -> None:
    """Make what a command needs that trains nothing: a model with its data, and images."""
    folder.mkdir()
    flags = ["--root", str(folder / "data"), "--output-dir", str(folder / "model")]
    status, *_ = count_changes(*start(Case((*flags, *SMALL, *ORTHCR)), folder))
    assert status == 0, Path(f"{folder}.txt").read_text()
    (folder / "images").mkdir()
    for number in range(60):
        Image.effect_noise((60, 40), 4 * number).convert("RGB").save(folder / "images" / f"{number}.png")


# ------------------------------------------------------------------ one run, in a process of its own


def start(case: Case, folder: Path) -> tuple[int, int]:
    """Fork a run, for which nothing needs importing again; return its id and a pipe: a byte for each change."""
    reading, writing = os.pipe()
    child = fork()
    if child:
        os.close(writing)
        return child, reading
    status = 1
    try:
        os.close(reading)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has it ignored
        TrainerBase.resume_interval = 0.0  # a checkpoint after every epoch
        Shapes.images = {"train": 4, "val": 1, "test": 1}
        me = os.getpid()

        def tell(event, args):
            if event in CHANGES and os.getpid() == me and str(args[0]).startswith(str(folder)):
                if event != "open" or args[2] & (os.O_WRONLY | os.O_RDWR):
                    os.write(writing, b".")

        sys.addaudithook(tell)
        with open(f"{folder}.txt", "a") as f, redirect_stdout(f), redirect_stderr(f):
            try:
                status = case.main(case.argv(folder))
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(status)


def count_changes(child: int, changes: int) -> tuple[int, int, float]:
    """Wait for a run; return its exit status, number of changes, and seconds."""
    start_time, n_seen = time.time(), 0
    while data := os.read(changes, 4096):
        n_seen += len(data)
    os.close(changes)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), n_seen, time.time() - start_time


def kill(child: int, changes: int, rng: random.Random, life: tuple[int, float]) -> tuple[int, str]:
    """End a run with a random signal at a random moment; return its exit status and the signal with its moment."""
    number = rng.choice(SIGNALS)
    if rng.random() < 0.5:
        description = "at any moment"
        time.sleep(rng.uniform(0, life[1]))
    else:
        description = "while writing"
        for _ in range(rng.randint(1, life[0])):
            os.read(changes, 1)
        time.sleep(rng.uniform(0, 0.003))
    os.kill(child, number)
    os.set_blocking(changes, True)
    status, *_ = count_changes(child, changes)
    return status, f"{number.name} {description}"


# ------------------------------------------------------------------ what it leaves


def read_files(folder: Path) -> dict[str, object]:
    """Return {path: the part of its content to compare}, without logs, of which every start leaves one."""
    contents = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.name.startswith(("log.txt", "events.out")):
            continue
        if ".pth.tar" in path.name and not path.name.startswith("."):
            content = load_checkpoint(str(path))
            content.pop("train_seconds")
        elif path.name == "results.json":
            content = {key: value for key, value in json.loads(path.read_text()).items() if key not in NOT_COMPARED}
            content["config"] = {k: value for k, value in content["config"].items() if str(folder) not in str(value)}
        elif path.name == "config.yaml":
            lines = path.read_text().replace(str(folder), "").splitlines()
            content = [line for line in lines if not line.startswith("# sha256: ")]
        else:
            content = path.read_bytes().replace(str(folder).encode(), b"")
        contents[name] = content
    return contents | {p.relative_to(folder).as_posix() + "/": None for p in folder.rglob("*") if p.is_dir()}


def are_equal(a: object, b: object) -> bool:
    """Equality of nested containers with tensors, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(are_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(are_equal, a, b))
    return a == b or (a != a and b != b)  # NaN


def differences(a: dict, b: dict) -> list[str]:
    return sorted(a.keys() ^ b.keys()) + [name for name in a if name in b and not are_equal(a[name], b[name])]


# ------------------------------------------------------------------ all of it


def moment(folder: Path, trains: bool) -> str:
    """Return the phase in which a run was killed, by the files that it left."""
    names = {path.name for path in folder.rglob("*")}
    if any(name.endswith(".tmp") for name in names):
        return "in the middle of a write"
    if any(name.startswith(".orthcr-export-") for name in names):
        return "in the middle of an export"
    if not trains:
        return "in another command"
    if "split.json" not in names:
        return "drawing" if any(name.startswith(".Shapes-") for name in names) else "starting"
    if "config.yaml" not in names:
        return "reading data"
    return "training" if "results.json" not in names else "ending"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="kills, default: 100")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--cases", nargs="+", choices=CASES, help="only these; default: all")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    names = args.cases or list(CASES)
    rng, counts, failures, n_kills = random.Random(args.seed), Counter(), [], 0
    with tempfile.TemporaryDirectory() as scratch:
        scratch, whole, lives = Path(scratch), {}, {}
        model = scratch / "whole"
        if not all(CASES[name].trains for name in names):
            make_model(model)
        for name in names:
            case, folder = CASES[name], scratch / "trial"
            folder.mkdir()
            if not case.trains:
                shutil.copytree(model, folder, dirs_exist_ok=True)
            for case_names in (False, True):
                shutil.rmtree(folder / "out", ignore_errors=True)
                status, *lives[name, case_names] = count_changes(*start(case, folder))
                assert status == 0, Path(f"{folder}.txt").read_text()
            whole[name] = read_files(folder)
            if case.trains:
                shutil.move(folder / "data", scratch / f"data of {name}")
            shutil.rmtree(folder)
        trial = 0
        while n_kills < args.count:
            trial += 1
            name, history = rng.choice(names), []
            case, folder = CASES[name], scratch / "trial"  # the same for all, as files have its name
            folder.mkdir()
            log = Path(f"{folder}.txt")
            log.write_text("")
            case_names = rng.random() < 0.7
            if not case.trains:
                shutil.copytree(model, folder, dirs_exist_ok=True)
            elif case_names:
                shutil.copytree(scratch / f"data of {name}", folder / "data")
            for _ in range(min(rng.randint(1, 3), args.count - n_kills)):
                if case.once and (folder / case.once).exists():
                    break
                status, moment_of_kill = kill(*start(case, folder), rng, lives[name, case_names])
                at = moment(folder, case.trains)
                history.append(f"{moment_of_kill}, {at}")
                if status == 0:  # it was done before
                    break
                n_kills += 1
                counts.update([moment_of_kill.split()[0], at, name])
                if status not in INTERRUPTED_STATUSES:
                    history.append(f"exit status {status}, {log.read_text()[-2500:]}")
                    failures.append(f"trial {trial}, {name}, {'; '.join(history)}")
            if not (case.once and (folder / case.once).exists()):
                status, *_ = count_changes(*start(case, folder))
            else:
                status = 0
            changed_paths = differences(whole[name], read_files(folder))
            if status or changed_paths:
                output = log.read_text()[-500:]
                failures.append(
                    f"trial {trial}, {name}, {'; '.join(history)}: status {status}, {changed_paths}\n{output}"
                )
            shutil.rmtree(folder)
    print("".join(f"{line}\n" for line in failures), end="")
    moments = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    print(
        f"{n_kills} kills in {trial} runs ({moments}): {len(failures)} of these runs did not end as the undisturbed one"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
