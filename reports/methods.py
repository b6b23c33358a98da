"""The rows of a table: which runs are of the same method."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from .runs import STRENGTH, Run, setting


class Label(NamedTuple):
    """How the rows of a method are called."""

    trained: bool
    text: str


def by_method(runs: list[Run], notes: list[str]) -> dict[Label, list[Run]]:
    """Zero-shot first, then by name. Runs of one trainer that differ in backbone, code or settings are kept apart.

    A setting keeps runs apart if it takes several values where nothing else differs but the seed. If it follows the
    data set or the shots, as the number of epochs in CoOp's few-shot runs, it does not, and a line in `notes` says so.
    """
    groups = defaultdict(list)
    for run in runs:
        groups[run.trained is not None, run.family].append(run)
    backbones, codes = {run.backbone for run in runs}, {run.code for run in runs}
    labels = {}
    for (trained, (trainer, backbone, code)), own in sorted(groups.items()):
        keys = separating(own)
        variants = defaultdict(list)
        for run in own:
            variants[tuple((key, setting(run, key)) for key in keys)].append(run)
        for variant, members in sorted(variants.items()):
            words = [f"s={v}" if key.endswith(STRENGTH) else f"{key.rpartition('.')[2]} {v}" for key, v in variant]
            words = [backbone] * (len(backbones) > 1) + [code] * (bool(code) and len(codes) > 1) + words
            text = f"{trainer} ({', '.join(words)})" if words else trainer
            labels[Label(trained, text)] = members
            mixed = differing(members)
            if mixed:
                found = ", ".join(f"{key} ({', '.join(sorted(values))})" for key, values in list(mixed.items())[:4])
                notes.append(f"{text}: not all of its runs have the same {found}" + ", ..." * (len(mixed) > 4))
    return labels


def separating(runs: list[Run]) -> list[str]:
    """The settings that differ between runs which were trained and evaluated on the same."""
    alike = defaultdict(list)
    for run in runs:
        alike[run.trained and run.trained[:3], run.dataset, run.classes].append(run)
    keys = sorted({key for same in alike.values() for key in differing(same)})
    return [key for key in keys if key != "config"] or keys  # the name of the file only if nothing else differs


def differing(runs: Iterable[Run]) -> dict[str, set[str]]:
    """{setting: its values} of those that are not the same in all; one that older runs do not know is no difference."""
    runs = list(runs)
    values = {
        key: {setting(run, key) for run in runs} - {"?"} for key in sorted({k for r in runs for k, _ in r.settings})
    }
    return {key: found for key, found in values.items() if len(found) > 1}
