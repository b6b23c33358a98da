"""The rows of a table: the runs of each method, under a label."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from orthcr.reports.runs import FULL, STRENGTH, Run, setting


class Label(NamedTuple):
    """The name of a method in tables; zero-shot methods come first."""

    trained: bool
    text: str


def by_method(runs: list[Run]) -> tuple[dict[Label, list[Run]], list[str]]:
    """Return the runs of each method, zero-shot first, then by name, and a line for each with mixed settings.

    Runs of one trainer that differ in backbone, code or settings are different methods. A setting makes a method if
    it takes several values on the same data set, classes and shots. A setting that follows the data set or the shots
    makes none, as the number of epochs in CoOp's few-shot runs; it gets a line. A strength below 1 is always named.

    Args:
        runs: runs of any trainers.
    """
    groups = defaultdict(list)
    for run in runs:
        groups[run.trained is not None, run.family].append(run)
    backbones, codes = {run.backbone for run in runs}, {run.code for run in runs}
    labels, notes = {}, []
    for (trained, (trainer, backbone, code)), family_runs in sorted(groups.items()):
        keys = list(dict.fromkeys([*separating_settings(family_runs), *partial_strengths(family_runs)]))
        variants = defaultdict(list)
        for run in family_runs:
            variants[tuple((key, setting(run, key)) for key in keys)].append(run)
        for variant, members in sorted(variants.items()):
            words = []
            if len(backbones) > 1:
                words.append(backbone)
            if code and len(codes) > 1:
                words.append(code)
            for key, value in variant:
                word = format_setting(key, value, {dict(other)[key] for other in variants})
                if word:
                    words.append(word)
            text = f"{trainer} ({', '.join(words)})" if words else trainer
            labels[Label(trained, text)] = members
            mixed = differing_settings(members)
            if mixed:
                notes.append(f"{text}: not all of its runs have the same {format_values(mixed)}")
    return labels, notes


def format_setting(key: str, value: str, values: set[str]) -> str:
    """Return a setting in the label of a method; "" for the full strength.

    Args:
        key: key of the config.
        value: value of the method.
        values: those of all methods of the trainer.
    """
    if key.endswith(STRENGTH):
        return "" if value == FULL else f"s={value}"
    if key == "INPUT.TRANSFORMS" and len({re.sub(r"'cutout'(, )?|, 'cutout'", "", other) for other in values}) == 1:
        return "Cutout" if "'cutout'" in value else "no Cutout"
    return f"{key.rpartition('.')[2]} {value}"


def partial_strengths(runs: list[Run]) -> list[str]:
    """Return the keys of a strength that is not 1 in all runs."""
    settings = [pair for run in runs for pair in run.settings]
    return sorted({key for key, value in settings if key.endswith(STRENGTH) and value != FULL})


def format_values(values: dict[str, set[str]], most: int = 4) -> str:
    """Return "KEY (value, value), ..." of the first `most` settings."""
    words = [f"{key} ({', '.join(sorted(values[key]))})" for key in list(values)[:most]]
    if len(values) > most:
        words.append("...")
    return ", ".join(words)


def separating_settings(runs: list[Run]) -> list[str]:
    """Return the settings that differ between runs of the same training data and the same evaluation data."""
    alike = defaultdict(list)
    for run in runs:
        alike[run.trained and run.trained[:3], run.dataset, run.classes].append(run)
    keys = sorted({key for same in alike.values() for key in differing_settings(same)})
    return [key for key in keys if key != "config"] or keys  # the name of the file only if nothing else differs


def differing_settings(runs: Iterable[Run]) -> dict[str, set[str]]:
    """Return the values of each setting that is not the same in all runs.

    A setting that older runs lack is no difference.
    """
    runs = list(runs)
    keys = sorted({key for run in runs for key, _ in run.settings})
    values = {key: {setting(run, key) for run in runs} - {"?"} for key in keys}
    return {key: values[key] for key in keys if len(values[key]) > 1}
