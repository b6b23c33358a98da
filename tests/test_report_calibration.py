"""The expected calibration error in the comparison."""

import csv
import io
from statistics import mean

import numpy as np
import pytest
from trees import SEEDS, accuracy, made, only, ours, train_and_new

from orthcr.reports.comparison import compare
from orthcr.reports.report import format_csv

NEW = np.random.default_rng()


def test_base_to_new(tmp_path):
    """Of a row the mean of base and new; of the average, seed by seed, the mean of the data sets."""
    said = {}
    for method in ("CoOp", "MaPLe"):
        for dataset in ("EuroSAT", "OxfordPets"):
            for seed in SEEDS:
                ece = said[method, dataset, seed] = NEW.uniform(0, 40, 2)
                on = (dataset, "base", 16, seed)
                home = ours(
                    tmp_path / dataset / method / str(seed), method, on, dataset, "base", accuracy(), ece=ece[0]
                )
                ours(home / "new", method, on, dataset, "new", accuracy(), eval_only=True, ece=ece[1])
    table = only(tmp_path)
    for method in ("CoOp", "MaPLe"):
        for dataset, short in (("EuroSAT", "EuroSAT"), ("OxfordPets", "Pets")):
            wanted = [said[method, dataset, seed].mean() for seed in SEEDS]
            assert list(table.ece[short, method].values.values()) == pytest.approx(wanted)
        averages = [mean(said[method, d, seed].mean() for d in ("EuroSAT", "OxfordPets")) for seed in SEEDS]
        cell = table.ece["average", method]
        assert cell.mean == pytest.approx(np.mean(averages)) and cell.std == pytest.approx(np.std(averages))
        assert cell.text == f"{np.mean(averages):.2f} ± {np.std(averages):.2f}"
        assert [cell.text in row for row in table.text().splitlines()].count(True) == 1
        assert all(cell.metric != "ECE" for cell in table.cells), "no accuracy, and nothing that the highest is best of"
    rows = [row for row in csv.DictReader(io.StringIO(format_csv([table]))) if row["metric"] == "ECE"]
    assert len(rows) == 6 and {row["shots"] for row in rows} == {"16"}
    (row,) = [row for row in rows if (row["target"], row["method"]) == ("EuroSAT", "CoOp")]
    assert float(row["mean"]) == pytest.approx(table.ece["EuroSAT", "CoOp"].mean, abs=1e-4)

    compare([tmp_path], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    cell = table.ece["average", "CoOp"]
    assert f'<td data-value="{cell.mean:.6g}">{cell.mean:.2f} <small>± {cell.std:.2f}</small></td>' in page
    assert page.count('<button type="button">ECE</button>') == 1 and "expected calibration error" in page


def test_the_transfers_are_without_the_source(tmp_path):
    on = ("ImageNet", "all", 16, 1)
    home = ours(tmp_path / "m", "CoOp", on, "ImageNet", "all", 70.0, ece=1.0)
    for dataset, ece in (("EuroSAT", 10.0), ("OxfordPets", 20.0)):
        ours(home / dataset, "CoOp", on, dataset, "all", 50.0, eval_only=True, ece=ece)
        ours(tmp_path / "z" / dataset, "ZeroshotCLIP", None, dataset, "all", 40.0, ece=ece / 5)
    table = only(tmp_path)
    assert {titles: cell.mean for titles, cell in table.ece.items()} == {("CoOp",): 15.0, ("ZeroshotCLIP",): 3.0}


def test_few_shot_is_at_the_most_shots(tmp_path):
    for shots in (1, 16):
        ours(tmp_path / f"a{shots}", "A", ("EuroSAT", "all", shots, 1), "EuroSAT", "all", 50.0, ece=float(shots))
    ours(tmp_path / "b1", "B", ("EuroSAT", "all", 1, 1), "EuroSAT", "all", 50.0, ece=5.0)
    ours(tmp_path / "z", "ZeroshotCLIP", None, "EuroSAT", "all", 40.0, ece=3.0)
    (table,), _ = made(tmp_path)
    assert {titles[-1]: (c.mean, c.shots) for titles, c in table.ece.items()} == {
        "A": (16.0, 16),
        "ZeroshotCLIP": (3.0, None),
    }


def test_without_it_all_is_as_before(tmp_path):
    """Results of earlier versions do not have it; where a seed lacks a part of it, the seed has none."""
    for seed in SEEDS:
        train_and_new(tmp_path / "old", "CoOp", "EuroSAT", seed, accuracy(), accuracy())
    table = only(tmp_path / "old")
    assert not table.ece and "ECE" not in table.text() and "ECE" not in format_csv([table])
    on = ("EuroSAT", "base", 16, 4)
    home = ours(tmp_path / "old" / "4", "CoOp", on, "EuroSAT", "base", 50.0, ece=7.0)
    ours(home / "new", "CoOp", on, "EuroSAT", "new", 50.0, eval_only=True)
    assert not only(tmp_path / "old").ece
    ours(home / "new", "CoOp", on, "EuroSAT", "new", 50.0, eval_only=True, ece=9.0)
    assert only(tmp_path / "old").ece["EuroSAT", "CoOp"].values == {4: 8.0}


@pytest.mark.parametrize("ece", [-1, 101, "x", [1]])
def test_an_error_that_cannot_be(tmp_path, ece):
    train_and_new(tmp_path, "CoOp", "EuroSAT", 1, 50.0, 50.0)
    ours(tmp_path / "bad", "CoOp", ("EuroSAT", "base", 16, 2), "EuroSAT", "base", 50.0, ece=ece)
    _, left_out = made(tmp_path)
    assert len(left_out) == 1 and "malformed" in left_out[0]
