"""The runs in directories and below them, each with the training data of its model."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from orthcr.reports.logs import clean_path, parse_layout, read_log
from orthcr.reports.runs import MODEL_SPLIT, Run, UnusableResult, read_results, with_strength


def collect(paths: Iterable[str | Path], outdated: Mapping[Path, str] | None = None) -> tuple[list[Run], list[str]]:
    """Return the tested runs in and below directories, and a line for each run and file without a test result.

    The order of the runs does not depend on the names of files.

    Args:
        paths: directories with one or more runs.
        outdated: {directory: reason} for results to leave out, in the directory and below it.

    Raises:
        FileNotFoundError: there is no such directory.
        ValueError: there is no result, and none was left out.
    """
    outdated = outdated or {}
    skipped_folders = {folder.resolve() for folder in outdated}
    notes = [f"{folder}: {reason}" for folder, reason in outdated.items()]
    all_runs = []
    for folder in folders(paths):
        if skipped_folders.isdisjoint(path_and_parents(folder.resolve())):
            folder_runs, left_out = read_folder(folder)
            all_runs += folder_runs
            notes += left_out
    trainings = [run for run in all_runs if run.model]
    runs = []
    for run in all_runs:
        if run.accuracy is None:  # `read_folder` has made a note
            continue
        try:
            runs.append(run if run.model_dir is None else add_model(run, trainings))
        except UnusableResult as error:
            notes.append(f"{run.path}: {error}")
    if not runs and not outdated:
        reason = notes[0] if notes else "no results.json, no log.txt"
        raise ValueError(f"no test result in {', '.join(map(str, paths))} ({reason}): give the --output-dir of a run")
    return sorted(runs, key=sort_key), notes


def path_and_parents(folder: Path) -> list[Path]:
    return [folder, *folder.parents]


def sort_key(run: Run) -> tuple:
    training = (str(run.trained[:3]), run.seed) if run.trained else ("", 0)
    return run.family, run.dataset, run.classes, *training, run.settings, run.accuracy


def folders(paths: Iterable[str | Path]) -> Iterable[Path]:
    """Yield the directories and all below them. A directory is yielded once, even if links lead to it again.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    visited = set()
    for path in paths:
        if not os.path.isdir(path):
            raise FileNotFoundError(f"there is no directory {path}: give the --output-dir of a run, or one above")
        for folder, subfolders, _ in os.walk(path, followlinks=True):
            subfolders.sort()
            if os.path.realpath(folder) in visited:
                subfolders.clear()
            else:
                visited.add(os.path.realpath(folder))
                yield Path(folder)


def read_folder(folder: Path) -> tuple[list[Run], list[str]]:
    """Return the runs of one directory, and a line for each file and run without a result.

    Logs are read only if there is no `results.json`. If a run has several logs, the last finished one counts.
    """
    files = sorted(file.name for file in folder.iterdir())
    if "results.json" in files:
        files, read_file, reason = ["results.json"], read_results, "trained, but not tested (TEST.NO_TEST)"
    else:
        files = [name for name in files if re.fullmatch(r"log\.txt(-[\d-]+)?", name)]
        read_file, reason = read_log, "unfinished"
    latest_runs, notes = {}, []
    for path in (folder / file for file in files):
        try:
            run = read_file(path)
        except UnusableResult as error:
            notes.append(f"{path}: {error}")
            continue
        key = replace(run, accuracy=None, path=folder)
        if key not in latest_runs or run.accuracy is not None:
            latest_runs[key] = run
    notes += [f"{run.path}: {reason}" for run in latest_runs.values() if run.accuracy is None]
    return list(latest_runs.values()), notes


def add_model(run: Run, trainings: list[Run]) -> Run:
    """Return an evaluation with the training data of its model.

    Raises:
        UnusableResult: the training data are unknown.
    """
    model = find_model(run, trainings)
    if model:
        dataset = model.dataset if run.dataset == MODEL_SPLIT else run.dataset
        settings = with_strength(model.settings, run.settings)
        return replace(run, dataset=dataset, trained=model.trained, settings=settings, model=model.model)
    if run.trained is None or run.trained.dataset == "Images":
        reason = "the run does not name its model's directory"
        if run.model_dir:
            reason = f'there is no run of "{run.model_dir}"'
        raise UnusableResult(f"its model's training data are unknown, because {reason}")
    return run


def find_model(run: Run, trainings: list[Run]) -> Run | None:
    """Return the training of the model that `run` evaluates; None if there is none, or if several ones differ."""
    path, name = run.path.resolve(), clean_path(run.model_dir)
    layout = parse_layout(run.model_dir, run.trainer)[1]

    def fits(training: Run) -> bool:
        folder = training.model.as_posix()
        has_name = "/" in name and folder.endswith(f"/{name}")
        same_data = training.trained == run.trained
        if run.code:  # a log: `run.trained` comes from the directory's name, so the name of the directory comes first
            return has_name or (same_data and layout != "" and folder.endswith(f"/{layout}"))
        return (same_data or run.trained.dataset == "Images") and (has_name or training.model in path.parents)

    def shared_length(training: Run) -> int:
        return len(os.path.commonpath([training.model, path]))

    candidates = [t for t in trainings if t.family == run.family and fits(t)]
    longest = max(map(shared_length, candidates), default=0)
    # several directory trees may have the same names
    candidates = [t for t in candidates if shared_length(t) == longest]
    return candidates[0] if len({(t.trained, t.settings) for t in candidates}) == 1 else None
