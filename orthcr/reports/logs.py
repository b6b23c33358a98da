"""A reader of the `log.txt` of CoOp, CoCoOp, MaPLe, PromptSRC and other code on the original Dassl.

The log of an evaluation has the directory of its model, but not the training data of the model. `tree.with_model` takes
these from the log of the training. If that log is missing, the name of the directory is read, which the scripts of
these projects form in one of the `LAYOUTS`.
"""

import re
from pathlib import Path

from dassl.infrastructure.files import read_bytes, visible
from datasets.catalogue import stems
from orthcr.reports.runs import LeftOut, Run, Trained, method_settings

TITLES = ("** Arguments **", "** Config **")
FINISHED = re.compile(r"Finish(ed)? training")
SPLIT = re.compile(r"(?:Evaluate on the \*|Do evaluation on )(\w+)\*? set")
FIGURE = re.compile(r"\* (total|correct|accuracy): (\d[\d,]*(?:\.\d+)?)%?")
LAYOUTS = (  # first: base-to-new of CoCoOp, MaPLe and PromptSRC; second: CoOp, and the ImageNet models of all of them
    r"train_(?P<classes>base|new|all)/(?P<dataset>[^/]+)/shots_(?P<shots>\d+)/TRAINER/(?:[^/]+/)*seed(?P<seed>\d+)$",
    r"(?P<dataset>[^/]+)/TRAINER/[^/]+_(?P<shots>\d+)shots/(?:[^/]+/)*seed(?P<seed>\d+)$",
)


def read_log(path: Path) -> Run:
    """Return the run of a `log.txt`; its accuracy is None if it did not finish.

    Raises:
        LeftOut: the file cannot be read, or is no complete log of a run.
    """
    try:
        lines = read_bytes(path).decode(errors="replace").splitlines()
    except OSError as error:
        raise LeftOut(f"cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise LeftOut(str(error)) from None
    this_code = TITLES[1] in lines or any(line.startswith("Setting fixed seed") for line in lines)
    if this_code and TITLES[0] not in lines:
        raise LeftOut("unfinished: no results.json beside it")
    if not set(TITLES) <= set(lines):
        raise LeftOut("malformed: no log of CoOp's train.py, it has no arguments and config")
    first, second = (lines.index(title) for title in TITLES)
    args = dict(line.split(": ", 1) for line in lines[first:second] if ": " in line)
    config = parse_config(lines[second:])
    try:
        trainer, dataset, backbone = (config[key] for key in ("TRAINER.NAME", "DATASET.NAME", "MODEL.BACKBONE.NAME"))
        classes = config.get("DATASET.SUBSAMPLE_CLASSES", "all")
        trained = Trained.of(dataset, classes, config.get("DATASET.NUM_SHOTS", -1), config["SEED"])
    except (KeyError, ValueError) as error:
        raise LeftOut(f"malformed: the config in it has no proper {error}") from None

    zero_shot, eval_only = trainer.lower().startswith("zeroshot"), args.get("eval_only") == "True"
    evaluation = eval_only and not zero_shot
    config["config"] = Path(args.get("config_file", "")).stem
    settings = method_settings(config, trainer, not zero_shot)
    model_dir = args.get("model_dir", "") if evaluation else None
    if eval_only or zero_shot:
        trained = by_layout(model_dir, trainer)[0] if evaluation else None
    accuracy, split = last_result(lines, config.get("TEST.SPLIT", "test"), trains=not eval_only and not zero_shot)
    if eval_only and accuracy is None and split == "val":
        raise LeftOut("evaluated on val")
    if accuracy is not None and accuracy > 100:
        raise LeftOut(f"malformed: its accuracy is {accuracy}")
    model = path.parent.resolve() if trained and not evaluation else None
    code = "Dassl.pytorch"
    return Run(trainer, backbone, settings, trained, dataset, classes, accuracy, path, code, model_dir, model)


def parse_config(lines: list[str]) -> dict[str, str]:
    """Return the dotted keys and the values of a config as yacs prints it.

    This is nearly YAML, but tuples and texts are not quoted.
    """
    flat, sections = {}, []
    for line in lines:
        if line.startswith(("Collecting env info", "** System info **")):
            break
        if match := re.fullmatch(r"((?:  )*)([^\s:]+):(?: (.*))?", line):
            indent, key, value = match.groups()
            sections[len(indent) // 2 :] = [key]
            if value is not None:
                flat[".".join(sections)] = visible(value.strip())
    return flat


def last_result(lines: list[str], split: str, trains: bool) -> tuple[float | None, str]:
    """Return the accuracy in percent of the last test result (None: no such result), and the split of the last result.

    Args:
        lines: lines of the log.
        split: the one that is evaluated if no line names another.
        trains: the log is of a training. Only results after its end count.
    """
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        return None, split
    if trains:  # the older Dassl also tests while it trains
        ends = [k for k, line in enumerate(lines) if FINISHED.match(line)]
        lines = lines[ends[-1] :] if ends else []
    accuracy, figures = None, {}
    for line in lines:
        if match := SPLIT.match(line):
            split = match[1]
        elif line.startswith("=> result"):
            figures = {}
        elif split != "val" and (match := FIGURE.match(line)):
            figures[match[1]] = float(match[2].replace(",", ""))
            if match[1] == "accuracy":  # rounded to one digit; the two lines before it are not
                whole = figures.get("total") and "correct" in figures
                accuracy = 100 * figures["correct"] / figures["total"] if whole else figures["accuracy"]
    return accuracy, split


def by_layout(model_dir: str, trainer: str) -> tuple[Trained | None, str]:
    """Return the training that a directory's name stands for, and the name from the data set on.

    Returns:
        None and "" if the name is in none of the `LAYOUTS`.
    """
    for layout in LAYOUTS:
        match = re.search("(?:^|/)" + layout.replace("TRAINER", re.escape(trainer)), clean_path(model_dir))
        if match and match["dataset"] in stems():
            name = stems()[match["dataset"]]
            trained = Trained.of(name, match.groupdict().get("classes", "all"), match["shots"], match["seed"])
            return trained, match.string[match.start("dataset") :]
    return None, ""


def clean_path(path: str | Path) -> str:
    """Return a path without "." and ".." parts and without slashes at its ends."""
    return "/".join(part for part in re.split(r"[/\\]", str(path)) if part not in ("", ".", ".."))
