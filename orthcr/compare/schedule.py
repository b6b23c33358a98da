"""The plan of a benchmark: one job for each model, with its training and all its tests."""

import argparse
from collections.abc import Iterable, Iterator

from dassl.config import flatten
from orthcr.compare.benchmark_datasets import datasets_of, number_of_classes, source_of
from orthcr.compare.methods import depends_on_seed, is_trained
from orthcr.compare.overrides import cutout_choices, halve_epochs, other_strengths, override_cutout
from orthcr.compare.plans import Job, PlannedRun
from orthcr.compare.stages import Method, Stages
from orthcr.run.config import setup_cfg
from orthcr.run.declarations import descriptions_key


def make_plan(methods: Iterable[Method], protocols: list[str], args: argparse.Namespace) -> list[Job]:
    """Return a plan with one job for each model.

    Args:
        methods: the methods to compare.
        protocols: names from `command_line.PROTOCOLS`.
        args: result of `command_line.parse_arguments`.

    Raises:
        ValueError: none of the protocols uses one of the data sets.
    """
    check_datasets(protocols, args)
    jobs, skip_undescribed = [], "all" in args.trainers
    for method in methods:
        for cutout in cutout_choices(method.trainer, args):
            jobs += drop_undescribed(list(jobs_of_method(method, cutout, protocols, args)), skip_undescribed)
    return jobs


def check_datasets(protocols: list[str], args: argparse.Namespace) -> None:
    """Raise ValueError if none of the protocols uses a data set of --datasets."""
    used_datasets = {name for protocol in protocols for name in datasets_of(protocol, args.datasets)}
    used_datasets |= {"all", "embedded", *map(source_of, used_datasets)}
    for word in args.datasets:
        if word not in used_datasets:
            protocol = ", ".join(args.protocol)
            raise ValueError(f"--datasets {word} has no part in --protocol {protocol}: see docs/protocols.md")


def drop_undescribed(jobs: list[Job], skip_undescribed: bool) -> list[Job]:
    """Return the jobs of a method that have descriptions of the classes; all jobs if the method needs none.

    Args:
        jobs: jobs of one method.
        skip_undescribed: whether to leave out jobs without descriptions and print a line; False: raise an error.

    Raises:
        ValueError: a job has no descriptions.
    """
    trainer = jobs[0].runs[0].spec.trainer if jobs else ""
    key = descriptions_key(trainer) if jobs else ""
    if not key or is_trained(trainer):
        return jobs
    described_jobs = [job for job in jobs if flatten(setup_cfg(job.runs[0].spec))[key]]
    if len(described_jobs) < len(jobs):
        count = f"{len(jobs) - len(described_jobs)} of {len(jobs)} jobs"
        problem = f"{trainer} needs descriptions of the classes, which {count} lack"
        if not skip_undescribed:
            raise ValueError(f"{problem}: give {key} FILE, or leave {trainer} out")
        print(f"{problem}. These jobs are left out: to run them, give {key} FILE")
    return described_jobs


def jobs_of_method(method: Method, cutout: str, protocols: list[str], args: argparse.Namespace) -> Iterator[Job]:
    """Yield a job for each model of a method.

    Args:
        method: the method.
        cutout: one of `overrides.cutout_choices`.
        protocols: names from `command_line.PROTOCOLS`.
        args: result of `command_line.parse_arguments`.
    """
    out = args.output_dir / f"{cutout}_cutout" if cutout else args.output_dir
    stages, has_training = Stages(method, args.root, out), is_trained(method.trainer)
    for seed in args.seeds if depends_on_seed(method.trainer) else args.seeds[:1]:
        for runs, images in runs_of_models(stages, protocols, args, seed, has_training):
            if cutout:
                runs[0] = override_cutout(runs[0], cutout)
            strengths = other_strengths(runs[0], args.strength)
            runs += [run.with_strength(s) for s in strengths for run in list(runs)]
            seconds = 20 * len(runs)
            if has_training:
                seconds += images
            yield Job(tuple(runs), seconds, method.trainer)


def runs_of_models(
    stages: Stages, protocols: list[str], args: argparse.Namespace, seed: int, has_training: bool
) -> Iterator[tuple[list[PlannedRun], float]]:
    """Yield the runs of each model of one method and seed, and the expected cost of its training.

    The cost is the number of training images of an epoch.

    Args:
        stages: stages of the method.
        protocols: names from `command_line.PROTOCOLS`.
        args: result of `command_line.parse_arguments`.
        seed: seed of the trainings.
        has_training: whether the method is trained; if not, one number of shots is enough.
    """
    if "base2new" in protocols:
        for name in datasets_of("base2new", args.datasets):
            runs = [stages.base2new_train(name, seed), stages.base2new_test(name, seed)]
            yield runs, 16 * number_of_classes(name) / 2
    if "fewshot" in protocols:
        for name in datasets_of("fewshot", args.datasets):
            for shots in args.shots if has_training else [max(args.shots)]:
                yield [stages.fewshot(name, seed, shots)], shots * number_of_classes(name)
    test_datasets = {p: datasets_of(p, args.datasets) if p in protocols else [] for p in ("xd", "dg")}
    for source in dict.fromkeys(map(source_of, test_datasets["xd"] + test_datasets["dg"])):
        runs = [stages.xd_train(source, seed, halve_epochs(stages, source))]
        runs += [stages.xd_test(name, seed) for name in test_datasets["xd"] if source_of(name) == source]
        runs += [stages.dg_test(name, seed) for name in test_datasets["dg"] if source_of(name) == source]
        yield runs, 16 * number_of_classes(source) / 2  # embedded sources train for half the epochs
