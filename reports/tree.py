"""All runs below some directories, each with what its model was trained on."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from .logs import by_layout, plain, read_log
from .runs import MODEL_SPLIT, LeftOut, Run, at_strength, read_results


def collect(
    paths: Iterable[str | Path], left_out: list[str] | None = None, outdated: Mapping[Path, str] | None = None
) -> list[Run]:
    """All test results below the directories `paths`, in an order that does not depend on the names in there.

    Args:
        paths: directories, of one run or of any number.
        left_out: gets a line for each run and file that gives no result.
        outdated: directories that are left out, with all below them, and why.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: no result in any, and none is outdated.
    """
    why = [] if left_out is None else left_out
    outdated = outdated or {}
    reasons = {folder.resolve(): reason for folder, reason in outdated.items()}
    why += [f"{folder}: {reason}" for folder, reason in outdated.items()]
    current = (folder for folder in folders(paths) if not any(f in reasons for f in with_parents(folder.resolve())))
    found = [run for folder in current for run in read_folder(folder, why)]
    trainings, runs = [run for run in found if run.model], []
    for run in found:
        if run.accuracy is None:  # `read_folder` said so
            continue
        try:
            runs.append(run if run.model_dir is None else with_model(run, trainings))
        except LeftOut as error:
            why.append(f"{run.path}: {error}")
    if not runs and not outdated:
        reason = why[0] if why else "no results.json, no log.txt"
        raise ValueError(f"no test result in {', '.join(map(str, paths))} ({reason})")
    return sorted(runs, key=order)


def with_parents(folder: Path) -> list[Path]:
    return [folder, *folder.parents]


def order(run: Run) -> tuple:
    trained = (str(run.trained[:3]), run.seed) if run.trained else ("", 0)
    return run.family, run.dataset, run.classes, *trained, run.settings, run.accuracy


def folders(paths: Iterable[str | Path]) -> Iterable[Path]:
    """The directories and all below them, each once, though it may be given twice or be linked in a circle."""
    seen = set()
    for path in paths:
        if not os.path.isdir(path):
            raise FileNotFoundError(f"there is no directory {path}: give the --output-dir of a run, or one above")
        for folder, subfolders, _ in os.walk(path, followlinks=True):
            subfolders.sort()
            if os.path.realpath(folder) in seen:
                subfolders.clear()
            else:
                seen.add(os.path.realpath(folder))
                yield Path(folder)


def read_folder(folder: Path, why: list[str]) -> list[Run]:
    """The runs of one directory: of its `results.json`, else of its logs, the last one of a run given repeatedly."""
    files = sorted(file.name for file in folder.iterdir())
    if "results.json" in files:
        files, read, untested = ["results.json"], read_results, "trained, but not tested (TEST.NO_TEST)"
    else:
        files, read, untested = [f for f in files if re.fullmatch(r"log\.txt(-[\d-]+)?", f)], read_log, "unfinished"
    last = {}
    for path in (folder / file for file in files):
        try:
            run = read(path)
        except LeftOut as error:
            why.append(f"{path}: {error}")
            continue
        same = replace(run, accuracy=None, path=folder)
        if same not in last or run.accuracy is not None:  # an unfinished one counts only if no other is there
            last[same] = run
    why += [f"{run.path}: {untested}" for run in last.values() if run.accuracy is None]
    return list(last.values())


def with_model(run: Run, trainings: list[Run]) -> Run:
    """An evaluation, with what its model was trained on. Raises LeftOut if that cannot be told."""
    model = find_model(run, trainings)
    if model:
        dataset = model.dataset if run.dataset == MODEL_SPLIT else run.dataset
        settings = at_strength(model.settings, run.settings)
        return replace(run, dataset=dataset, trained=model.trained, settings=settings, model=model.model)
    if run.trained is None or run.trained.dataset == "Images":
        where = f' in "{run.model_dir}", which is not here,' if run.model_dir else ""
        raise LeftOut(f"it cannot be told what its model{where} was trained on")
    return run


def find_model(run: Run, trainings: list[Run]) -> Run | None:
    """The training whose model `run` evaluates; None if it is not there, or if that is ambiguous."""
    path, name = run.path.resolve(), plain(run.model_dir)
    layout = by_layout(run.model_dir, run.trainer)[1]

    def fits(training: Run) -> bool:
        folder = training.model.as_posix()
        by_name = "/" in name and folder.endswith(f"/{name}")
        alike = training.trained == run.trained
        if run.code:  # a log: its training knows better than the name; where only the layout is the same both agree
            return by_name or (alike and layout != "" and folder.endswith(f"/{layout}"))
        return (alike or run.trained.dataset == "Images") and (by_name or training.model in path.parents)

    def shared(training: Run) -> int:
        return len(os.path.commonpath([training.model, path]))

    fitting = [t for t in trainings if t.family == run.family and fits(t)]
    nearest = [t for t in fitting if shared(t) == max(map(shared, fitting))]  # of several trees with the same names
    return nearest[0] if len({(t.trained, t.settings) for t in nearest}) == 1 else None
