"""The report of a sweep: a table and a picture of the accuracies on val, by value."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, pstdev

from tabulate import tabulate

from dassl.infrastructure.files import atomic_write
from orthcr.reports.palette import styles_of
from orthcr.reports.pictures import escape_dollars, legend, plt, save
from orthcr.reports.tables import in_markdown, section, spread

NOTES = (
    "Accuracy in percent, mean and population standard deviation over the seeds.",
    "The marked value is the best on val. It alone is tested.",
)


def write_sweep(key: str, accuracies: Sequence, seeds: list[int], out: Path) -> None:
    """Print the table of a sweep, and write sweep_KEY.md, .csv and .png to `out`.

    Args:
        key: the config key whose values are compared.
        accuracies: accuracies of each point of the sweep, as `orthcr.compare.sweep.run` returns them.
        seeds: those that each point must have.
        out: directory.
    """
    classes = list(dict.fromkeys(kind for item in accuracies for kind in item.test))
    heads = ["data set", "method", key, "val", *(f"test, {kind} classes" for kind in classes)]
    notes = [*NOTES, *missing_seeds(accuracies, seeds)]
    print(section(f"Sweep of {key}", [table(heads, accuracies, classes, markdown=False)], notes, markdown=False))
    text = section(f"Sweep of {key}", [table(heads, accuracies, classes, markdown=True)], notes, markdown=True)
    for end, content in (("md", f"{text}\n"), ("csv", as_csv(key, accuracies))):
        with atomic_write(out / f"sweep_{key}.{end}") as f:
            f.write(content.encode())
    with plt.rc_context({"text.parse_math": False}):
        save(picture(key, accuracies), out / f"sweep_{key}.png")
    print(f"{out / f'sweep_{key}.md'}; beside it .csv and .png")


def table(heads: list[str], accuracies: Sequence, classes: list[str], markdown: bool) -> str:
    rows = []
    for item in accuracies:
        tests = [item.test.get(kind, {}) for kind in classes]
        row = [item.point.dataset, item.point.trainer, item.point.value, spread(list(item.val.values()))]
        row += [spread(list(test.values())) if test else "" for test in tests]
        if markdown:
            row = list(map(in_markdown, row))
        if item.is_chosen:
            row[2:4] = [f"**{text}**" for text in row[2:4]] if markdown else [f"{row[2]} *", row[3]]
        rows.append(row)
    form = "github" if markdown else "simple_outline"
    return tabulate(rows, heads, form, colalign=["left", "left", *["right"] * (len(heads) - 2)], disable_numparse=True)


def missing_seeds(accuracies: Sequence, seeds: list[int]) -> list[str]:
    """Return a line for each point that lacks a seed and is therefore not chosen."""
    lines = []
    for item in accuracies:
        lost = [str(seed) for seed in seeds if seed not in item.val]
        if lost:
            name = f"{item.point.trainer} on {item.point.dataset}, {item.point.value}"
            lines.append(f"{name}: without seed {', '.join(lost)}, and so not chosen")
    return lines


def as_csv(key: str, accuracies: Sequence) -> str:
    """Return the accuracies as CSV, one a line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["dataset", "method", key, "split", "classes", "seed", "accuracy", "chosen"])
    for item in accuracies:
        about = item.point.dataset, item.point.trainer, item.point.value
        writer.writerows([*about, "val", "", seed, f"{x:.4f}", item.is_chosen] for seed, x in item.val.items())
        for kind, test in item.test.items():
            writer.writerows([*about, "test", kind, seed, f"{x:.4f}", item.is_chosen] for seed, x in test.items())
    return out.getvalue()


def picture(key: str, accuracies: Sequence):
    """Draw the accuracy on val by value, a panel for each data set and a line for each method.

    A star marks the value that is chosen.
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
        legend(fig, list(handles.values()), list(handles))
    return fig
