"""The plan of a benchmark: a job for each model, which is its training and all its tests."""

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


def plan(methods: Iterable[Method], protocols: list[str], args: argparse.Namespace) -> list[Job]:
    """Return a job for each model: its training and all its tests.

    Args:
        methods: to be compared.
        protocols: of `command_line.PROTOCOLS`.
        args: of `command_line.arguments`.

    Raises:
        ValueError: a data set has no part in any of the protocols.
    """
    check_datasets(protocols, args)
    jobs, may_lack = [], "all" in args.trainers
    for method in methods:
        for cutout in cutout_choices(method.trainer, args):
            jobs += drop_undescribed(list(jobs_of_method(method, cutout, protocols, args)), may_lack)
    return jobs


def check_datasets(protocols: list[str], args: argparse.Namespace) -> None:
    """Raise ValueError if a data set of --datasets has no part in any of the protocols."""
    used = {name for protocol in protocols for name in datasets_of(protocol, args.datasets)}
    used |= {"all", "embedded", *map(source_of, used)}
    for word in args.datasets:
        if word not in used:
            raise ValueError(f"{word} has no part in {', '.join(args.protocol)}: see docs/protocols.md")


def drop_undescribed(jobs: list[Job], may_lack: bool) -> list[Job]:
    """Return the jobs of a method, without those that lack the descriptions of the classes that it needs.

    Args:
        jobs: of one method.
        may_lack: whether they are left out with a line; False: they are an error.

    Raises:
        ValueError: jobs are without descriptions.
    """
    trainer = jobs[0].runs[0].spec.trainer if jobs else ""
    key = descriptions_key(trainer) if jobs else ""
    if not key or is_trained(trainer):
        return jobs
    ready = [job for job in jobs if flatten(setup_cfg(job.runs[0].spec))[key]]
    if len(ready) < len(jobs):
        lack = f"{trainer} needs sentences about the classes in {len(jobs) - len(ready)} of {len(jobs)} jobs"
        if not may_lack:
            raise ValueError(f"{lack}: give {key} FILE, or leave {trainer} out")
        print(f"{lack}, which are left out: give {key} FILE for them")
    return ready


def jobs_of_method(method: Method, cutout: str, protocols: list[str], args: argparse.Namespace) -> Iterator[Job]:
    """Yield a job for each model of a method.

    Args:
        method: to be compared.
        cutout: of `overrides.cutout_choices`.
        protocols: of `command_line.PROTOCOLS`.
        args: of `command_line.arguments`.
    """
    out = args.output_dir / f"{cutout}_cutout" if cutout else args.output_dir
    stages, trained = Stages(method, args.root, out), is_trained(method.trainer)
    for seed in args.seeds if depends_on_seed(method.trainer) else args.seeds[:1]:
        for runs, images in runs_of_models(stages, protocols, args, seed, trained):
            if cutout:
                runs[0] = override_cutout(runs[0], cutout)
            strengths = other_strengths(runs[0], args.strength)
            runs += [run.at_strength(s) for s in strengths for run in list(runs)]
            seconds = 20 * len(runs)
            if trained:
                seconds += images
            yield Job(tuple(runs), seconds, method.trainer)


def runs_of_models(
    stages: Stages, protocols: list[str], args: argparse.Namespace, seed: int, trained: bool
) -> Iterator[tuple[list[PlannedRun], float]]:
    """Yield the runs of each model of one method and seed, and its expected cost in training images of an epoch.

    Args:
        stages: of the method.
        protocols: of `command_line.PROTOCOLS`.
        args: of `command_line.arguments`.
        seed: of the trainings.
        trained: False: the method learns nothing, so that one number of shots is enough.
    """
    if "base2new" in protocols:
        for name in datasets_of("base2new", args.datasets):
            runs = [stages.base2new_train(name, seed), stages.base2new_test(name, seed)]
            yield runs, 16 * number_of_classes(name) / 2
    if "fewshot" in protocols:
        for name in datasets_of("fewshot", args.datasets):
            for shots in args.shots if trained else [max(args.shots)]:
                yield [stages.fewshot(name, seed, shots)], shots * number_of_classes(name)
    tested = {p: datasets_of(p, args.datasets) if p in protocols else [] for p in ("xd", "dg")}
    for source in dict.fromkeys(map(source_of, tested["xd"] + tested["dg"])):
        runs = [stages.xd_train(source, seed, halve_epochs(stages, source))]
        runs += [stages.xd_test(name, seed) for name in tested["xd"] if source_of(name) == source]
        runs += [stages.dg_test(name, seed) for name in tested["dg"] if source_of(name) == source]
        yield runs, 16 * number_of_classes(source) / 2  # embedded sources train for half the epochs
