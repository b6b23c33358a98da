"""The folders in the output directory of a benchmark: the cache of features, and the results of each run."""

import argparse
from pathlib import Path

from dassl.infrastructure.command import USER_ERRORS
from orthcr.compare.plans import Job
from orthcr.key_roles import MACHINE
from orthcr.run.checks import differences
from orthcr.run.config import setup_cfg


def feature_cache_option(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the KEY VALUE pair for the runs' common cache of features; () if the user gives a folder.

    Raises:
        ValueError: the folder lies behind a link.
    """
    if "DATASET.FEATURE_CACHE" in args.opts[::2]:
        return ()
    folder = args.output_dir / "features"
    check_no_link(folder, args.output_dir)
    return "DATASET.FEATURE_CACHE", str(folder)


def check_no_link(folder: Path, output_dir: Path) -> None:
    """Raise ValueError if a link leads from a folder of the output directory to another place."""
    if folder.resolve() != output_dir.resolve() / folder.relative_to(output_dir):
        raise ValueError(f"{folder} lies behind a link: remove the link, or give another --output-dir")


def find_outdated(jobs: list[Job]) -> dict[Path, str]:
    """Return {output directory: reason} for each finished run whose results do not belong to its present settings."""
    reasons = {}
    for planned_run in (planned_run for job in jobs for planned_run in job.runs):
        result = planned_run.folder / "results.json"
        if not result.exists():
            continue
        if planned_run.model in reasons:
            reasons[planned_run.folder] = "its model was trained with other settings"
            continue
        try:
            changes = differences(setup_cfg(planned_run.spec), MACHINE)
        except USER_ERRORS as error:
            reasons[planned_run.folder] = f"its settings cannot be compared ({error})"
            continue
        if changes:
            reasons[planned_run.folder] = f"it was made with {', '.join(changes)}"
        elif planned_run.model and result.stat().st_mtime < (planned_run.model / "results.json").stat().st_mtime:
            reasons[planned_run.folder] = "it is older than its model"
    return reasons
