"""The selection of runs for each protocol, by training and evaluation data. Names of directories do not count."""

from collections.abc import Iterator
from typing import NamedTuple

from datasets.catalogue import in_order, variants
from orthcr.reports.names import format_shots
from orthcr.reports.runs import Run


class Column(NamedTuple):
    """A column of a table: the classes and shots of its runs."""

    classes: str  # all, base or new; "" for the column of H
    shots: int | None = None  # 0: zero-shot; None: any number
    metric: str = "accuracy"  # accuracy or H

    def takes(self, run: Run) -> bool:
        return run.classes == self.classes and self.shots in (None, shots_of(run))

    def suits(self, is_trained: bool) -> bool:
        """Return whether a method can have a figure in this column: zero-shot at 0 shots, trained methods above 0."""
        return self.shots is None or (self.shots != 0) == is_trained


class Selection(NamedTuple):
    """The runs of one table.

    Without a source, the table has a row for each data set and method. With a source, it has a row for each method and
    a column for each data set.
    """

    protocol: str  # base2new, fewshot, xd or dg; new: training on the new classes, CoOp's upper bound
    title: str
    runs: list[Run]
    columns: dict[str, Column]  # {heading: column}; with a source, one column for every data set
    shots: int | None = None  # shots of all trainings; None: the columns differ in shots, or there is no training
    source: str = ""  # training data set of all runs; "": each run was trained on the data set of its evaluation


def selections(runs: list[Run]) -> list[Selection]:
    """Return all selections with one or more runs."""
    all_selections = [
        *select_base_to_new(runs),
        *select_few_shot(runs),
        *select_transfer(runs),
        *select_new_classes(runs),
    ]
    return [selection for selection in all_selections if selection.runs]


def select_base_to_new(runs: list[Run]) -> Iterator[Selection]:
    """Yield a selection for each number of shots, with accuracies on base and new classes and their harmonic mean."""
    trained_runs = [r for r in trained_on_target(runs) if r.trained.classes == "base" and r.classes in ("base", "new")]
    for shots, members in group_by_shots(trained_runs):
        title = f"Base-to-new, {format_shots(shots)}" if shots else "Base-to-new"
        columns = {"base": Column("base"), "new": Column("new"), "H": Column("", metric="H")}
        baseline = zero_shot(runs, ("base", "new"), {r.dataset for r in members})
        yield Selection("base2new", title, members + baseline, columns, shots)


def select_few_shot(runs: list[Run]) -> Iterator[Selection]:
    """Yield one selection: accuracies on all classes, a column for each number of shots; zero-shot has 0 shots."""
    trained_runs = [r for r in trained_on_target(runs) if r.trained.classes == r.classes == "all"]
    # Source models of transfers are also few-shot models. They are used only where a method's curve has no other run.
    sources = {r.model for r in runs if r.trained and r.model and r.trained.dataset != r.dataset}
    members = [r for r in trained_runs if r.model not in sources]
    curves = {(r.family, r.dataset) for r in members}
    points = {(r.family, r.dataset, r.trained.shots) for r in members}
    for run in trained_runs:
        curve = run.family, run.dataset
        if curve in curves and (*curve, run.trained.shots) not in points:
            members.append(run)
    members += zero_shot(runs, ("all",), {r.dataset for r in members})
    shots = sorted({shots_of(r) for r in members}, key=lambda k: (k < 0, k))  # -1, all images, comes last
    yield Selection("fewshot", "Few-shot, all classes", members, {format_shots(k): Column("all", k) for k in shots})


def select_transfer(runs: list[Run]) -> Iterator[Selection]:
    """Yield a selection for each source and number of shots: accuracies on its targets (xd) or its variants (dg)."""
    trained_runs = [r for r in runs if r.trained and r.trained.classes == r.classes == "all"]
    for name, protocol in (("xd", "Cross-dataset"), ("dg", "Domain generalization")):
        transfers = [r for r in trained_runs if r.dataset != r.trained.dataset and is_variant(r) == (name == "dg")]
        for source in in_order(r.trained.dataset for r in transfers):
            of_source = [r for r in transfers if r.trained.dataset == source]
            for shots, target_runs in group_by_shots(of_source):
                models = {r.model for r in target_runs}
                source_runs = [r for r in trained_runs if r.dataset == r.trained.dataset == source]
                # only models that are evaluated on targets; there may be others with the same training data
                source_runs = [r for r in source_runs if r.trained.shots == shots and r.model in models]
                baseline = zero_shot(runs, ("all",), {r.dataset for r in target_runs})
                families = {r.family for r in baseline}
                baseline += [r for r in zero_shot(runs, ("all",), {source}) if r.family in families]
                title = f"{protocol}: trained on {source}, {format_shots(shots)}"
                members = target_runs + source_runs + baseline
                yield Selection(name, title, members, {"all": Column("all")}, shots, source)


def select_new_classes(runs: list[Run]) -> Iterator[Selection]:
    """Yield a selection for each number of shots of trainings on the new classes: an upper bound for base-to-new."""
    trained_runs = [r for r in trained_on_target(runs) if r.trained.classes == r.classes == "new"]
    for shots, members in group_by_shots(trained_runs):
        title = f"Trained on the new classes, {format_shots(shots)} (no base-to-new result)"
        yield Selection("new", title, members, {"new": Column("new")}, shots)


def trained_on_target(runs: list[Run]) -> list[Run]:
    return [r for r in runs if r.trained and r.trained.dataset == r.dataset]


def is_variant(run: Run) -> bool:
    """Return whether a run was evaluated on a variant of its training data set."""
    return run.dataset in {b.name for b in variants(run.trained.dataset)}


def zero_shot(runs: list[Run], classes: tuple[str, ...], datasets: set[str]) -> list[Run]:
    """Return the zero-shot results on these data sets; if there is no training, those on all data sets."""
    any_data = not any(run.trained for run in runs)
    return [r for r in runs if r.trained is None and r.classes in classes and (any_data or r.dataset in datasets)]


def group_by_shots(runs: list[Run]) -> list[tuple[int | None, list[Run]]]:
    shots = sorted({run.trained.shots for run in runs})
    return [(k, [run for run in runs if run.trained.shots == k]) for k in shots] or [(None, [])]


def shots_of(run: Run) -> int:
    return run.trained.shots if run.trained else 0
