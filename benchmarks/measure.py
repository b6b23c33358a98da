"""The measurement of one case: `python -m benchmarks.measure TASK` prints the result as JSON in its last line.

TASK is JSON: the case's fields, the file of CLIP's `weights`, the number of `steps`, the `seconds` after which no
further step begins, and `skip`, the reason why the reference formulation is not run ("": it is run).

The two formulations take turns, step by step. On a CPU the compared time is that of the process (one thread), which
other processes hardly change; wall time is measured, too. On CUDA it is the time between events. The parts of a step
are `losses` (forward), `backward` and the optimizer's `step`; data is the time of the training loader for a batch.
"""

import io
import json
import random
import resource
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from unittest import mock

import torch
from clip import clip
from clip.model import CLIP
from PIL import Image

import trainers
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed
from orthcr.run.config import setup_cfg
from orthcr.run.config_files import CONFIGS
from orthcr.run.declarations import discover
from orthcr.run.flags import parse
from trainers.base import node_of

from .cases import BACKBONES, SETTINGS, Case
from .memory import peak_of, trainer_tensors
from .reference import reference

JPEGS, SIZE = 32, (500, 375)  # number of files, and ImageNet's most frequent width and height
BATCHES = 8  # smallest number of batches of an epoch
FORMS = {"reference": reference, "ours": nullcontext}


# -------------------------------------------------------------------- model and data


def class_names(n: int) -> list[str]:
    """Return n names of three tokens that differ in their first token."""
    tokenizer = clip._tokenizer
    words = (token.removesuffix("</w>") for token in tokenizer.encoder if token.endswith("</w>"))
    words = (word for word in words if len(word) > 3 and word.isascii() and word.isalpha())
    return [f"{word} red car" for word in islice((w for w in words if len(tokenizer.encode(w)) == 1), n)]


