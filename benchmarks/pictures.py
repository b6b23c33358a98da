"""Pictures of time and memory of a training step against the number of classes, with the prediction as a line."""

from pathlib import Path
from statistics import median

from orthcr.reports.palette import BLUE, GREY
from orthcr.reports.pictures import plt, save

from .cases import FIRST, Case
from .results import Results

STYLES = {"reference": (GREY, "o"), "ours": (BLUE, "s")}


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw time_batch<b>.png and memory_batch<b>.png for each batch size.

    They have a panel for each trainer and precision that is measured at two numbers of classes or more.

    Args:
        results: the measurements.
        folder: folder of the files.

    Returns:
        The paths of the files.
    """
    paths, lines = [], {}
    for case in sorted(results.cases, key=lambda case: case.classes):
        if (case.kind, case.backbone) == ("train", FIRST):
            lines.setdefault(case.batch, {}).setdefault((case.trainer, case.prec), []).append(case)
    for batch, batch_lines in lines.items():
        curves = {line: cases for line, cases in batch_lines.items() if len(cases) > 1}
        if not curves:
            continue
        for name, panel in (("time", time), ("memory", memory)):
            paths.append(save(panels(results, curves, panel), folder / f"{name}_batch{batch}.png"))
    return paths


def panels(results: Results, lines: dict[tuple[str, str], list[Case]], panel):
    columns = min(len(lines), 3)
    rows = -(-len(lines) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(1.5 + 3.6 * columns, 3.6 * rows), squeeze=False)
    for ax, ((trainer, prec), cases) in zip(axes.flat, lines.items(), strict=False):
        panel(ax, results, cases)
        ax.set(xscale="log", yscale="log", xlabel="classes", title=f"{trainer}, batch {cases[0].batch}, {prec}")
        ax.set_xticks([10, 50, 100, 500, 1000], [10, 50, 100, 500, 1000], minor=False)
        ax.minorticks_off()
        ax.legend(fontsize=8)
    for ax in axes.flat[len(lines) :]:
        ax.set_visible(False)
    return fig


def time(ax, results: Results, cases: list[Case]) -> None:
    """Draw the seconds of a step; hollow points are extrapolated, see `Results.reference`."""
    measured = [case for case in cases if results.reference(case)[1]]
    extrapolated = [case for case in cases if case not in measured and results.reference(case)[0]]
    counted = {case.classes: results.cases[case]["counted"] for case in cases}
    rates = [counted[c.classes]["reference"]["gflop"] / results.seconds(c, "reference") for c in measured]
    for form, (colour, marker) in STYLES.items():
        seconds = {case.classes: results.seconds(case, form) for case in cases if form in results.cases[case]}
        ax.plot(list(seconds), list(seconds.values()), marker, color=colour, label=form)
        if rates:
            predicted = [costs[form]["gflop"] / median(rates) for costs in counted.values()]
            ax.plot(list(counted), predicted, "--", color=colour, lw=1, label=f"{form}, predicted")
    estimates = [results.reference(case)[0] for case in extrapolated]
    ax.plot([case.classes for case in extrapolated], estimates, "o", color=GREY, mfc="none")
    ax.set_ylabel("s a step")


def memory(ax, results: Results, cases: list[Case]) -> None:
    for form, (colour, marker) in STYLES.items():
        measured = [case for case in cases if form in results.cases[case]]
        peaks = [results.cases[case][form]["peak_mib"] / 1024 for case in measured]
        ax.plot([case.classes for case in measured], peaks, marker, color=colour, label=form)
    counted = [results.cases[case]["counted"]["reference"]["gib"] for case in cases]
    ax.plot([case.classes for case in cases], counted, "--", color=GREY, lw=1, label="reference, counted")
    ax.set_ylabel("GiB at the peak of a step")
