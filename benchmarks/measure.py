"""One case, in a process of its own: `python -m benchmarks.measure TASK` prints what it measured as its last line.

TASK is JSON: the case's fields, the file of CLIP's `weights`, the number of `steps`, the `seconds` after which no
further one begins, and `skip`, the reason why the reference formulation is not run, if so.

The two formulations take turns, step by step. Time is, on a CPU, that of the process (one thread), which others on the
machine hardly change, with the wall's beside it; on CUDA it is the time between events. The parts of a step are taken
around `losses` (forward), `backward` and the optimizer's `step`; data is what the training loader takes for a batch.
"""

import io
import json
import random
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from itertools import islice
from pathlib import Path
from statistics import median
from unittest import mock

import torch
from clip import clip
from PIL import Image

import trainers
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed
from experiments.config import CONFIGS, discover, parse, setup_cfg
from trainers.base import node_of

from .cases import SETTINGS, Case
from .memory import held, peak_of
from .reference import reference

JPEGS, SIZE = 32, (500, 375)  # files, and their width and height: those of ImageNet's most frequent size
BATCHES = 8  # of an epoch, at least
FORMS = {"reference": reference, "ours": nullcontext}


# -------------------------------------------------------------------- what it is measured on


def class_names(n: int) -> list[str]:
    """Different in their first token; each has three, with ". <end>" the five of benchmarks/flops.py."""
    tokenizer = clip._tokenizer
    words = (token.removesuffix("</w>") for token in tokenizer.encoder if token.endswith("</w>"))
    words = (word for word in words if len(word) > 3 and word.isascii() and word.isalpha())
    return [f"{word} red car" for word in islice((w for w in words if len(tokenizer.encode(w)) == 1), n)]


def draw_jpegs(folder: Path) -> list[str]:
    """Coarse noise with fine noise on it, 50 to 100 KB a file, about what a photograph has."""
    paths = []
    for k in range(JPEGS):
        coarse = Image.effect_noise((25, 19), 120).resize(SIZE, Image.Resampling.BICUBIC)
        bands = [Image.blend(coarse, Image.effect_noise(SIZE, 60), 0.15 + 0.05 * c) for c in range(3)]
        paths.append(str(folder / f"{k}.jpg"))
        Image.merge("RGB", bands).save(paths[-1], quality=90)
    return paths


def build(case: Case, weights: str, folder: Path):
    """The trainer, on JPEGs of no meaning: a few files, which the classes share."""
    files, names = draw_jpegs(folder), class_names(case.classes)
    count = max(case.classes, JPEGS, BATCHES * case.batch)

    @DATASET_REGISTRY.register()
    class BenchmarkJPEGs(DatasetBase):
        def __init__(self, cfg):
            items = [
                Datum(files[k % len(files)], k % case.classes, classname=names[k % case.classes]) for k in range(count)
            ]
            super().__init__(train_x=items, test=items[:1])

        def get_num_classes(self, data_source):
            return case.classes

    yaml, opts = SETTINGS[case.trainer]
    words = ["--trainer", case.trainer, "--config-file", f"{CONFIGS}/trainers/{case.trainer}/{yaml}.yaml"]
    words += ["--backbone", weights, "--output-dir", str(folder), "DATASET.NAME", "BenchmarkJPEGs"]
    words += ["DATALOADER.TRAIN_X.BATCH_SIZE", str(case.batch), "DATALOADER.NUM_WORKERS", "0", "VERBOSE", "False"]
    discover(trainers)
    words += [f"TRAINER.{node_of(TRAINER_REGISTRY.get(case.trainer))}.PREC", case.prec]
    cfg = setup_cfg(parse([*words, *opts]))
    set_random_seed(0)
    random.seed(0)
    trainer = build_trainer(cfg)
    trainer.model.templates = trainer.model.templates[:1]  # PromptSRC's 60 are encoded before the first step, once
    trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 10**9  # no step ends an epoch
    return trainer


# -------------------------------------------------------------------- time


