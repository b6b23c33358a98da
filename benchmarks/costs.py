"""Figures of docs/ that are no case of `python -m benchmarks`, each a function that can be run again.

    python -m benchmarks.costs                      all, some 9 minutes, of which 5 compile
    python -m benchmarks.costs merged start         some

Each prints a table and is added to costs.json in --output-dir. CLIP's architecture with random weights, JPEGs of noise,
one thread. CPU seconds are those of the process and of what it started and waited for: medians of rounds in which what
is compared takes turns, so a ratio is of one run. Wall times suffer from others on the machine, whose load is noted.
Where there is a GPU, CPU seconds of a model are the time between events instead.
"""

import argparse
import copy
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple
from unittest import mock

import torch
from PIL import Image
from tabulate import tabulate
from tqdm import tqdm

from dassl.command import command
from dassl.data.data_manager import build_data_loader
from dassl.data.transforms import build_transform
from dassl.files import read_json, write_json
from dassl.streams import progress
from experiments.run import git_revision
from trainers import orthcr
from trainers.shared.rotations import Rotations

from .__main__ import date
from .cases import FIRST, Case
from .measure import Watch, build, draw_jpegs, epoch_seconds, in_turn, items_of, random_clip
from .steps import ROOT, Steps

NAME = "costs.json"
Rows = list[dict]  # of a table, by heading


class Bench(NamedTuple):
    """What a figure gets.

    Attributes:
        folder: for what it writes; random CLIPs stay there for the next one.
        say: tells what is running.
    """

    folder: Path
    say: Callable[[str], None]

    def scratch(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))

    def build(self, case: Case):
        """The trainer of a case, in this process."""
        self.say(f"builds {case.trainer}")
        with redirect_stdout(StringIO()):
            return build(case, random_clip(case.backbone, self.folder), self.scratch())

    def steps(self, case: Case, opts: list[str] = (), n: int = 1, env: dict[str, str] | None = None) -> Steps:
        """The same in processes of its own."""
        self.say(f"builds {case.trainer} {' '.join(opts)}")
        return Steps(case, random_clip(case.backbone, self.folder), opts, n, env)


# -------------------------------------------------------------------- OrthCR's rotations: docs/speed.md


class Unrotated(torch.autograd.Function):
    """W x + b in place of `RotatedLinear`, with the same gradient of x, and none of R."""

    @staticmethod
    def forward(ctx, x, r, weight, bias):
        ctx.save_for_backward(r, weight)
        return torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight.t()).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx, grad):
        r, weight = ctx.saved_tensors
        dx = (grad.reshape(-1, grad.shape[-1]) @ weight).unflatten(0, grad.shape[:-1])
        return dx if ctx.needs_input_grad[0] else None, torch.zeros_like(r), None, None


@contextmanager
def unrotated():
    """Inside, OrthCR's step is what it would be without rotations: no R, no W R, no gradient of either."""
    some = mock.patch.object(Rotations, "compute", lambda self, names, s, exact: {n: self.upper[n][0] for n in names})
    linear = mock.patch.object(orthcr, "rotated_linear", lambda change, x, w, b: Unrotated.apply(x, change.r, w, b))
    with some, linear:
        yield


def rotations(bench: Bench, backbone=FIRST, classes=50, batches=(4, 32), rounds=5) -> Rows:
    """All that rotations cost in a step: R, rotating, forward and backward; of a turn the second step is measured."""
    rows = []
    for batch in batches:
        trainer = bench.build(Case("train", "OrthCR", backbone, classes, batch, "fp32"))
        given, watch = next(iter(trainer.train_loader_x)), Watch(trainer.device)
        trainer.set_model_mode("train")

        def turn(form, trainer=trainer, given=given, watch=watch):
            with form():
                trainer.forward_backward(given)  # malloc gives memory back and fetches it again where steps differ
                with watch.span("step"):
                    trainer.forward_backward(given)
            return watch.read()

        bench.say(f"steps, batch {batch}")
        works = {"rotated": partial(turn, nullcontext), "unrotated": partial(turn, unrotated)}
        taken = in_turn(works, rounds if batch <= 4 else 1)
        with_them, without = (taken[name]["step"]["seconds"] for name in works)
        rows.append(
            {"batch": batch, "step, s": with_them, "without, s": without, "share, %": 100 - 100 * without / with_them}
        )
    return rows


