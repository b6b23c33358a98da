"""Measure the figures of docs/ that are no case of `python -m benchmarks`, each by a function.

    python -m benchmarks.costs                      all, the compiler among them
    python -m benchmarks.costs merged start         a part of them

Each figure is printed as a table and added to costs.json in --output-dir. CLIP has its architecture and random weights;
the images are JPEGs of noise; there is one thread. CPU seconds are those of the process and of its finished children.
They are medians over rounds in which the compared models take turns, so that a ratio is of one run. Other processes
change the wall times; the load of the machine is in the table's caption. On a GPU the CPU seconds of a model are the
time between events.
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

from dassl.data.data_manager import build_data_loader
from dassl.data.transforms import build_transform
from dassl.infrastructure.command import command
from dassl.infrastructure.files import read_json, write_json
from dassl.infrastructure.streams import progress
from orthcr.run.results import git_revision
from trainers import orthcr
from trainers.shared.rotations import Rotations

from .__main__ import date
from .cases import FIRST, Case
from .measure import Watch, build, draw_jpegs, epoch_seconds, items_of, random_clip, run_in_turn
from .memory import peak_of, trainer_tensors
from .steps import ROOT, Steps

NAME = "costs.json"
Rows = list[dict]  # of a table: values by column head


class Bench(NamedTuple):
    """The arguments of a figure's function.

    Attributes:
        folder: for temporary files; the next figure uses the same random CLIPs.
        say: shows a text beside the progress bar.
    """

    folder: Path
    say: Callable[[str], None]

    def scratch(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))

    def build(self, case: Case, file: str = ""):
        """Build the trainer of a case in this process; `file` as of `measure.build`."""
        self.say(f"builds {case.trainer} {file}")
        with redirect_stdout(StringIO()):
            return build(case, random_clip(case.backbone, self.folder), self.scratch(), file=file)

    def steps(self, case: Case, opts: list[str] = (), n: int = 1, env: dict[str, str] | None = None) -> Steps:
        """Build the trainer of a case in n other processes; see `Steps`."""
        self.say(f"builds {case.trainer} {' '.join(opts)}")
        return Steps(case, random_clip(case.backbone, self.folder), opts, n, env)


# -------------------------------------------------------------------- OrthCR's rotations: docs/speed.md


class UnrotatedLinear(torch.autograd.Function):
    """The map W x + b in place of `RotatedLinear`, with the same gradient of x, and none of R."""

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
def remove_rotations():
    """Remove the rotations from OrthCR's step in the context: no R, no W R, no gradient of either."""

    def compute(self, names, s, exact):
        return {name: self.upper[name][0] for name in names}

    def linear(change, x, weight, bias):
        return UnrotatedLinear.apply(x, change.r, weight, bias)

    with mock.patch.object(Rotations, "compute", compute), mock.patch.object(orthcr, "rotated_linear", linear):
        yield


def measure_rotations(bench: Bench, backbone=FIRST, classes=50, batches=(4, 32), rounds=5) -> Rows:
    """Measure the costs of rotations in a step: R, rotating, forward and backward."""
    rows = []
    for batch in batches:
        trainer = bench.build(Case("train", "OrthCR", backbone, classes, batch, "fp32"))
        images, watch = next(iter(trainer.train_loader_x)), Watch(trainer.device)
        trainer.set_model_mode("train")

        def turn(form, trainer=trainer, images=images, watch=watch):
            with form():
                trainer.forward_backward(images)  # after a step of the other form, malloc allocates memory again
                with watch.span("step"):
                    trainer.forward_backward(images)
            return watch.read()

        bench.say(f"steps, batch {batch}")
        works = {"rotated": partial(turn, nullcontext), "unrotated": partial(turn, remove_rotations)}
        times = run_in_turn(works, rounds if batch <= 4 else 1)
        rotated, plain = (times[name]["step"]["seconds"] for name in works)
        share = 100 - 100 * plain / rotated
        rows.append({"batch": batch, "step, s": rotated, "without, s": plain, "share, %": share})
    return rows


# -------------------------------------------------------------------- the reviewed configuration: docs/speed.md