class Watch:
    """Seconds of named spans.

    Attributes:
        spans: name -> [(start, end)], each what `now` gives.
    """

    def __init__(self, device: torch.device):
        self.device, self.spans = device, {}

    def now(self):
        """(the time that is compared, the wall's)."""
        if self.device.type != "cuda":
            return time.process_time(), time.perf_counter()
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
        """{name: (seconds, wall)}, each the sum of its spans; forgets them."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        spans, self.spans = self.spans, {}
        return {name: tuple(map(sum, zip(*map(self.between, some), strict=True))) for name, some in spans.items()}

    def between(self, span) -> tuple[float, float]:
        (start, wall), (end, wall_end) = span
        seconds = start.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - start
        return seconds, wall_end - wall


@contextmanager
def parts_timed(trainer, watch: Watch):
    """Inside, `watch` has the spans forward, backward and optimizer of each training step."""
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


def in_turn(model, works: dict, task: dict, watch: Watch, begun: float) -> dict[str, dict]:
    """Medians of each formulation's `works`, over rounds in which each has its turn; one round in any case."""
    rounds = {form: [] for form in works}
    for k in range(task["steps"]):
        if k and time.perf_counter() - begun > task["seconds"]:
            break
        for form, work in works.items():
            with FORMS[form](model):
                work()
            rounds[form].append(watch.read())
    return {form: {**medians(some), "rounds": len(some)} for form, some in rounds.items()}


# -------------------------------------------------------------------- a case


def train(trainer, forms: list[str], task: dict, watch: Watch, begun: float) -> dict:
    """Memory of a step of each formulation, which is its warm-up, then time."""
    data = loader_seconds(trainer, watch)
    batch = next(iter(trainer.train_loader_x))
    trainer.set_model_mode("train")
    peaks = {}
    for form in forms:
        with FORMS[form](trainer.model):
            peaks[form] = peak_of(lambda: trainer.forward_backward(batch), held(trainer), trainer.device)

    def step():
        with watch.span("step"):
            trainer.forward_backward(batch)

    with parts_timed(trainer, watch):
        results = in_turn(trainer.model, dict.fromkeys(forms, step), task, watch, begun)
    return {"data": data, **{form: {**results[form], "peak_mib": peaks[form]} for form in forms}}


def loader_seconds(trainer, watch: Watch) -> dict[str, dict[str, float]]:
    """Of a batch of the training loader: in a first epoch, and in a later one."""
    epochs = {}
    for name in ("first", "later"):
        with watch.span("data"):
            count = sum(1 for _ in trainer.train_loader_x)
        seconds, wall = watch.read()["data"]
        epochs[name] = {"seconds": seconds / count, "wall": wall / count}
    return epochs


def evaluate(trainer, forms: list[str], task: dict, watch: Watch, begun: float) -> dict:
    """A batch of each formulation; of ours the first one, with the text, and a later one."""
    image = torch.randn(task["batch"], 3, *trainer.cfg.INPUT.SIZE, device=trainer.device)

    def batch(name):
        with watch.span(name):
            trainer.model_inference(image)

    def first_and_later():
        trainer.set_model_mode("eval")  # forgets the text
        batch("first")
        batch("later")

    works = {"reference": lambda: batch("batch"), "ours": first_and_later}
    trainer.set_model_mode("eval")
    with torch.no_grad():
        batch("warm-up")
        watch.read()
        return in_turn(trainer.model, {form: works[form] for form in forms}, task, watch, begun)


def measure(task: dict) -> dict:
    """What `results.json` holds of a case."""
    torch.set_num_threads(1)
    case, begun = Case(*(task[field] for field in Case._fields)), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        trainer = build(case, task["weights"], Path(folder))
        forms = [form for form in FORMS if form == "ours" or not task["skip"]]
        work = train if case.kind == "train" else evaluate
        results = work(trainer, forms, task, Watch(trainer.device), begun)
    if task["skip"]:
        results["skipped"] = task["skip"]
    cuda = trainer.device.type == "cuda"
    return {
        **case._asdict(),
        **results,
        "trained": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "device": torch.cuda.get_device_name() if cuda else "CPU, one thread",
        "torch": torch.__version__,
        "took": time.perf_counter() - begun,
    }


if __name__ == "__main__":
    print("\n" + json.dumps(measure(json.loads(sys.argv[1]))))