# -------------------------------------------------------------------- TRAIN.COMPILE: docs/speed.md


def compiled(bench: Bench, trainers: tuple = ("OrthCR", "CoOp"), backbone=FIRST, classes=50, batch=4, rounds=3) -> Rows:
    """A step with TRAIN.COMPILE beside a plain one. The compiler has one process, and a cache that is empty.

    The first two steps are what compiling costs: in the second, plans that the first made are compiled with.
    """
    rows = []
    for trainer in trainers:
        case, cache = Case("train", trainer, backbone, classes, batch, "fp32"), str(bench.scratch())
        alone = {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        with bench.steps(case) as plain, bench.steps(case, ["TRAIN.COMPILE", "True"], env=alone) as fast:
            plain.ready(), fast.ready()  # both, before one is measured
            bench.say(f"compiles {trainer}")
            begun = [[steps()["step"] for _ in range(2)] for steps in (plain, fast)]
            (plain_cpu, plain_wall), (cpu, wall) = (map(sum, zip(*pairs, strict=True)) for pairs in begun)
            bench.say(f"steps of {trainer}")
            taken = in_turn({"plain": plain, "compiled": fast}, rounds)
        step = {name: some["step"] for name, some in taken.items()}
        row = {"trainer": trainer, "plain s": step["plain"]["seconds"], "compiled s": step["compiled"]["seconds"]}
        row["plain / compiled"] = row["plain s"] / row["compiled s"]
        row |= {"to compile, CPU s": cpu - plain_cpu, "wall s": wall - plain_wall}
        row["break-even, steps"] = break_even(cpu - plain_cpu, row["plain s"], row["compiled s"])
        walls = (step["plain"]["wall"], step["compiled"]["wall"])
        rows.append(row | {"by the wall's": break_even(wall - plain_wall, *walls)})
    return rows


def break_even(extra: float, plain: float, fast: float) -> int | str:
    """Steps after which `extra` seconds are made up for; "never" if the fast step is not faster."""
    return math.ceil(extra / (plain - fast)) if fast < plain else "never"


# -------------------------------------------------------------------- several processes: docs/distributed.md


def processes(bench: Bench, trainer="OrthCR", backbone="ViT-B/32", classes=40, batch=8, rounds=3) -> Rows:
    """A step of one process beside one of two, on the CPU (gloo)."""
    case = Case("train", trainer, backbone, classes, batch, "fp32")
    numbers, cpu = (1, 2), ["USE_CUDA", "False"]
    with bench.steps(case, cpu) as one, bench.steps(case, cpu, n=2) as two:
        works = dict(zip(numbers, (one.ready(), two.ready()), strict=True))
        for n, steps in works.items():
            bench.say(f"first step, processes: {n}")
            steps()
        bench.say("steps of 1 process and of 2")
        step = {n: some["step"] for n, some in in_turn(works, rounds).items()}
    return [
        {
            "processes": n,
            "CPU s of each": step[n]["seconds"],
            "ratio": step[n]["seconds"] / step[1]["seconds"],
            "wall s": step[n]["wall"],
            "ratio of walls": step[n]["wall"] / step[1]["wall"],
        }
        for n in numbers
    ]


# -------------------------------------------------------------------- loading: docs/data.md


def loading(
    bench: Bench, trainer="CoOp", backbone=FIRST, classes=100, batches=(4, 32), test_batch=100, images=96, rounds=3
) -> Rows:
    """Milliseconds an image of the loaders, and of what is done with it: a step, or an evaluation.

    Args:
        images: of an epoch of training, each a file; of the evaluation they are `test_batch`, one batch.
        rounds: later epochs, and steps; of the evaluation, and of steps with more than 4 images, one.
    """
    model = bench.build(Case("train", trainer, backbone, classes, min(batches), "fp32"))
    bench.say("draws JPEGs")
    files, watch = draw_jpegs(bench.scratch(), max(images, test_batch)), Watch(model.device)
    clock = Watch(torch.device("cpu"))  # reading is the CPU's work
    kilobytes = mean(os.path.getsize(file) for file in files) / 1000

    def loader(batch, train):
        items = items_of(files[: images if train else test_batch], classes, images if train else test_batch)
        transform = build_transform(model.cfg, is_train=train, draws_by_item=True)
        how = {"tfm": transform, "is_train": train, "draws_by_item": True}
        sampler = model.cfg.DATALOADER.TRAIN_X.SAMPLER if train else model.cfg.DATALOADER.TEST.SAMPLER
        return build_data_loader(model.cfg, sampler, items, batch, **how)

    def timed(work, *args):
        with watch.span("model"):
            work(*args)
        return watch.read()

    def row(what, batch, data, then):  # data, then: s of a batch
        per_image = {"reading, ms": 1000 * data / batch, "model, ms": 1000 * then / batch}
        row = {"what": what, "batch": batch, **per_image, "reading, %": 100 * data / (data + then)}
        return row | {"images/s": batch / (data + then), "read alone": batch / data}

    rows = []
    with redirect_stdout(StringIO()):
        model.set_model_mode("train")
        model.forward_backward(next(iter(model.train_loader_x)))  # warm-up
        for batch in batches:
            train = loader(batch, True)
            bench.say(f"training, batch {batch}")
            first, *later = [epoch["seconds"] for epoch in epoch_seconds(train, 1 + rounds, clock)]
            work = {"step": partial(timed, model.forward_backward, next(iter(train)))}
            taken = in_turn(work, rounds if batch <= 4 else 1)["step"]["model"]["seconds"]
            rows += [row("training, first epoch", batch, first, taken)]
            rows += [row("training, later epochs", batch, median(later), taken)]
        bench.say(f"evaluation, batch {test_batch}")
        test = loader(test_batch, False)
        data = median(epoch["seconds"] for epoch in epoch_seconds(test, rounds, clock))
        given = next(iter(test))["img"].to(model.device)
        model.set_model_mode("eval")
        with torch.no_grad():
            model.model_inference(given[:1])  # encodes the text
            rows.append(row("evaluation", test_batch, data, timed(model.model_inference, given)["model"][0]))
    return [{**row, "kB a file": kilobytes} for row in rows]


# -------------------------------------------------------------------- merged weights: docs/export.md


def merged(bench: Bench, backbone=FIRST, classes=50, batch=4, rounds=5, deviation=0.02) -> Rows:
    """Images to logits, with class features at hand: plain CLIP, OrthCR by merged weights and by its training's maps.

    Those compute R in each batch, exactly, as there are no gradients.

    Args:
        deviation: of the normal distribution that the entries of Q come from.
    """
    plain = bench.build(Case("eval", "ZeroshotCLIP", backbone, classes, batch, "fp32"))
    tuned, watch = bench.build(Case("eval", "OrthCR", backbone, classes, batch, "fp32")), Watch(plain.device)
    torch.manual_seed(0)
    with torch.no_grad():
        for upper in tuned.model.rotations.parameters():
            upper.normal_(std=deviation)
    image = torch.randn(batch, 3, *plain.cfg.INPUT.SIZE, device=plain.device)
    models = {
        "plain CLIP": plain.model.eval(),
        "OrthCR, merged": tuned.model.eval(),
        "OrthCR, unmerged": copy.deepcopy(tuned.model).train(),
    }

    def classify(model, text):
        with watch.span("batch"):
            model.logits(model.encode_image(image), text)
        return watch.read()

    with torch.no_grad():
        bench.say("merges")
        texts = {name: model.encode_text() for name, model in models.items()}
        classify(models["plain CLIP"], texts["plain CLIP"])  # warm-up
        first = classify(models["OrthCR, merged"], texts["OrthCR, merged"])["batch"][0]
        logits = {name: model(image) for name, model in models.items()}
        bench.say("batches in turn")
        taken = in_turn({name: partial(classify, models[name], texts[name]) for name in models}, rounds)
    seconds = {name: some["batch"]["seconds"] for name, some in taken.items()}
    seconds["OrthCR, merged, first batch"] = first
    logits["OrthCR, merged, first batch"] = logits["OrthCR, merged"]
    base = logits["OrthCR, merged"]
    return [
        {
            "what": name,
            "s a batch": s,
            "ratio to plain": s / seconds["plain CLIP"],
            "logits off merged's, at most": (logits[name] - base).abs().max().item(),
            "same class": f"{(logits[name].argmax(1) == base.argmax(1)).sum()} of {batch}",
        }
        for name, s in seconds.items()
    ]


# -------------------------------------------------------------------- the start of predict.py: docs/serve.md


def start(bench: Bench, rounds=3) -> Rows:
    """One image with the tiny CLIP, from the command to its end, beside `import torch`."""
    folder = bench.scratch()
    for k, file in enumerate(draw_jpegs(folder, 12)):
        path = folder / "photos" / f"class {k % 2}" / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, path)
    Image.open(path).resize((224, 224)).save(folder / "image.png")
    python, out, watch = [sys.executable, "-W", "ignore"], str(folder / "out"), Watch(torch.device("cpu"))
    bench.say("trains the tiny CLIP")
    words = ["train.py", "--trainer", "OrthCR", "--images", str(folder / "photos"), "--output-dir", out]
    ended([*python, *words, "OPTIM.MAX_EPOCH", "1", "TEST.NO_TEST", "True", "DATALOADER.NUM_WORKERS", "0"])

    def timed(words):
        with watch.span("command"):
            ended([*python, *words])
        return watch.read()

    commands = {
        "import torch": ["-c", "import torch"],
        "predict.py": ["predict.py", "--model-dir", out, str(folder / "image.png")],
    }
    bench.say("starts in turn")
    taken = in_turn({name: partial(timed, words) for name, words in commands.items()}, rounds)
    rows = {name: some["command"] for name, some in taken.items()}
    beyond = {key: rows["predict.py"][key] - rows["import torch"][key] for key in ("seconds", "wall")}
    rows["beyond it"] = beyond
    return [{"what": name, "CPU s": some["seconds"], "wall s": some["wall"]} for name, some in rows.items()]