def compare_published(
    bench: Bench, trainers=("OrthSR", "OrthCR"), backbone=FIRST, classes=50, batch=4, rounds=3
) -> Rows:
    """Compare a step of vit_b16_published.yaml with one of vit_b16.yaml: time, that of R, and memory.

    R is measured alone, forward and backward. The memory is the peak of the first step, as in the benchmark.
    """
    models, peaks, works = {}, {}, {}
    for name in trainers:
        case = Case("train", name, backbone, classes, batch, "fp32")
        for file in ("vit_b16", "vit_b16_published"):
            model = models[name, file] = bench.build(case, file)
            model.set_model_mode("train")
            images = next(iter(model.train_loader_x))
            bench.say(f"first step of {name} {file}")
            peaks[name, file] = peak_of(partial(model.forward_backward, images), trainer_tensors(model), model.device)
            works[name, file] = partial(step_and_rotations, model, images, Watch(model.device))
    bench.say("steps in turn")
    times, rows = run_in_turn(works, rounds), []
    for (name, file), model in models.items():
        rotations = model.model.rotations
        rows.append(
            {
                "trainer": name,
                "file": file,
                "block sizes": ", ".join(map(str, sorted({b for _, b in rotations.sizes.values()}))),
                "trained numbers": sum(p.numel() for p in rotations.parameters()),
                "step, s": times[name, file]["step"]["seconds"],
                "R, s": times[name, file]["R"]["seconds"],
                "peak, MiB": peaks[name, file],
            }
        )
    return rows


def step_and_rotations(trainer, images: dict, watch: Watch) -> dict[str, tuple[float, float]]:
    """Return the times of a training step, and of R alone, forward and backward."""
    rotations = trainer.model.rotations
    with watch.span("step"):
        trainer.forward_backward(images)
    with watch.span("R"):
        sum(r.sum() for r in rotations(list(rotations.sizes)).values()).backward()
    return watch.read()


# -------------------------------------------------------------------- TRAIN.COMPILE: docs/speed.md