def random_clip(backbone: str, folder: Path) -> str:
    """Return the file of the state dict of a CLIP with random weights, which is made at the first call.

    Args:
        backbone: name of its architecture.
        folder: folder of the file.
    """
    path = folder / f"{backbone.replace('/', '-')}.pt"
    if not path.exists():
        size = BACKBONES[backbone]
        torch.manual_seed(0)
        (width, blocks), (text, text_blocks) = size.image, size.text
        model = CLIP(size.embed, 224, blocks, width, size.patch, 77, 49408, text, text // 64, text_blocks)
        torch.save(model.half().state_dict(), path)
    return str(path)


def draw_jpegs(folder: Path, n: int | None = None) -> list[str]:
    """Draw JPEGs of coarse noise with fine noise on it, 50 to 100 KB each, which is about the size of a photograph.

    Args:
        folder: folder of the files.
        n: number of files; None: JPEGS.

    Returns:
        The paths.
    """
    paths = []
    for k in range(n or JPEGS):
        coarse_noise = Image.effect_noise((25, 19), 120).resize(SIZE, Image.Resampling.BICUBIC)
        bands = [Image.blend(coarse_noise, Image.effect_noise(SIZE, 60), 0.15 + 0.05 * c) for c in range(3)]
        paths.append(str(folder / f"{k}.jpg"))
        Image.merge("RGB", bands).save(paths[-1], quality=90)
    return paths


def items_of(files: list[str], classes: int, count: int) -> list[Datum]:
    names = class_names(classes)
    return [Datum(files[k % len(files)], k % classes, classname=names[k % classes]) for k in range(count)]


@DATASET_REGISTRY.register()
class BenchmarkJPEGs(DatasetBase):
    """A data set of the items that `build` sets."""

    items: list[Datum] = []

    def __init__(self, cfg):
        super().__init__(train_x=self.items, test=self.items[:1])


def config(case: Case, backbone: str, output_dir: str, opts: list[str] = (), file: str = ""):
    """Return the config of a case; the arguments are those of `build`."""
    yaml, settings = SETTINGS.get(case.trainer, ("vit_b16", []))
    words = ["--trainer", case.trainer, "--config-file", f"{CONFIGS}/trainers/{case.trainer}/{file or yaml}.yaml"]
    words += ["--backbone", backbone, "--output-dir", output_dir, "DATASET.NAME", "BenchmarkJPEGs"]
    words += ["DATALOADER.TRAIN_X.BATCH_SIZE", str(case.batch), "DATALOADER.NUM_WORKERS", "0", "VERBOSE", "False"]
    discover(trainers)
    words += [f"TRAINER.{node_of(TRAINER_REGISTRY.get(case.trainer))}.PREC", case.prec]
    return setup_cfg(parse([*words, *settings, *opts]))


def build(case: Case, weights: str, folder: Path, opts: list[str] = (), file: str = ""):
    """Return the trainer of a case, on a few JPEGs of noise that the classes share.

    Args:
        case: the case.
        weights: file of CLIP.
        folder: folder of the JPEGs, and output directory of the trainer.
        opts: KEY VALUE pairs, which have precedence over the case's.
        file: name of a YAML in configs/trainers/<trainer>; "": that of `SETTINGS`.
    """
    count = max(case.classes, JPEGS, BATCHES * case.batch)
    BenchmarkJPEGs.items = items_of(draw_jpegs(folder), case.classes, count)
    cfg = config(case, weights, str(folder), opts, file)
    set_random_seed(0)
    random.seed(0)
    trainer = build_trainer(cfg)
    trainer.model.templates = trainer.model.templates[:1]  # PromptSRC's 60 are encoded before training, not in a step
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 10**9  # no step ends an epoch
    return trainer


# -------------------------------------------------------------------- time


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its finished children, such as a compiler."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Watch:
    """A stopwatch: the seconds of named spans.

    Attributes:
        spans: {name: [(start, end), ...]}, times of `now`.
    """

    def __init__(self, device: torch.device):
        self.device, self.spans = device, {}

    def now(self):
        """Return the time that is compared (seconds of the process, or an event on CUDA), and the wall time."""
        if self.device.type != "cuda":
            return cpu_seconds(), time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event, time.perf_counter()

    @contextmanager
    def span(self, name: str):
        start = self.now()
        yield
        self.spans.setdefault(name, []).append((start, self.now()))

    def around(self, name: str, work):
        def timed(*args, **kwargs):
            with self.span(name):
                return work(*args, **kwargs)

        return timed

    def read(self) -> dict[str, tuple[float, float]]:
        """Return {name: (seconds, wall seconds)}, each the sum of its spans, and remove the spans."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        sums = {}
        for name, spans in self.spans.items():
            seconds, wall_seconds = zip(*map(self.between, spans), strict=True)
            sums[name] = sum(seconds), sum(wall_seconds)
        self.spans = {}
        return sums

    def between(self, span) -> tuple[float, float]:
        (start, wall), (end, wall_end) = span
        seconds = start.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - start
        return seconds, wall_end - wall


@contextmanager
def time_parts(trainer, watch: Watch):
    """Measure the spans forward, backward and optimizer of each training step in the context.

    Args:
        trainer: the trainer.
        watch: gets the spans.
    """
    with ExitStack() as stack:
        for owner, method, part in (
            (trainer, "losses", "forward"),
            (trainer, "backward", "backward"),
            (trainer.optim, "step", "optimizer"),
        ):
            stack.enter_context(mock.patch.object(owner, method, watch.around(part, getattr(owner, method))))
        yield


def medians(rounds: list[dict[str, tuple[float, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {"seconds": median(r[name][0] for r in rounds), "wall": median(r[name][1] for r in rounds)}
        for name in rounds[0]
    }


def run_in_turn(functions: dict, rounds: int, end: float = float("inf")) -> dict[str, dict]:
    """Run functions in turn, and return the medians of their times over the rounds.

    Args:
        functions: functions by name, which return the times of `Watch.read`.
        rounds: largest number of rounds.
        end: time of `time.perf_counter` after which no further round begins; at least one is made.
    """
    times = {name: [] for name in functions}
    for k in range(rounds):
        if k and time.perf_counter() > end:
            break
        for name, work in functions.items():
            times[name].append(work())
    return {name: {**medians(results), "rounds": len(results)} for name, results in times.items()}


def run_formulations(model, functions: dict, task: dict, watch: Watch, start_time: float) -> dict[str, dict]:
    """Call `run_in_turn` with a function for each formulation, which runs in that formulation.

    Args:
        model: the model that the formulations change.
        functions: functions by formulation; `watch` gets their spans.
        task: `steps` is the largest number of rounds, `seconds` the time for all.
        watch: watch that measures the spans.
        start_time: time of `time.perf_counter` at the start of the case.
    """

    def inside(form, work):
        with FORMS[form](model):
            work()
        return watch.read()

    functions = {form: partial(inside, form, work) for form, work in functions.items()}
    return run_in_turn(functions, task["steps"], start_time + task["seconds"])


# -------------------------------------------------------------------- a case


def train(trainer, forms: list[str], task: dict, watch: Watch, start_time: float) -> dict:
    """Measure the memory of a step of each formulation, which is the warm-up, then the time.

    Args:
        trainer: the trainer.
        forms: formulations.
        task: see the module.
        watch: watch that measures the spans.
        start_time: time of `time.perf_counter` at the start of the case.
    """
    data = dict(zip(("first", "later"), epoch_seconds(trainer.train_loader_x, 2, watch), strict=True))
    batch = next(iter(trainer.train_loader_x))
    trainer.set_model_mode("train")
    peaks = {}
    for form in forms:
        with FORMS[form](trainer.model):
            tensors = trainer_tensors(trainer)
            peaks[form] = peak_of(lambda: trainer.forward_backward(batch), tensors, trainer.device)

    def step():
        with watch.span("step"):
            trainer.forward_backward(batch)

    with time_parts(trainer, watch):
        results = run_formulations(trainer.model, dict.fromkeys(forms, step), task, watch, start_time)
    return {"data": data, **{form: {**results[form], "peak_mib": peaks[form]} for form in forms}}


def epoch_seconds(loader, n: int, watch: Watch) -> list[dict[str, float]]:
    """Return the mean seconds and wall seconds of a batch of a loader, in each of the next n epochs."""
    epochs = []
    for _ in range(n):
        with watch.span("data"):
            count = sum(1 for _ in loader)
        seconds, wall = watch.read()["data"]
        epochs.append({"seconds": seconds / count, "wall": wall / count})
    return epochs


def evaluate(trainer, forms: list[str], task: dict, watch: Watch, start_time: float) -> dict:
    """Measure a batch of each formulation; of ours the first one, which encodes the text, and a later one.

    The arguments are those of `train`.
    """
    image = torch.randn(task["batch"], 3, *trainer.cfg.INPUT.SIZE, device=trainer.device)

    def batch(name):
        with watch.span(name):
            trainer.model_inference(image)

    def first_and_later():
        trainer.set_model_mode("eval")  # clears the cache of the text
        batch("first")
        batch("later")

    functions = {"reference": lambda: batch("batch"), "ours": first_and_later}
    trainer.set_model_mode("eval")
    with torch.no_grad():
        batch("warm-up")
        watch.read()
        return run_formulations(trainer.model, {form: functions[form] for form in forms}, task, watch, start_time)


def adapt(trainer, forms: list[str], task: dict, watch: Watch, start_time: float) -> dict:
    """Measure the memory of a batch of images with their views, which is the warm-up, then the time.

    The arguments are those of `train`.
    """
    views = torch.randn(task["batch"], trainer.node.VIEWS, 3, *trainer.cfg.INPUT.SIZE, device=trainer.device)
    trainer.set_model_mode("eval")
    peaks = {}
    for form in forms:
        with FORMS[form](trainer.model):
            tensors = trainer_tensors(trainer)
            peaks[form] = peak_of(lambda: trainer.model_inference(views), tensors, trainer.device)

    def batch():
        with watch.span("batch"):
            trainer.model_inference(views)

    results = run_formulations(trainer.model, dict.fromkeys(forms, batch), task, watch, start_time)
    return {form: {**results[form], "peak_mib": peaks[form]} for form in forms}


def measure(task: dict) -> dict:
    """Measure a case, and return its entry of `results.json`."""
    torch.set_num_threads(1)
    case = Case(*(task[field] for field in Case._fields))
    start_time = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        trainer = build(case, task["weights"], Path(folder))
        forms = [form for form in FORMS if form == "ours" or not task["skip"]]
        work = {"train": train, "eval": evaluate, "adapt": adapt}[case.kind]
        results = work(trainer, forms, task, Watch(trainer.device), start_time)
    if task["skip"]:
        results["skipped"] = task["skip"]
    cuda = trainer.device.type == "cuda"
    return {
        **case._asdict(),
        **results,
        "trained": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "device": torch.cuda.get_device_name() if cuda else "CPU, one thread",
        "torch": torch.__version__,
        "took": time.perf_counter() - start_time,
    }


if __name__ == "__main__":
    print("\n" + json.dumps(measure(json.loads(sys.argv[1]))))