def ended(words: list[str]) -> None:
    """Runs a command. Raises ChildProcessError with its last line if it fails."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise ChildProcessError((done.stderr.strip().splitlines() or [f"{words[3]}: status {done.returncode}"])[-1])


# -------------------------------------------------------------------- the command

FIGURES = {  # a name and its function; what is added here is run, printed and kept as the others
    "rotations": rotations,
    "compile": compiled,
    "processes": processes,
    "loading": loading,
    "merged": merged,
    "start": start,
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.costs", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)}; default: all")
    parser.add_argument("--output-dir", default="output/bench")
    args = parser.parse_intermixed_args(argv)
    if unknown := [name for name in args.names if name not in FIGURES]:
        parser.error(f"{', '.join(unknown)}: no such figure; there are {', '.join(FIGURES)}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(1)
    path = Path(args.output_dir) / NAME
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, one thread"
    about = {"device": device, "torch": torch.__version__, "commit": git_revision()}
    names = args.names or list(FIGURES)
    with tempfile.TemporaryDirectory() as folder, progress(total=len(names), unit="figure") as bar:
        for name in names:
            begun = time.perf_counter()
            bench = Bench(Path(folder), lambda text, name=name: bar.set_postfix_str(f"{name}: {text}"))
            rows = FIGURES[name](bench)
            took = {"took": time.perf_counter() - begun, "load": os.getloadavg()[0]}
            entry = {"name": name, "date": date(), **about, **took, "rows": rows}
            write_json([*(read_json(path) if path.exists() else []), entry], path)
            where = ", ".join(map(str, [*about.values(), f"load {took['load']:.1f}"]))
            tqdm.write(f"\n**{name}** ({where})\n\n{table(rows)}")
            sys.stdout.flush()
            bar.update()
    print(f"\nResults are in {path}")


def table(rows: Rows) -> str:
    return tabulate(rows, "keys", "github", floatfmt=".3g")


if __name__ == "__main__":
    sys.exit(command(main, "interrupted: the figures before are in costs.json"))
