"""Statistics of tables: ties with the best figure, ranks over data sets, agreement with the published averages."""

from collections.abc import Iterable
from typing import NamedTuple

LEVEL = 0.05  # of the two-sided paired t-test
FEWEST = 5  # methods that a rank correlation needs
GOOD, PARTIAL = 0.7, 0.4  # Spearman correlations from which the orders agree well, and in part


def stats():
    """Import scipy.stats, which takes long, where it is needed."""
    from scipy import stats

    return stats


def is_tie(best: dict[int | None, float], other: dict[int | None, float]) -> bool:
    """Return whether a figure is not significantly different from the best one, by a t-test paired over seeds.

    Args:
        best: values by seed; the key None stands for every seed, as zero-shot has none.
        other: the same, of the figure to compare.

    Returns:
        False also with fewer than two seeds in common, where no test is possible.
    """
    seeds = sorted({seed for seed in (*best, *other) if seed is not None})
    pairs = [(best.get(seed, best.get(None)), other.get(seed, other.get(None))) for seed in seeds]
    pairs = [pair for pair in pairs if None not in pair]
    if len(pairs) < 2:
        return False
    differences = {round(a - b, 9) for a, b in pairs}
    if len(differences) == 1:  # the test is not defined without a spread
        return differences == {0.0}
    return stats().ttest_rel(*zip(*pairs, strict=True)).pvalue >= LEVEL


def ranks(columns: Iterable[dict[str, float]]) -> dict[str, list[float]]:
    """Return the ranks of each method, one a column, 1 for the highest figure; equal figures share their mean rank.

    Args:
        columns: figures by method, a column for each data set. Only methods that every column has are ranked.
    """
    columns = list(columns)
    methods = [method for method in columns[0] if all(method in column for column in columns)] if columns else []
    by_column = [stats().rankdata([-column[method] for method in methods]) for column in columns]
    return {method: [float(column[k]) for column in by_column] for k, method in enumerate(methods)}


class Agreement(NamedTuple):
    """Agreement of a column with the published averages.

    Attributes:
        rows: measured and published figure, and both ranks, by method.
        rho: Spearman's rank correlation.
        tau: Kendall's rank correlation.
        p: two-sided p-value of rho.
    """

    rows: dict[str, tuple[float, float, float, float]]
    rho: float
    tau: float
    p: float


def agreement(measured: dict[str, float], published: dict[str, float]) -> Agreement | None:
    """Compare the order of the methods here with their order in the publications.

    Args:
        measured: percent by method.
        published: percent by method.

    Returns:
        None with fewer than FEWEST methods in common, or if a side has one value only.
    """
    methods = [method for method in measured if method in published]
    here, there = [measured[m] for m in methods], [published[m] for m in methods]
    if len(methods) < FEWEST or len(set(here)) == 1 or len(set(there)) == 1:
        return None
    by_column = ranks([dict(zip(methods, here, strict=True)), dict(zip(methods, there, strict=True))])
    rows = {m: (measured[m], published[m], *by_column[m]) for m in methods}
    spearman, kendall = stats().spearmanr(here, there), stats().kendalltau(here, there)
    return Agreement(rows, float(spearman.statistic), float(kendall.statistic), float(spearman.pvalue))


def format_agreement(name: str, a: Agreement) -> str:
    """Return a sentence: how far the order of the methods agrees with the published one."""
    if a.rho >= GOOD:
        verb = "agrees well with"
    elif a.rho >= PARTIAL:
        verb = "agrees in part with"
    else:
        verb = "says little about"
    figures = f"Spearman {a.rho:.2f} (p {a.p:.2f}), Kendall {a.tau:.2f}, {len(a.rows)} methods"
    return f"{name}: the order of the methods here {verb} that of the published averages ({figures})"
