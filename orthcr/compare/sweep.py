"""A sweep: trainings with several values of one key. They are compared on val, and the best one is tested.

There is one best value for each method and data set.
"""

import argparse
import re
from dataclasses import dataclass
from statistics import fmean

from dassl.utils import locked
from orthcr.compare.benchmark_datasets import datasets_of
from orthcr.compare.benchmark_run import backbones_of, choose_engine
from orthcr.compare.command_line import NAMES, SHOTS
from orthcr.compare.methods import is_trained, options_by_trainer, registered_trainers
from orthcr.compare.output_folders import feature_cache_option
from orthcr.compare.plans import Job, PlannedRun, describe_results, execute
from orthcr.compare.stages import Method, Stages
from orthcr.run.config import setup_cfg


@dataclass(frozen=True)
class Point:
    """One value of the key, for one method on one data set."""

    trainer: str
    dataset: str  # its file in configs/datasets
    value: str


@dataclass
class PointAccuracies:
    """The accuracies of a point in percent: on val and, for the chosen point, on the test images."""

    point: Point
    val: dict[int, float]  # {seed: accuracy}
    test: dict[str, dict[int, float]]  # {classes: {seed: accuracy}}
    is_chosen: bool = False


def run(args: argparse.Namespace) -> tuple[list[str], list[PointAccuracies]]:
    """Make all runs of `--sweep KEY VALUE ...`.

    Returns:
        A line for each failed job, and the accuracies of each point with a finished training.

    Raises:
        ValueError: a method, a data set or a setting is wrong.
    """
    key, *values = args.sweep
    if len(set(map(make_folder_name, values))) < len(values):
        raise ValueError(
            f"--sweep {key}: two of the values {' '.join(values)} have one folder name: write one of them differently"
        )
    methods = options_by_trainer(
        (key, values[0]), [name for name in registered_trainers(args.trainers) if is_trained(name)]
    )
    methods = [name for name, opts in methods.items() if opts]
    if not methods:
        raise ValueError(f"--sweep {key}: none of the methods has a training with this key: give other --trainers")
    opts = options_by_trainer(feature_cache_option(args) + args.opts, methods)
    protocol = "base2new" if args.protocol == ["base2new"] else "few_shot"
    datasets = datasets_of(NAMES[protocol], args.datasets)
    if not datasets:
        names = " ".join(args.datasets)
        raise ValueError(f"--datasets {names} has no part in --protocol {protocol}: see docs/protocols.md")
    sweep = Sweep(key, protocol, 16 if args.shots == list(SHOTS) else args.shots[0], args, opts)
    points = [Point(method, dataset, value) for method in methods for dataset in datasets for value in values]
    trainings = {Job((sweep.plan_training(point, seed),)): (point, seed) for point in points for seed in args.seeds}
    for job in trainings:  # a wrong value is an error before anything runs
        setup_cfg(job.runs[0].spec)
    engine = choose_engine(args, backbones_of(list(trainings)))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    accuracies = {point: PointAccuracies(point, {}, {}) for point in points}

    def record_val(job: Job, results: list[dict]) -> str:
        point, seed = trainings[job]
        check_accuracies(job, results)
        accuracies[point].val[seed] = results[0]["accuracy"]
        return describe_results(job, results)

    tests = {}

    def record_test(job: Job, results: list[dict]) -> str:
        point, seed = tests[job]
        check_accuracies(job, results)
        for result in results:
            accuracies[point].test.setdefault(result["classes"], {})[seed] = result["accuracy"]
        return describe_results(job, results)

    with locked(args.output_dir, f"another benchmark is at work in {args.output_dir}: wait, or choose another"):
        print(f"{len(trainings)} trainings of {len(points)} settings: {args.output_dir}", flush=True)
        failures = execute(list(trainings), title="sweep", on_job_done=record_val, engine=engine)
        for point in select_points(list(accuracies.values()), args.seeds):
            accuracies[point].is_chosen = True
            tests |= {Job(sweep.plan_tests(point, seed)): (point, seed) for seed in args.seeds}
        failures += execute(list(tests), title="tests of the chosen", on_job_done=record_test, engine=engine)
    return failures, [item for item in accuracies.values() if item.val]


def check_accuracies(job: Job, results: list[dict]) -> None:
    """Raise ValueError if the results of a run lack the accuracy or the classes."""
    for planned_run, result in zip(job.runs, results, strict=True):
        if not {"accuracy", "classes"} <= result.keys():
            path = planned_run.folder / "results.json"
            advice = "leave out TEST.NO_TEST, remove that file, and give the command again"
            raise ValueError(f"{path} has no accuracy: {advice}")


def select_points(accuracies: list[PointAccuracies], seeds: list[int]) -> list[Point]:
    """Return the best point on val for each method and data set; the first one of a tie.

    Args:
        accuracies: the accuracies of all points.
        seeds: all seeds; a point without a result for one of them is left out.
    """
    best_points = {}
    for item in accuracies:
        if not set(seeds) <= set(item.val):
            continue
        group = item.point.trainer, item.point.dataset
        accuracy = fmean(item.val.values())
        if group not in best_points or accuracy > best_points[group][0]:
            best_points[group] = accuracy, item.point
    return [point for _, point in best_points.values()]


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep. Each value of the key has its own folder."""

    key: str
    protocol: str  # few_shot: all classes; base2new: training on the base classes
    shots: int
    args: argparse.Namespace
    opts: dict[str, tuple[str, ...]]  # KEY VALUE ... of each method

    def stages(self, point: Point, split: str) -> Stages:
        """Return the stages of a point, with evaluations on a split."""
        opts = (*self.opts[point.trainer], self.key, point.value, "TEST.SPLIT", split)
        folder = self.args.output_dir / f"sweep_{self.key}" / make_folder_name(point.value)
        return Stages(Method(point.trainer, self.args.cfg, opts), self.args.root, folder)

    def plan_training(self, point: Point, seed: int) -> PlannedRun:
        """Return the training of a point and seed, with its evaluation on val."""
        stages, protocol = self.stages(point, "val"), NAMES[self.protocol]
        settings = stages.settings(point.dataset, protocol, self.shots)
        folder = stages.out / protocol / point.dataset / settings.folder / f"shots{self.shots}" / f"seed{seed}"
        classes = "base" if self.protocol == "base2new" else "all"
        name = f"{self.key} {point.value}"
        return stages.plan_run(name, folder, point.dataset, seed, classes, self.shots, settings)

    def plan_tests(self, point: Point, seed: int) -> tuple[PlannedRun, ...]:
        """Return the tests of the model of a point and seed; in base2new, one for base and one for new classes."""
        model, stages = self.plan_training(point, seed).folder, self.stages(point, "test")
        kinds = ("base", "new") if self.protocol == "base2new" else ("all",)
        runs = [(kind, model / f"test_{kind}") for kind in kinds]
        return tuple(stages.plan_run("test", folder, point.dataset, seed, kind, model=model) for kind, folder in runs)


def make_folder_name(value: str) -> str:
    """Return the folder name for a value of the key."""
    return re.sub(r"[^\w.+-]+", "_", value).strip("_") or "empty"
