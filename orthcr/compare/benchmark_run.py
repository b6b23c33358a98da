"""The run of a benchmark: many methods on many data sets, by any of the four protocols."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dassl.utils import locked
from orthcr.compare import engines
from orthcr.compare.benchmark_datasets import row_of
from orthcr.compare.command_line import protocols_of
from orthcr.compare.methods import methods_of, options_of_each, registered_trainers
from orthcr.compare.output_folders import check_no_link, feature_cache_option, find_outdated
from orthcr.compare.plans import Job, describe_results, execute
from orthcr.compare.schedule import plan
from orthcr.compare.stages import Method
from orthcr.run.config import setup_cfg
from orthcr.run.config_files import owner_of
from orthcr.run.declarations import is_foreign
from trainers.shared.backbones import fetch


def run(args: argparse.Namespace) -> tuple[list[str], dict[Path, str]]:
    """Make all runs.

    Returns:
        A line for each model that failed, and the reason for each directory that holds results of other settings.

    Raises:
        ValueError: something cannot be planned.
    """
    names = methods_of(args.protocol, args.trainers)
    opts = feature_cache_option(args) + args.opts
    methods = [Method(trainer, args.cfg, own_opts) for trainer, own_opts in options_of_each(opts, names).items()]
    jobs = plan(methods, protocols_of(args.protocol), args)
    clips = backbones_of(jobs)
    engine = choose_engine(args, clips)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for planned in (planned for job in jobs for planned in job.runs):
        check_no_link(planned.folder, args.output_dir)
    summary = f"{sum(len(job.runs) for job in jobs)} runs of {len(methods)} methods on {', '.join(clips)}"
    print(f"{summary}; logs and results: {args.output_dir}", flush=True)
    with locked(args.output_dir, f"another benchmark is at work in {args.output_dir}: wait, or choose another"):
        finished = set()

        def done(job: Job, results: list[dict]) -> str:
            finished.add(job)
            return describe_results(job, results)

        failed = execute(jobs, title=args.output_dir.name, done=done, engine=engine)
        return failed, find_outdated([job for job in jobs if job not in finished])


def choose_engine(args: argparse.Namespace, backbones: list[str]) -> Callable:
    """Return the engine of the runs, after the backbones are fetched.

    Args:
        args: of `command_line.arguments`.
        backbones: names of the CLIPs that the runs load.

    Raises:
        ValueError, OSError: the runs lack something.
    """
    print_own_settings(args)
    if args.engine == "local":
        for name in backbones:  # before any run: each would fail for the same reason, or download it again
            fetch(name)
    if args.engine == "ray":
        return partial(engines.on_ray, address=args.address, per_gpu=args.per_gpu or 1)
    gib = args.memory or max(map(engines.memory_of, backbones))
    return partial(engines.local, slots=engines.slots(gib, args.workers, args.per_gpu))


def print_own_settings(args: argparse.Namespace) -> None:
    """Print the settings of the user's own methods and data sets, which have no published ones."""
    for name in registered_trainers(args.trainers):
        if not args.cfg and not is_foreign(name) and not owner_of("*", name):
            print(f"{name} has no YAML in configs/trainers/{name}: it runs with the defaults and the options")
    own_datasets = [name for name in args.datasets if name not in ("all", "embedded") and row_of(name) is None]
    names_settings = args.cfg or "MODEL.BACKBONE.NAME" in args.opts[::2]
    if own_datasets and not names_settings:
        settings = f"{', '.join(own_datasets)}: each method has its published settings for ViT-B/16"
        print(f"{settings} (335 MB are downloaded once); for the embedded CLIP give --cfg tiny", flush=True)


def backbones_of(jobs: list[Job]) -> list[str]:
    """Return the backbones of the trainings, sorted.

    This reads one config of each trainer and set of files, so that a wrong one is an error before anything runs.
    """
    specs = [job.runs[0].spec for job in jobs]
    kinds = {(spec.trainer, spec.dataset_config_file, spec.config_file): spec for spec in specs}
    return sorted({setup_cfg(spec).MODEL.BACKBONE.NAME for spec in kinds.values()})
