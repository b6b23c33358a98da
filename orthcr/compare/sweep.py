"""A sweep: trainings that differ in one key are compared on val; the best of each method and data set is tested."""

import argparse
import re
from dataclasses import dataclass
from statistics import fmean

from dassl.utils import locked
from orthcr.compare.benchmark_datasets import datasets_of
from orthcr.compare.benchmark_run import backbones_of, choose_engine
from orthcr.compare.command_line import NAMES, SHOTS
from orthcr.compare.methods import is_trained, options_of_each, registered_trainers
from orthcr.compare.output_folders import feature_cache_option
from orthcr.compare.plans import Job, PlannedRun, describe_results, execute
from orthcr.compare.stages import Method, Stages
from orthcr.run.config import setup_cfg


@dataclass(frozen=True)
class Point:
    """A value of the key, for one method on one data set."""

    trainer: str
    dataset: str  # its file in configs/datasets
    value: str


@dataclass
class Measured:
    """The accuracies of a point in percent, on val and, if it is chosen, on the test images."""

    point: Point
    val: dict[int, float]  # by seed
    test: dict[str, dict[int, float]]  # by classes, then by seed
    chosen: bool = False


def run(args: argparse.Namespace) -> tuple[list[str], list[Measured]]:
    """Make all runs of `--sweep KEY VALUE ...`.

    Returns:
        A line for each training that failed, and the accuracies of each point with a finished training.

    Raises:
        ValueError: something cannot be planned.
    """
    key, *values = args.sweep
    if len(set(map(file_name, values))) < len(values):
        raise ValueError(
            f"--sweep {key}: two of {' '.join(values)} have the same name for a folder: write one otherwise"
        )
    methods = options_of_each(
        (key, values[0]), [name for name in registered_trainers(args.trainers) if is_trained(name)]
    )
    methods = [name for name, opts in methods.items() if opts]
    if not methods:
        raise ValueError(f"--sweep {key} needs a method that is trained: give --trainers OrthCR or another")
    opts = options_of_each(feature_cache_option(args) + args.opts, methods)
    protocol = "base2new" if args.protocol == ["base2new"] else "few_shot"
    datasets = datasets_of(NAMES[protocol], args.datasets)
    if not datasets:
        raise ValueError(f"{' '.join(args.datasets)} has no part in {protocol}: see docs/protocols.md")
    sweep = Sweep(key, protocol, 16 if args.shots == list(SHOTS) else args.shots[0], args, opts)
    points = [Point(method, dataset, value) for method in methods for dataset in datasets for value in values]
    trainings = {Job((sweep.training(point, seed),)): (point, seed) for point in points for seed in args.seeds}
    for job in trainings:  # a wrong value is an error before anything runs
        setup_cfg(job.runs[0].spec)
    engine = choose_engine(args, backbones_of(list(trainings)))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    measured = {point: Measured(point, {}, {}) for point in points}

    def keep(job: Job, results: list[dict]) -> str:
        point, seed = trainings[job]
        check_tested(job, results)
        measured[point].val[seed] = results[0]["accuracy"]
        return describe_results(job, results)

    tests = {}

    def keep_test(job: Job, results: list[dict]) -> str:
        point, seed = tests[job]
        check_tested(job, results)
        for result in results:
            measured[point].test.setdefault(result["classes"], {})[seed] = result["accuracy"]
        return describe_results(job, results)

    with locked(args.output_dir, f"another benchmark is at work in {args.output_dir}: wait, or choose another"):
        print(f"{len(trainings)} trainings of {len(points)} settings: {args.output_dir}", flush=True)
        failed = execute(list(trainings), title="sweep", done=keep, engine=engine)
        for point in select_points(list(measured.values()), args.seeds):
            measured[point].chosen = True
            tests |= {Job(sweep.tests(point, seed)): (point, seed) for seed in args.seeds}
        failed += execute(list(tests), title="tests of the chosen", done=keep_test, engine=engine)
    return failed, [item for item in measured.values() if item.val]


def check_tested(job: Job, results: list[dict]) -> None:
    """Raise ValueError if a run of a sweep has no accuracy, or not the classes that it is of."""
    for planned, result in zip(job.runs, results, strict=True):
        if not {"accuracy", "classes"} <= result.keys():
            path = planned.folder / "results.json"
            raise ValueError(f"{path} has no accuracy: leave out TEST.NO_TEST, remove that file, and begin again")


def select_points(measured: list[Measured], seeds: list[int]) -> list[Point]:
    """Return the best point on val for each method and data set; of equal ones the first.

    Args:
        measured: the accuracies of all points.
        seeds: points that lack one of them are left out.
    """
    best = {}
    for item in measured:
        if not set(seeds) <= set(item.val):
            continue
        group = item.point.trainer, item.point.dataset
        accuracy = fmean(item.val.values())
        if group not in best or accuracy > best[group][0]:
            best[group] = accuracy, item.point
    return [point for _, point in best.values()]


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, each value in a folder of its own."""

    key: str
    protocol: str  # few_shot: all classes; base2new: training on the base classes
    shots: int
    args: argparse.Namespace
    opts: dict[str, tuple[str, ...]]  # KEY VALUE ... of each method

    def stages(self, point: Point, split: str) -> Stages:
        """Return the stages of a point, evaluated on a split."""
        opts = (*self.opts[point.trainer], self.key, point.value, "TEST.SPLIT", split)
        folder = self.args.output_dir / f"sweep_{self.key}" / file_name(point.value)
        return Stages(Method(point.trainer, self.args.cfg, opts), self.args.root, folder)

    def training(self, point: Point, seed: int) -> PlannedRun:
        """Return the training, which is evaluated on val."""
        stages, protocol = self.stages(point, "val"), NAMES[self.protocol]
        settings = stages.settings(point.dataset, protocol, self.shots)
        folder = stages.out / protocol / point.dataset / settings.folder / f"shots{self.shots}" / f"seed{seed}"
        classes = "base" if self.protocol == "base2new" else "all"
        name = f"{self.key} {point.value}"
        return stages.plan_run(name, folder, point.dataset, seed, classes, self.shots, settings)

    def tests(self, point: Point, seed: int) -> tuple[PlannedRun, ...]:
        """Return the tests of a point's model; in base2new one on the base and one on the new classes."""
        model, stages = self.training(point, seed).folder, self.stages(point, "test")
        kinds = ("base", "new") if self.protocol == "base2new" else ("all",)
        runs = [(kind, model / f"test_{kind}") for kind in kinds]
        return tuple(stages.plan_run("test", folder, point.dataset, seed, kind, model=model) for kind, folder in runs)


def file_name(value: str) -> str:
    """Return a value as the name of a folder."""
    return re.sub(r"[^\w.+-]+", "_", value).strip("_") or "empty"
