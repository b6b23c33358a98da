"""Ties over seeds, ranks over data sets, agreement with the published averages."""

import random

import pytest
from scipy.stats import spearmanr
from trees import only, ours, train_and_new

from orthcr.reports.comparison import compare
from orthcr.reports.published import BASE_TO_NEW
from orthcr.reports.ranking import agreement, format_agreement, is_tie, ranks


def test_a_tie_is_a_paired_t_test():
    """Differences 1, 2, 3: t = 2 / (1 / sqrt 3) = 3.46, below the limit 4.30 of two degrees of freedom."""
    assert is_tie({1: 81.0, 2: 62.0, 3: 43.0}, {1: 80.0, 2: 60.0, 3: 40.0})
    assert not is_tie({1: 81.9, 2: 62.0, 3: 42.1}, {1: 80.0, 2: 60.0, 3: 40.0}), "differences 1.9, 2.0, 2.1"
    assert is_tie({1: 5.0, 2: 7.0}, {1: 5.0, 2: 7.0}) and not is_tie({1: 6.0, 2: 8.0}, {1: 5.0, 2: 7.0})
    assert not is_tie({1: 5.0}, {1: 5.0}), "one seed tests nothing"
    assert is_tie({1: 81.0, 2: 80.0, 3: 82.0}, {None: 80.0}), "zero-shot has no seed"
    assert not is_tie({1: 1.0, 2: 2.0}, {3: 1.0, 4: 2.0}), "no seed in common"


def test_equal_figures_share_their_mean_rank():
    columns = [{"A": 3.0, "B": 9.0, "C": 3.0, "D": 1.0}, {"A": 1.0, "B": 2.0, "C": 3.0}]
    assert ranks(columns) == {"A": [2.5, 3.0], "B": [1.0, 2.0], "C": [2.5, 1.0]}
    assert ranks([]) == {}


def test_the_order_of_the_published_averages():
    rng = random.Random()
    published = {name: row[2] for name, row in BASE_TO_NEW.items()}
    figures = {name: rng.uniform(20, 99) for name in [*published, "Mine"]}
    a = agreement(figures, published)
    assert set(a.rows) == set(published)
    assert a.rho == pytest.approx(spearmanr([figures[m] for m in published], list(published.values())).statistic)
    same = agreement(published, published)
    assert (same.rho, same.tau) == (pytest.approx(1), pytest.approx(1)) and "agrees well" in format_agreement("H", same)
    assert agreement(dict(list(figures.items())[:4]), published) is None, "too few"


def test_tables_mark_ties_and_have_ranks(tmp_path):
    methods = {"A": 80.0, "B": 79.5, "C": 20.0}
    for method, base in methods.items():
        for dataset in ("EuroSAT", "OxfordPets"):
            for seed in (1, 2, 3):
                wobble = {"A": 0.0, "B": 3.0 * (seed == 2), "C": 0.01 * seed}[method]
                train_and_new(tmp_path, method, dataset, seed, base + wobble, base + wobble)
    table = only(tmp_path)
    lines = {tuple(cell.strip() for cell in line.split("|")[1:3]): line for line in table.grid("github").splitlines()}
    assert lines["average", "A"].count("†") == 3 and "**" not in lines["average", "A"], "A ties with B"
    assert "†" not in lines["average", "C"] and "†" not in lines["average", "B"]
    assert lines["average", "A"].endswith("| 2.0 ± 0.0 |") and lines["average", "C"].endswith("| 3.0 ± 0.0 |")
    assert "†" not in str(table) and "rank" not in str(table)
    compare([tmp_path], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "not significantly below the best" in page and "†" in page


def test_a_method_alone_ties_with_nobody(tmp_path):
    for seed in (1, 2, 3):
        train_and_new(tmp_path, "A", "EuroSAT", seed, 80.0 + seed, 70.0)
    table = only(tmp_path)
    assert table.ties == [] and "†" not in table.text(markdown=True)


def test_ranks_of_a_transfer_leave_out_its_source(tmp_path):
    figures = {"A": (10, 50, 60), "B": (20, 40, 70)}
    for method, accuracies in figures.items():
        on = ("ImageNet", "all", 16, 1)
        folder = ours(tmp_path / method, method, on, "ImageNet", "all", accuracies[0])
        for dataset, accuracy in zip(("EuroSAT", "OxfordPets"), accuracies[1:], strict=True):
            ours(folder / dataset, method, on, dataset, "all", accuracy, eval_only=True)
    assert only(tmp_path).rank == {("A",): [2.0, 1.0], ("B",): [1.0, 2.0]}, "Pets, EuroSAT"
