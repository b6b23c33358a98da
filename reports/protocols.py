"""Which runs belong to a protocol. A run enters by what it was trained and evaluated on, never by its directory."""

from collections.abc import Iterator
from typing import NamedTuple

from datasets.benchmarks import in_order, variants

from .names import images
from .runs import Run


class Column(NamedTuple):
    """Which runs a column takes."""

    classes: str  # all, base or new; "": of H
    shots: int | None = None  # 0: zero-shot; None: any
    metric: str = "accuracy"  # or H

    def takes(self, run: Run) -> bool:
        return run.classes == self.classes and self.shots in (None, shots_of(run))

    def suits(self, trained: bool) -> bool:
        """Whether such a method may have a figure in it: a trained one has none at 0 shots, zero-shot nowhere else."""
        return self.shots is None or (self.shots != 0) == trained


class Selection(NamedTuple):
    """The runs of one table; one row for each data set and method, or, of one source, for each method."""

    protocol: str  # base2new, fewshot, xd or dg; new: of CoOp's upper bound, which is none
    title: str
    runs: list[Run]
    columns: dict[str, Column]  # by their heads; of one source a single one, which each data set has
    shots: int | None = None  # of all trainings; None: the columns say it, or nothing was trained
    source: str = ""  # what all were trained on; "": each on the data set that it is evaluated on


def selections(runs: list[Run]) -> list[Selection]:
    """All of which there are runs."""
    return [s for s in (*base_to_new(runs), *few_shot(runs), *transfer(runs), *new_classes(runs)) if s.runs]


def base_to_new(runs: list[Run]) -> Iterator[Selection]:
    """Trained on the base classes: accuracy on base and on new classes, and their harmonic mean."""
    mine = [r for r in trained_on_target(runs) if r.trained.classes == "base" and r.classes in ("base", "new")]
    for shots, own in by_shots(mine):
        title = f"Base-to-new, {images(shots)}" if shots else "Base-to-new"
        columns = {"base": Column("base"), "new": Column("new"), "H": Column("", metric="H")}
        own += zero_shot(runs, ("base", "new"), {r.dataset for r in own})
        yield Selection("base2new", title, own, columns, shots)


def few_shot(runs: list[Run]) -> Iterator[Selection]:
    """Trained on k images of all classes: accuracy on them by k; zero-shot is k = 0."""
    mine = [r for r in trained_on_target(runs) if r.trained.classes == r.classes == "all"]
    # the source models of the transfers are few-shot models too, but no reason for a table: they only fill a gap in one
    sources = {r.model for r in runs if r.trained and r.model and r.trained.dataset != r.dataset}
    own = [r for r in mine if r.model not in sources]
    curves, points = {(r.family, r.dataset) for r in own}, {(r.family, r.dataset, r.trained.shots) for r in own}
    own += [r for r in mine if (r.family, r.dataset) in curves and (r.family, r.dataset, r.trained.shots) not in points]
    own += zero_shot(runs, ("all",), {r.dataset for r in own})
    shots = sorted({shots_of(r) for r in own}, key=lambda k: (k < 0, k))  # all images come last
    yield Selection("fewshot", "Few-shot, all classes", own, {images(k): Column("all", k) for k in shots})


def transfer(runs: list[Run]) -> Iterator[Selection]:
    """Trained on all classes of a source: accuracy on other data sets (xd) and on the source's variants (dg)."""
    mine = [r for r in runs if r.trained and r.trained.classes == r.classes == "all"]
    for name, title in (("xd", "Cross-dataset"), ("dg", "Domain generalization")):
        away = [r for r in mine if r.dataset != r.trained.dataset and is_variant(r) == (name == "dg")]
        for source in in_order(r.trained.dataset for r in away):
            for shots, own in by_shots([r for r in away if r.trained.dataset == source]):
                models = {r.model for r in own}  # on the source itself: those very models, not others trained alike
                home = [r for r in mine if r.dataset == r.trained.dataset == source and r.trained.shots == shots]
                home = [r for r in home if r.model in models]
                zero = zero_shot(runs, ("all",), {r.dataset for r in own})
                zero += [r for r in zero_shot(runs, ("all",), {source}) if r.family in {z.family for z in zero}]
                told = f"{title}: trained on {source}, {images(shots)}"
                yield Selection(name, told, own + home + zero, {"all": Column("all")}, shots, source)


def new_classes(runs: list[Run]) -> Iterator[Selection]:
    """Trained on the new classes themselves: CoOp's upper bound, which is no base-to-new result."""
    mine = [r for r in trained_on_target(runs) if r.trained.classes == r.classes == "new"]
    for shots, own in by_shots(mine):
        title = f"Trained on the new classes, {images(shots)} (no base-to-new result)"
        yield Selection("new", title, own, {"new": Column("new")}, shots)


def trained_on_target(runs: list[Run]) -> list[Run]:
    return [r for r in runs if r.trained and r.trained.dataset == r.dataset]


def is_variant(run: Run) -> bool:
    """Whether it was evaluated on a variant of what it was trained on."""
    return run.dataset in {b.name for b in variants(run.trained.dataset)}


def zero_shot(runs: list[Run], classes: tuple[str, ...], datasets: set[str]) -> list[Run]:
    """Zero-shot results beside trained ones; where nothing was trained at all, all of them."""
    any_data = not any(run.trained for run in runs)
    return [r for r in runs if r.trained is None and r.classes in classes and (any_data or r.dataset in datasets)]


def by_shots(runs: list[Run]) -> list[tuple[int | None, list[Run]]]:
    shots = sorted({run.trained.shots for run in runs})
    return [(k, [run for run in runs if run.trained.shots == k]) for k in shots] or [(None, [])]


def shots_of(run: Run) -> int:
    return run.trained.shots if run.trained else 0
