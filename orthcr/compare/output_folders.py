"""The folders in the output directory of a benchmark: the cache of features, and the results of each run."""

import argparse
from pathlib import Path

from dassl.infrastructure.command import USER_ERRORS
from orthcr.compare.plans import Job
from orthcr.key_roles import MACHINE
from orthcr.run.checks import differences
from orthcr.run.config import setup_cfg


def feature_cache_option(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the KEY VALUE pair of the folder in which the runs share frozen features, or () if the user gives it.

    Raises:
        ValueError: the folder lies behind a link.
    """
    if "DATASET.FEATURE_CACHE" in args.opts[::2]:
        return ()
    folder = args.output_dir / "features"
    check_no_link(folder, args.output_dir)
    return "DATASET.FEATURE_CACHE", str(folder)


def check_no_link(folder: Path, output_dir: Path) -> None:
    """Raise ValueError if a folder of the output directory lies behind a link: results would land elsewhere."""
    if folder.resolve() != output_dir.resolve() / folder.relative_to(output_dir):
        raise ValueError(f"{folder} lies behind a link: remove the link, or give another --output-dir")


def find_outdated(jobs: list[Job]) -> dict[Path, str]:
    """Return the reason for each folder of a run whose results do not belong to its present settings."""
    reasons = {}
    for planned in (planned for job in jobs for planned in job.runs):
        result = planned.folder / "results.json"
        if not result.exists():
            continue
        if planned.model in reasons:
            reasons[planned.folder] = "it is of a model with other settings"
            continue
        try:
            different = differences(setup_cfg(planned.spec), MACHINE)
        except USER_ERRORS as error:
            reasons[planned.folder] = f"its settings cannot be compared ({error})"
            continue
        if different:
            reasons[planned.folder] = f"it was made with {', '.join(different)}"
        elif planned.model and result.stat().st_mtime < (planned.model / "results.json").stat().st_mtime:
            reasons[planned.folder] = "it is older than its model"
    return reasons
