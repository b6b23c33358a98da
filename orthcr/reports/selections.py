"""The runs of each protocol, selected by their training and evaluation data, never by their directory."""

from collections.abc import Iterator
from typing import NamedTuple

from datasets.catalogue import in_order, variants
from orthcr.reports.names import images
from orthcr.reports.runs import Run


class Column(NamedTuple):
    """The classes and shots of the runs in a column."""

    classes: str  # all, base or new; "": the column of H
    shots: int | None = None  # 0: zero-shot; None: any
    metric: str = "accuracy"  # or H

    def takes(self, run: Run) -> bool:
        return run.classes == self.classes and self.shots in (None, shots_of(run))

    def suits(self, trained: bool) -> bool:
        """Return whether a method may have a figure here: zero-shot ones only at 0 shots, trained ones only above."""
        return self.shots is None or (self.shots != 0) == trained


class Selection(NamedTuple):
    """The runs of one table.

    The table has a row for each data set and method; with a source, a row for each method and a column for each data
    set.
    """

    protocol: str  # base2new, fewshot, xd or dg; new: CoOp's upper bound, which is no protocol
    title: str
    runs: list[Run]
    columns: dict[str, Column]  # by their heads; with a source a single one, which each data set has
    shots: int | None = None  # of all trainings; None: the columns have it, or nothing was trained
    source: str = ""  # training data set of all; "": each run was trained on the data set of its evaluation


def selections(runs: list[Run]) -> list[Selection]:
    """Return the selections that have runs."""
    every = [*base_to_new(runs), *few_shot(runs), *transfer(runs), *new_classes(runs)]
    return [selection for selection in every if selection.runs]


def base_to_new(runs: list[Run]) -> Iterator[Selection]:
    """Yield a selection for each number of shots: accuracy on base and on new classes, and their harmonic mean."""
    trained = [r for r in trained_on_target(runs) if r.trained.classes == "base" and r.classes in ("base", "new")]
    for shots, members in by_shots(trained):
        title = f"Base-to-new, {images(shots)}" if shots else "Base-to-new"
        columns = {"base": Column("base"), "new": Column("new"), "H": Column("", metric="H")}
        baseline = zero_shot(runs, ("base", "new"), {r.dataset for r in members})
        yield Selection("base2new", title, members + baseline, columns, shots)


def few_shot(runs: list[Run]) -> Iterator[Selection]:
    """Yield a selection: accuracy on all classes by the number of shots; zero-shot has 0."""
    trained = [r for r in trained_on_target(runs) if r.trained.classes == r.classes == "all"]
    # The source models of the transfers are few-shot models, too. They fill gaps in the curves of their methods.
    sources = {r.model for r in runs if r.trained and r.model and r.trained.dataset != r.dataset}
    members = [r for r in trained if r.model not in sources]
    curves = {(r.family, r.dataset) for r in members}
    points = {(r.family, r.dataset, r.trained.shots) for r in members}
    for run in trained:
        curve = run.family, run.dataset
        if curve in curves and (*curve, run.trained.shots) not in points:
            members.append(run)
    members += zero_shot(runs, ("all",), {r.dataset for r in members})
    shots = sorted({shots_of(r) for r in members}, key=lambda k: (k < 0, k))  # -1, all images, comes last
    yield Selection("fewshot", "Few-shot, all classes", members, {images(k): Column("all", k) for k in shots})


def transfer(runs: list[Run]) -> Iterator[Selection]:
    """Yield a selection for each source and number of shots: accuracy on other data sets (xd), on its variants (dg)."""
    trained = [r for r in runs if r.trained and r.trained.classes == r.classes == "all"]
    for name, protocol in (("xd", "Cross-dataset"), ("dg", "Domain generalization")):
        transfers = [r for r in trained if r.dataset != r.trained.dataset and is_variant(r) == (name == "dg")]
        for source in in_order(r.trained.dataset for r in transfers):
            for shots, on_targets in by_shots([r for r in transfers if r.trained.dataset == source]):
                models = {r.model for r in on_targets}
                on_source = [r for r in trained if r.dataset == r.trained.dataset == source]
                # only the models that are evaluated on targets, not others of the same training data
                on_source = [r for r in on_source if r.trained.shots == shots and r.model in models]
                baseline = zero_shot(runs, ("all",), {r.dataset for r in on_targets})
                families = {r.family for r in baseline}
                baseline += [r for r in zero_shot(runs, ("all",), {source}) if r.family in families]
                title = f"{protocol}: trained on {source}, {images(shots)}"
                members = on_targets + on_source + baseline
                yield Selection(name, title, members, {"all": Column("all")}, shots, source)


def new_classes(runs: list[Run]) -> Iterator[Selection]:
    """Yield a selection of trainings on the new classes themselves: an upper bound, which is no base-to-new result."""
    trained = [r for r in trained_on_target(runs) if r.trained.classes == r.classes == "new"]
    for shots, members in by_shots(trained):
        title = f"Trained on the new classes, {images(shots)} (no base-to-new result)"
        yield Selection("new", title, members, {"new": Column("new")}, shots)


def trained_on_target(runs: list[Run]) -> list[Run]:
    return [r for r in runs if r.trained and r.trained.dataset == r.dataset]


def is_variant(run: Run) -> bool:
    """Return whether a run was evaluated on a variant of its training data set."""
    return run.dataset in {b.name for b in variants(run.trained.dataset)}


def zero_shot(runs: list[Run], classes: tuple[str, ...], datasets: set[str]) -> list[Run]:
    """Return the zero-shot results on these data sets; on any data set if nothing was trained."""
    any_data = not any(run.trained for run in runs)
    return [r for r in runs if r.trained is None and r.classes in classes and (any_data or r.dataset in datasets)]


def by_shots(runs: list[Run]) -> list[tuple[int | None, list[Run]]]:
    shots = sorted({run.trained.shots for run in runs})
    return [(k, [run for run in runs if run.trained.shots == k]) for k in shots] or [(None, [])]


def shots_of(run: Run) -> int:
    return run.trained.shots if run.trained else 0