def compare_compiled(
    bench: Bench, trainers: tuple = ("OrthCR", "CoOp"), backbone=FIRST, classes=50, batch=4, rounds=3
) -> Rows:
    """Compare a step with TRAIN.COMPILE with a plain one. The compiler has one process and an empty cache.

    The costs of compiling are those of the first two steps: in the second step more is compiled, with the plans that
    the first one made.
    """
    rows = []
    for trainer in trainers:
        case, cache = Case("train", trainer, backbone, classes, batch, "fp32"), str(bench.scratch())
        alone = {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        with bench.steps(case) as plain, bench.steps(case, ["TRAIN.COMPILE", "True"], env=alone) as fast:
            plain.ready()
            fast.ready()
            bench.say(f"compiles {trainer}")
            plain_cpu, plain_wall = first_steps(plain)
            cpu, wall = first_steps(fast)
            bench.say(f"steps of {trainer}")
            times = run_in_turn({"plain": plain, "compiled": fast}, rounds)
        step = {name: spans["step"] for name, spans in times.items()}
        row = {"trainer": trainer, "plain s": step["plain"]["seconds"], "compiled s": step["compiled"]["seconds"]}
        row["plain / compiled"] = row["plain s"] / row["compiled s"]
        row |= {"to compile, CPU s": cpu - plain_cpu, "wall s": wall - plain_wall}
        row["break-even, steps"] = break_even(cpu - plain_cpu, row["plain s"], row["compiled s"])
        walls = (step["plain"]["wall"], step["compiled"]["wall"])
        rows.append(row | {"by the wall's": break_even(wall - plain_wall, *walls)})
    return rows


def first_steps(steps: Steps, n: int = 2) -> tuple[float, float]:
    """Return the seconds and the wall seconds of n steps together."""
    seconds, wall_seconds = zip(*(steps()["step"] for _ in range(n)), strict=True)
    return sum(seconds), sum(wall_seconds)


def break_even(compile_seconds: float, plain_seconds: float, compiled_seconds: float) -> int | str:
    """Return the number of steps that save `compile_seconds` seconds; "never" if the fast step is not faster.

    Args:
        compile_seconds: seconds of the compiler.
        plain_seconds: seconds of a plain step.
        compiled_seconds: seconds of a compiled step.
    """
    return (
        math.ceil(compile_seconds / (plain_seconds - compiled_seconds)) if compiled_seconds < plain_seconds else "never"
    )


# -------------------------------------------------------------------- several processes: docs/distributed.md


def compare_processes(bench: Bench, trainer="OrthCR", backbone="ViT-B/32", classes=40, batch=8, rounds=3) -> Rows:
    """Compare a step of one process with one of two processes, on the CPU (gloo)."""
    case = Case("train", trainer, backbone, classes, batch, "fp32")
    numbers, cpu = (1, 2), ["USE_CUDA", "False"]
    with bench.steps(case, cpu) as steps_of_one, bench.steps(case, cpu, n=2) as steps_of_two:
        works = dict(zip(numbers, (steps_of_one.ready(), steps_of_two.ready()), strict=True))
        for n, steps in works.items():
            bench.say(f"first step, processes: {n}")
            steps()
        bench.say("steps of 1 process and of 2")
        step = {n: spans["step"] for n, spans in run_in_turn(works, rounds).items()}
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


def measure_loading(
    bench: Bench, trainer="CoOp", backbone=FIRST, classes=100, batches=(4, 32), test_batch=100, images=96, rounds=3
) -> Rows:
    """Measure the milliseconds an image of the loaders, and of a training step or an evaluation.

    Args:
        bench: folder and progress.
        trainer: name of the method.
        backbone: name of the CLIP.
        classes: number of classes.
        batches: batch sizes of training.
        test_batch: batch size of the evaluation, which has one batch.
        images: number of files of an epoch of training.
        rounds: number of epochs after the first, and of steps. Steps with more than 4 images, and the evaluation, are
            measured once.
    """
    model = bench.build(Case("train", trainer, backbone, classes, min(batches), "fp32"))
    bench.say("draws JPEGs")
    files, watch = draw_jpegs(bench.scratch(), max(images, test_batch)), Watch(model.device)
    clock = Watch(torch.device("cpu"))  # the CPU reads the images, also if the model is on a GPU
    kilobytes = mean(os.path.getsize(file) for file in files) / 1000

    def loader(batch, train):
        count = images if train else test_batch
        items = items_of(files[:count], classes, count)
        transform = build_transform(model.cfg, is_train=train, draws_by_item=True)
        sampler = model.cfg.DATALOADER.TRAIN_X.SAMPLER if train else model.cfg.DATALOADER.TEST.SAMPLER
        options = {"tfm": transform, "is_train": train, "draws_by_item": True}
        return build_data_loader(model.cfg, sampler, items, batch, **options)

    def timed(work, *args):
        with watch.span("model"):
            work(*args)
        return watch.read()

    def row(name, batch, reading, work):  # reading, work: seconds of a batch
        return {
            "what": name,
            "batch": batch,
            "reading, ms": 1000 * reading / batch,
            "model, ms": 1000 * work / batch,
            "reading, %": 100 * reading / (reading + work),
            "images/s": batch / (reading + work),
            "read alone": batch / reading,
        }

    rows = []
    with redirect_stdout(StringIO()):
        model.set_model_mode("train")
        model.forward_backward(next(iter(model.train_loader_x)))  # warm-up
        for batch in batches:
            train = loader(batch, True)
            bench.say(f"training, batch {batch}")
            first, *later_seconds = [epoch["seconds"] for epoch in epoch_seconds(train, 1 + rounds, clock)]
            work = {"step": partial(timed, model.forward_backward, next(iter(train)))}
            seconds = run_in_turn(work, rounds if batch <= 4 else 1)["step"]["model"]["seconds"]
            rows.append(row("training, first epoch", batch, first, seconds))
            rows.append(row("training, later epochs", batch, median(later_seconds), seconds))
        bench.say(f"evaluation, batch {test_batch}")
        test = loader(test_batch, False)
        data = median(epoch["seconds"] for epoch in epoch_seconds(test, rounds, clock))
        image = next(iter(test))["img"].to(model.device)
        model.set_model_mode("eval")
        with torch.no_grad():
            model.model_inference(image[:1])  # encodes the text
            rows.append(row("evaluation", test_batch, data, timed(model.model_inference, image)["model"][0]))
    return [{**row, "kB a file": kilobytes} for row in rows]


# -------------------------------------------------------------------- merged weights: docs/export.md


def compare_merged(bench: Bench, backbone=FIRST, classes=50, batch=4, rounds=5, deviation=0.02) -> Rows:
    """Measure the time from images to logits, with cached class features.

    It compares plain CLIP, OrthCR with merged weights, and OrthCR with the maps of its training. The latter compute R
    in each batch, exactly, because there are no gradients.

    Args:
        bench: folder and progress.
        backbone: name of the CLIP.
        classes: number of classes.
        batch: number of images.
        rounds: number of batches.
        deviation: standard deviation of the entries of Q, which are normally distributed.
    """
    plain = bench.build(Case("eval", "ZeroshotCLIP", backbone, classes, batch, "fp32"))
    tuned_model, watch = bench.build(Case("eval", "OrthCR", backbone, classes, batch, "fp32")), Watch(plain.device)
    torch.manual_seed(0)
    with torch.no_grad():
        for upper in tuned_model.model.rotations.parameters():
            upper.normal_(std=deviation)
    image = torch.randn(batch, 3, *plain.cfg.INPUT.SIZE, device=plain.device)
    models = {
        "plain CLIP": plain.model.eval(),
        "OrthCR, merged": tuned_model.model.eval(),
        "OrthCR, unmerged": copy.deepcopy(tuned_model.model).train(),
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
        times = run_in_turn({name: partial(classify, models[name], texts[name]) for name in models}, rounds)
    seconds = {name: spans["batch"]["seconds"] for name, spans in times.items()}
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


def measure_start(bench: Bench, rounds=3) -> Rows:
    """Compare `predict.py` on one image, with the tiny CLIP, from start to end, with `import torch`."""
    folder = bench.scratch()
    for k, file in enumerate(draw_jpegs(folder, 12)):
        path = folder / "photos" / f"class {k % 2}" / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, path)
    Image.open(path).resize((224, 224)).save(folder / "image.png")
    python, out, watch = [sys.executable, "-W", "ignore"], str(folder / "out"), Watch(torch.device("cpu"))
    bench.say("trains the tiny CLIP")
    words = ["train.py", "--trainer", "OrthCR", "--images", str(folder / "photos"), "--output-dir", out]
    run([*python, *words, "OPTIM.MAX_EPOCH", "1", "TEST.NO_TEST", "True", "DATALOADER.NUM_WORKERS", "0"])

    def timed(words):
        with watch.span("command"):
            run([*python, *words])
        return watch.read()

    commands = {
        "import torch": ["-c", "import torch"],
        "predict.py": ["predict.py", "--model-dir", out, str(folder / "image.png")],
    }
    bench.say("starts in turn")
    results = run_in_turn({name: partial(timed, words) for name, words in commands.items()}, rounds)
    times = {name: spans["command"] for name, spans in results.items()}
    times["beyond it"] = {key: times["predict.py"][key] - times["import torch"][key] for key in ("seconds", "wall")}
    return [{"what": name, "CPU s": t["seconds"], "wall s": t["wall"]} for name, t in times.items()]


def run(words: list[str]) -> None:
    """Run a command.

    Raises:
        ChildProcessError: it fails; the message is its last line.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=env)
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"{words[3]}: status {process.returncode}"]
        raise ChildProcessError(lines[-1])


# -------------------------------------------------------------------- the command

FIGURES = {  # functions by name; a new figure needs an entry here and nothing else
    "rotations": measure_rotations,
    "published": compare_published,
    "compile": compare_compiled,
    "processes": compare_processes,
    "loading": measure_loading,
    "merged": compare_merged,
    "start": measure_start,
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.costs", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)}; default: all")
    parser.add_argument("--output-dir", default="output/bench")
    args = parser.parse_intermixed_args(argv)
    unknown_names = [name for name in args.names if name not in FIGURES]
    if unknown_names:
        parser.error(f"{', '.join(unknown_names)}: no such figure; there are {', '.join(FIGURES)}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(1)
    path = Path(args.output_dir) / NAME
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, one thread"
    caption_words = {"device": device, "torch": torch.__version__, "commit": git_revision()}
    names = args.names or list(FIGURES)
    with tempfile.TemporaryDirectory() as folder, progress(total=len(names), unit="figure") as bar:
        for name in names:
            start_time = time.perf_counter()
            bench = Bench(Path(folder), lambda text, name=name: bar.set_postfix_str(f"{name}: {text}"))
            rows = FIGURES[name](bench)
            seconds, load = time.perf_counter() - start_time, os.getloadavg()[0]
            entry = {"name": name, "date": date(), **caption_words, "took": seconds, "load": load, "rows": rows}
            entries = read_json(path) if path.exists() else []
            write_json([*entries, entry], path)
            caption = ", ".join(map(str, [*caption_words.values(), f"load {load:.1f}"]))
            tqdm.write(f"\n**{name}** ({caption})\n\n{table(rows)}")
            sys.stdout.flush()
            bar.update()
    print(f"\nResults are in {path}")


def table(rows: Rows) -> str:
    return tabulate(rows, "keys", "github", floatfmt=".3g")


if __name__ == "__main__":
    sys.exit(command(main, "interrupted: the figures before are in costs.json"))
