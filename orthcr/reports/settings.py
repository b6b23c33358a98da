"""The rows of a table: the runs of each method with a label."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from orthcr.reports.runs import FULL, STRENGTH, Run, setting


class Label(NamedTuple):
    """The name of a method in tables. Labels of zero-shot methods sort first."""

    is_trained: bool
    text: str


def group_by_method(runs: list[Run]) -> tuple[dict[Label, list[Run]], list[str]]:
    """Return the runs of each method, and a line for each method whose runs have different settings.

    Methods are sorted by name, zero-shot ones first. Runs of one trainer with another backbone, code or setting are
    another method. A setting counts only if it has several values on the same data set, classes and shots. So the
    number of epochs in CoOp's few-shot runs, which depends on the shots, makes no new methods, but a line. A strength
    below 1 is always part of the label.

    Args:
        runs: runs of any trainers.
    """
    groups = defaultdict(list)
    for run in runs:
        groups[run.trained is not None, run.family].append(run)
    backbones, codes = {run.backbone for run in runs}, {run.code for run in runs}
    labels, notes = {}, []
    for (is_trained, (trainer, backbone, code)), family_runs in sorted(groups.items()):
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
                word = format_setting(key, value, {dict(other_variant)[key] for other_variant in variants})
                if word:
                    words.append(word)
            text = f"{trainer} ({', '.join(words)})" if words else trainer
            labels[Label(is_trained, text)] = members
            mixed_settings = differing_settings(members)
            if mixed_settings:
                notes.append(f"{text}: not all of its runs have the same {format_values(mixed_settings)}")
    return labels, notes


def format_setting(key: str, value: str, values: set[str]) -> str:
    """Return a setting in the label of a method; "" for the full strength.

    Args:
        key: key of the config.
        value: value of the method.
        values: values of all methods of the trainer.
    """
    if key.endswith(STRENGTH):
        return "" if value == FULL else f"s={value}"
    if key == "INPUT.TRANSFORMS":
        without_cutout = {re.sub(r"'cutout'(, )?|, 'cutout'", "", text) for text in values}
        if len(without_cutout) == 1:
            return "Cutout" if "'cutout'" in value else "no Cutout"
    return f"{key.rpartition('.')[2]} {value}"


def partial_strengths(runs: list[Run]) -> list[str]:
    """Return the keys of strengths that are not 1 in all runs."""
    settings = [pair for run in runs for pair in run.settings]
    return sorted({key for key, value in settings if key.endswith(STRENGTH) and value != FULL})


def format_values(values: dict[str, set[str]], limit: int = 4) -> str:
    """Return "KEY (value, value), ..." of the first `limit` settings."""
    words = [f"{key} ({', '.join(sorted(values[key]))})" for key in list(values)[:limit]]
    if len(values) > limit:
        words.append("...")
    return ", ".join(words)


def separating_settings(runs: list[Run]) -> list[str]:
    """Return the settings that differ between runs of the same training data and the same evaluation data."""
    groups = defaultdict(list)
    for run in runs:
        groups[run.trained and run.trained[:3], run.dataset, run.classes].append(run)
    keys = sorted({key for members in groups.values() for key in differing_settings(members)})
    return [key for key in keys if key != "config"] or keys  # "config", a file name, counts if nothing else differs


def differing_settings(runs: Iterable[Run]) -> dict[str, set[str]]:
    """Return {key: values} of the settings with several values. Runs that lack a setting are ignored."""
    runs = list(runs)
    keys = sorted({key for run in runs for key, _ in run.settings})
    values = {key: {setting(run, key) for run in runs} - {"?"} for key in keys}
    return {key: values[key] for key in keys if len(values[key]) > 1}
