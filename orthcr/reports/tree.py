"""The runs below some directories, each with the training data of its model."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from orthcr.reports.logs import by_layout, clean_path, read_log
from orthcr.reports.runs import MODEL_SPLIT, LeftOut, Run, at_strength, read_results


def collect(paths: Iterable[str | Path], outdated: Mapping[Path, str] | None = None) -> tuple[list[Run], list[str]]:
    """Return the test results below directories, and a line for each run and file that gives none.

    The order of the runs does not depend on the names of files.

    Args:
        paths: directories, of one run or of any number.
        outdated: directories whose results are left out, also those below, and the reason.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: there is no result in any, and none is outdated.
    """
    outdated = outdated or {}
    skipped = {folder.resolve() for folder in outdated}
    notes = [f"{folder}: {reason}" for folder, reason in outdated.items()]
    every = []
    for folder in folders(paths):
        if skipped.isdisjoint(with_parents(folder.resolve())):
            folder_runs, left_out = read_folder(folder)
            every += folder_runs
            notes += left_out
    trainings = [run for run in every if run.model]
    runs = []
    for run in every:
        if run.accuracy is None:  # `read_folder` has made a note
            continue
        try:
            runs.append(run if run.model_dir is None else with_model(run, trainings))
        except LeftOut as error:
            notes.append(f"{run.path}: {error}")
    if not runs and not outdated:
        reason = notes[0] if notes else "no results.json, no log.txt"
        raise ValueError(f"no test result in {', '.join(map(str, paths))} ({reason})")
    return sorted(runs, key=order), notes


def with_parents(folder: Path) -> list[Path]:
    return [folder, *folder.parents]


def order(run: Run) -> tuple:
    trained = (str(run.trained[:3]), run.seed) if run.trained else ("", 0)
    return run.family, run.dataset, run.classes, *trained, run.settings, run.accuracy


def folders(paths: Iterable[str | Path]) -> Iterable[Path]:
    """Yield the directories and those below them, each once, also if it is listed twice or linked in a circle.

    Raises:
        FileNotFoundError: there is no such directory.
    """
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


def read_folder(folder: Path) -> tuple[list[Run], list[str]]:
    """Return the runs of one directory, and a line for each file and run without a result.

    The runs are that of its `results.json`, else those of its logs. Of several logs of one run the last one counts, a
    finished one before an unfinished one.
    """
    files = sorted(file.name for file in folder.iterdir())
    if "results.json" in files:
        files, read, untested = ["results.json"], read_results, "trained, but not tested (TEST.NO_TEST)"
    else:
        files = [name for name in files if re.fullmatch(r"log\.txt(-[\d-]+)?", name)]
        read, untested = read_log, "unfinished"
    last, notes = {}, []
    for path in (folder / file for file in files):
        try:
            run = read(path)
        except LeftOut as error:
            notes.append(f"{path}: {error}")
            continue
        same = replace(run, accuracy=None, path=folder)
        if same not in last or run.accuracy is not None:
            last[same] = run
    notes += [f"{run.path}: {untested}" for run in last.values() if run.accuracy is None]
    return list(last.values()), notes


def with_model(run: Run, trainings: list[Run]) -> Run:
    """Return an evaluation with the training data of its model.

    Raises:
        LeftOut: these are unknown.
    """
    model = find_model(run, trainings)
    if model:
        dataset = model.dataset if run.dataset == MODEL_SPLIT else run.dataset
        settings = at_strength(model.settings, run.settings)
        return replace(run, dataset=dataset, trained=model.trained, settings=settings, model=model.model)
    if run.trained is None or run.trained.dataset == "Images":
        reason = f'no run of "{run.model_dir}" is here' if run.model_dir else "the run has no directory of its model"
        raise LeftOut(f"the training data of its model are unknown: {reason}")
    return run


def find_model(run: Run, trainings: list[Run]) -> Run | None:
    """Return the training whose model `run` evaluates; None if there is none, or several that differ."""
    path, name = run.path.resolve(), clean_path(run.model_dir)
    layout = by_layout(run.model_dir, run.trainer)[1]

    def fits(training: Run) -> bool:
        folder = training.model.as_posix()
        by_name = "/" in name and folder.endswith(f"/{name}")
        same_data = training.trained == run.trained
        if run.code:  # in a log, `run.trained` is read from the directory's name, and the training's log is better
            return by_name or (same_data and layout != "" and folder.endswith(f"/{layout}"))
        return (same_data or run.trained.dataset == "Images") and (by_name or training.model in path.parents)

    def shared_length(training: Run) -> int:
        return len(os.path.commonpath([training.model, path]))

    fitting = [t for t in trainings if t.family == run.family and fits(t)]
    longest = max(map(shared_length, fitting), default=0)
    nearest = [t for t in fitting if shared_length(t) == longest]  # several trees may have the same names
    return nearest[0] if len({(t.trained, t.settings) for t in nearest}) == 1 else None
