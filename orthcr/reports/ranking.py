"""Statistics of tables: ties with the best figure, ranks over data sets, agreement with the published averages."""

from collections.abc import Iterable
from typing import NamedTuple

LEVEL = 0.05  # significance level of the two-sided paired t-test
FEWEST = 5  # smallest number of methods for a rank correlation
GOOD, PARTIAL = 0.7, 0.4  # smallest Spearman correlation of orders that agree well, and that agree in part


def import_stats():
    """Import scipy.stats when it is needed, because this takes long."""
    from scipy import stats

    return stats


def is_tie(best: dict[int | None, float], other: dict[int | None, float]) -> bool:
    """Return whether a figure is not significantly different from the best one, by a t-test paired over seeds.

    Args:
        best: {seed: value} of the best figure; the key None, for zero-shot, stands for every seed.
        other: {seed: value} of the other figure.

    Returns:
        The result; False if fewer than two seeds are common, because no test is possible.
    """
    seeds = sorted({seed for seed in (*best, *other) if seed is not None})
    pairs = [(best.get(seed, best.get(None)), other.get(seed, other.get(None))) for seed in seeds]
    pairs = [pair for pair in pairs if None not in pair]
    if len(pairs) < 2:
        return False
    differences = {round(a - b, 9) for a, b in pairs}
    if len(differences) == 1:  # the test is not defined without a spread
        return differences == {0.0}
    return import_stats().ttest_rel(*zip(*pairs, strict=True)).pvalue >= LEVEL


def ranks(columns: Iterable[dict[str, float]]) -> dict[str, list[float]]:
    """Return {method: its rank in each column}. Rank 1 is the highest figure; equal figures have their mean rank.

    Args:
        columns: {method: figure} for each data set. A method that a column lacks is not ranked.
    """
    columns = list(columns)
    methods = [method for method in columns[0] if all(method in column for column in columns)] if columns else []
    ranks_of_columns = [import_stats().rankdata([-column[method] for method in methods]) for column in columns]
    return {method: [float(column[k]) for column in ranks_of_columns] for k, method in enumerate(methods)}


class Agreement(NamedTuple):
    """The agreement of a column with the published averages.

    Attributes:
        rows: {method: (measured figure, published figure, rank of each)}.
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
        measured: {method: percent}.
        published: {method: percent}.

    Returns:
        The agreement; None if fewer than FEWEST methods are common, or if all figures of one side are equal.
    """
    methods = [method for method in measured if method in published]
    measured_values, published_values = [measured[m] for m in methods], [published[m] for m in methods]
    if len(methods) < FEWEST or len(set(measured_values)) == 1 or len(set(published_values)) == 1:
        return None
    columns = [dict(zip(methods, values, strict=True)) for values in (measured_values, published_values)]
    method_ranks = ranks(columns)
    rows = {m: (measured[m], published[m], *method_ranks[m]) for m in methods}
    stats = import_stats()
    spearman = stats.spearmanr(measured_values, published_values)
    kendall = stats.kendalltau(measured_values, published_values)
    return Agreement(rows, float(spearman.statistic), float(kendall.statistic), float(spearman.pvalue))


def format_agreement(name: str, a: Agreement) -> str:
    """Return a sentence on the agreement between the measured and the published order of the methods."""
    if a.rho >= GOOD:
        verb = "agrees well with"
    elif a.rho >= PARTIAL:
        verb = "agrees in part with"
    else:
        verb = "says little about"
    figures = f"Spearman {a.rho:.2f} (p {a.p:.2f}), Kendall {a.tau:.2f}, {len(a.rows)} methods"
    return f"{name}: the order of the methods here {verb} that of the published averages ({figures})"
