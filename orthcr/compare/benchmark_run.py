"""The execution of a benchmark: many methods on many data sets, by any of the four protocols."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dassl.utils import locked
from orthcr.compare import engines
from orthcr.compare.benchmark_datasets import row_of
from orthcr.compare.command_line import protocols_of
from orthcr.compare.methods import methods_of, options_by_trainer, registered_trainers
from orthcr.compare.output_folders import check_no_link, feature_cache_option, find_outdated
from orthcr.compare.plans import Job, describe_results, execute
from orthcr.compare.schedule import make_plan
from orthcr.compare.stages import Method
from orthcr.run.config import setup_cfg
from orthcr.run.config_files import owner_of
from orthcr.run.declarations import is_foreign
from trainers.shared.backbones import fetch


def run(args: argparse.Namespace) -> tuple[list[str], dict[Path, str]]:
    """Make all runs of a benchmark.

    Args:
        args: result of `command_line.parse_arguments`.

    Returns:
        A line for each failed job, and {output directory: reason} for results that were made with other settings.

    Raises:
        ValueError: a method, a data set or a setting is wrong.
    """
    names = methods_of(args.protocol, args.trainers)
    opts = feature_cache_option(args) + args.opts
    methods = [Method(trainer, args.cfg, own_opts) for trainer, own_opts in options_by_trainer(opts, names).items()]
    jobs = make_plan(methods, protocols_of(args.protocol), args)
    clips = backbones_of(jobs)
    engine = choose_engine(args, clips)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for planned_run in (planned_run for job in jobs for planned_run in job.runs):
        check_no_link(planned_run.folder, args.output_dir)
    summary = f"{sum(len(job.runs) for job in jobs)} runs of {len(methods)} methods on {', '.join(clips)}"
    print(f"{summary}; logs and results: {args.output_dir}", flush=True)
    with locked(args.output_dir, f"another benchmark is at work in {args.output_dir}: wait, or choose another"):
        finished = set()

        def report_job(job: Job, results: list[dict]) -> str:
            finished.add(job)
            return describe_results(job, results)

        failures = execute(jobs, title=args.output_dir.name, on_job_done=report_job, engine=engine)
        return failures, find_outdated([job for job in jobs if job not in finished])


def choose_engine(args: argparse.Namespace, backbones: list[str]) -> Callable:
    """Fetch the backbones and return the engine that executes the runs.

    Args:
        args: result of `command_line.parse_arguments`.
        backbones: names of the CLIPs that the runs load.

    Raises:
        ValueError, OSError: a backbone cannot be had.
    """
    print_own_settings(args)
    if args.engine == "local":
        for name in backbones:  # once, before any run: else each run would download it or fail for the same reason
            fetch(name)
    if args.engine == "ray":
        return partial(engines.run_on_ray, address=args.address, per_gpu=args.per_gpu or 1)
    gib = args.memory or max(map(engines.memory_of, backbones))
    return partial(engines.run_locally, slots=engines.find_slots(gib, args.workers, args.per_gpu))


def print_own_settings(args: argparse.Namespace) -> None:
    """Print a line for each of the user's own methods and data sets that has no published settings."""
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
