"""The report of a sweep: a table and a picture of the accuracies on val for each value of the key."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, pstdev

from tabulate import tabulate

from dassl.infrastructure.files import atomic_write
from orthcr.reports.palette import styles_of
from orthcr.reports.pictures import draw_legend, escape_dollars, plt, save
from orthcr.reports.tables import escape_markdown, format_mean, section

NOTES = (
    "Accuracy in percent, mean and population standard deviation over the seeds.",
    "The marked value is the best on val. Only this value is tested.",
)


def write_sweep(key: str, accuracies: Sequence, seeds: list[int], out: Path) -> None:
    """Print the table of a sweep, and write sweep_KEY.md, .csv and .png to `out`.

    Args:
        key: the config key whose values are compared.
        accuracies: accuracies of each point of the sweep, as `orthcr.compare.sweep.run` returns them.
        seeds: seeds that each point should have.
        out: directory for the files.
    """
    classes = list(dict.fromkeys(kind for item in accuracies for kind in item.test))
    heads = ["data set", "method", key, "val", *(f"test, {kind} classes" for kind in classes)]
    notes = [*NOTES, *missing_seeds(accuracies, seeds)]
    print(section(f"Sweep of {key}", [table(heads, accuracies, classes, markdown=False)], notes, markdown=False))
    text = section(f"Sweep of {key}", [table(heads, accuracies, classes, markdown=True)], notes, markdown=True)
    for end, content in (("md", f"{text}\n"), ("csv", format_csv(key, accuracies))):
        with atomic_write(out / f"sweep_{key}.{end}") as f:
            f.write(content.encode())
    with plt.rc_context({"text.parse_math": False}):
        save(draw_picture(key, accuracies), out / f"sweep_{key}.png")
    print(f"{out / f'sweep_{key}.md'}; beside it .csv and .png")


def table(heads: list[str], accuracies: Sequence, classes: list[str], markdown: bool) -> str:
    rows = []
    for item in accuracies:
        tests = [item.test.get(kind, {}) for kind in classes]
        row = [item.point.dataset, item.point.trainer, item.point.value, format_mean(list(item.val.values()))]
        row += [format_mean(list(test.values())) if test else "" for test in tests]
        if markdown:
            row = list(map(escape_markdown, row))
        if item.is_chosen:
            row[2:4] = [f"**{text}**" for text in row[2:4]] if markdown else [f"{row[2]} *", row[3]]
        rows.append(row)
    form = "github" if markdown else "simple_outline"
    return tabulate(rows, heads, form, colalign=["left", "left", *["right"] * (len(heads) - 2)], disable_numparse=True)


def missing_seeds(accuracies: Sequence, seeds: list[int]) -> list[str]:
    """Return a line for each point that lacks a seed and is therefore not chosen."""
    lines = []
    for item in accuracies:
        lost_seeds = [str(seed) for seed in seeds if seed not in item.val]
        if lost_seeds:
            name = f"{item.point.trainer} on {item.point.dataset}, {item.point.value}"
            lines.append(f"{name}: not chosen, because seed {', '.join(lost_seeds)} is missing")
    return lines


def format_csv(key: str, accuracies: Sequence) -> str:
    """Return the accuracies as CSV, one accuracy a line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["dataset", "method", key, "split", "classes", "seed", "accuracy", "chosen"])
    for item in accuracies:
        names = item.point.dataset, item.point.trainer, item.point.value
        writer.writerows([*names, "val", "", seed, f"{x:.4f}", item.is_chosen] for seed, x in item.val.items())
        for kind, test in item.test.items():
            writer.writerows([*names, "test", kind, seed, f"{x:.4f}", item.is_chosen] for seed, x in test.items())
    return out.getvalue()


def draw_picture(key: str, accuracies: Sequence):
    """Draw the accuracy on val against the value, in a panel for each data set, with a line for each method.

    A star marks the chosen value.
    """
    datasets = list(dict.fromkeys(item.point.dataset for item in accuracies))
    methods = list(dict.fromkeys(item.point.trainer for item in accuracies))
    values = list(dict.fromkeys(item.point.value for item in accuracies))
    styles = styles_of(methods)
    columns = min(3, len(datasets))
    rows = -(-len(datasets) // columns)
    size = (max(5.0, 3.8 * columns), 3.4 * rows)
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    handles = {}
    for ax, dataset in zip(axes.flat, datasets, strict=False):
        for method in methods:
            curve = [item for item in accuracies if (item.point.dataset, item.point.trainer) == (dataset, method)]
            if not curve:
                continue
            colour, marker = styles[method]["color"], styles[method]["marker"]
            x = [values.index(item.point.value) for item in curve]
            y = [mean(item.val.values()) for item in curve]
            error = [pstdev(item.val.values()) for item in curve]
            handles[method] = ax.errorbar(x, y, error, color=colour, marker=marker, ms=5, lw=1.5, capsize=2)
            for x_value, y_value, item in zip(x, y, curve, strict=True):
                if item.is_chosen:
                    ax.plot(x_value, y_value, "*", color=colour, ms=15, mec="k", mew=0.7, zorder=4)
        ax.set_title(*escape_dollars([dataset]), fontsize=11)
        ax.set_xticks(range(len(values)), escape_dollars(values))
        ax.set_xlabel(key)
    for ax in axes.flat[len(datasets) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy on val, %")
    if len(methods) > 1:
        draw_legend(fig, list(handles.values()), list(handles))
    return fig
