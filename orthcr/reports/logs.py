"""A reader of `log.txt` files of CoOp, CoCoOp, MaPLe, PromptSRC and other code on the original Dassl.

The log of an evaluation has the directory of its model, but not the training data. `tree.add_model` takes these from
the log of the training. If this log is missing, they are taken from the name of the directory, which has one of the
`LAYOUTS` in these projects.
"""

import re
from pathlib import Path

from dassl.infrastructure.files import read_bytes, visible
from datasets.catalogue import stems
from orthcr.reports.runs import Run, TrainingData, UnusableResult, method_settings

TITLES = ("** Arguments **", "** Config **")
FINISHED = re.compile(r"Finish(ed)? training")
SPLIT = re.compile(r"(?:Evaluate on the \*|Do evaluation on )(\w+)\*? set")
FIGURE = re.compile(r"\* (total|correct|accuracy): (\d[\d,]*(?:\.\d+)?)%?")
LAYOUTS = (  # first: base-to-new of CoCoOp, MaPLe and PromptSRC; second: CoOp, and the ImageNet models of all four
    r"train_(?P<classes>base|new|all)/(?P<dataset>[^/]+)/shots_(?P<shots>\d+)/TRAINER/(?:[^/]+/)*seed(?P<seed>\d+)$",
    r"(?P<dataset>[^/]+)/TRAINER/[^/]+_(?P<shots>\d+)shots/(?:[^/]+/)*seed(?P<seed>\d+)$",
)


def read_log(path: Path) -> Run:
    """Return the run of a `log.txt`; its accuracy is None if it did not finish.

    Raises:
        UnusableResult: the file cannot be read, or is not a complete log of a run.
    """
    try:
        lines = read_bytes(path).decode(errors="replace").splitlines()
    except OSError as error:
        raise UnusableResult(f"cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UnusableResult(str(error)) from None
    this_code = TITLES[1] in lines or any(line.startswith("Setting fixed seed") for line in lines)
    if this_code and TITLES[0] not in lines:
        raise UnusableResult("unfinished: no results.json beside it")
    if not set(TITLES) <= set(lines):
        raise UnusableResult("malformed: it has no arguments and config, as logs of CoOp's train.py have")
    first, second = (lines.index(title) for title in TITLES)
    args = dict(line.split(": ", 1) for line in lines[first:second] if ": " in line)
    config = parse_config(lines[second:])
    try:
        trainer, dataset, backbone = (config[key] for key in ("TRAINER.NAME", "DATASET.NAME", "MODEL.BACKBONE.NAME"))
        classes = config.get("DATASET.SUBSAMPLE_CLASSES", "all")
        training = TrainingData.of(dataset, classes, config.get("DATASET.NUM_SHOTS", -1), config["SEED"])
    except (KeyError, ValueError) as error:
        raise UnusableResult(f"malformed: its config has no valid {error}") from None

    zero_shot, eval_only = trainer.lower().startswith("zeroshot"), args.get("eval_only") == "True"
    evaluation = eval_only and not zero_shot
    config["config"] = Path(args.get("config_file", "")).stem
    settings = method_settings(config, trainer, not zero_shot)
    model_dir = args.get("model_dir", "") if evaluation else None
    if eval_only or zero_shot:
        training = parse_layout(model_dir, trainer)[0] if evaluation else None
    accuracy, split = last_result(lines, config.get("TEST.SPLIT", "test"), is_training=not eval_only and not zero_shot)
    if eval_only and accuracy is None and split == "val":
        raise UnusableResult("evaluated on val")
    if accuracy is not None and accuracy > 100:
        raise UnusableResult(f"malformed: its accuracy is {accuracy}")
    model = path.parent.resolve() if training and not evaluation else None
    code = "Dassl.pytorch"
    return Run(trainer, backbone, settings, training, dataset, classes, accuracy, path, code, model_dir, model)


def parse_config(lines: list[str]) -> dict[str, str]:
    """Return {dotted key: value} of a config as printed by yacs.

    The format is like YAML, but tuples and texts are not quoted.
    """
    config, sections = {}, []
    for line in lines:
        if line.startswith(("Collecting env info", "** System info **")):
            break
        if match := re.fullmatch(r"((?:  )*)([^\s:]+):(?: (.*))?", line):
            indent, key, value = match.groups()
            sections[len(indent) // 2 :] = [key]
            if value is not None:
                config[".".join(sections)] = visible(value.strip())
    return config


def last_result(lines: list[str], split: str, is_training: bool) -> tuple[float | None, str]:
    """Return the accuracy of the last test result in percent, None if there is none, and the split of the last result.

    Args:
        lines: lines of the log.
        split: split of the results if no line names another.
        is_training: whether the log is of a training. Then only results after its end count.
    """
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        return None, split
    if is_training:  # older versions of Dassl also test during the training
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
            if match[1] == "accuracy":  # printed with one decimal; the counts before it are exact
                has_counts = figures.get("total") and "correct" in figures
                accuracy = 100 * figures["correct"] / figures["total"] if has_counts else figures["accuracy"]
    return accuracy, split


def parse_layout(model_dir: str, trainer: str) -> tuple[TrainingData | None, str]:
    """Parse the name of a directory; return the training data, and the part of the name from the data set on.

    Returns:
        The two; None and "" if the name has none of the `LAYOUTS`.
    """
    for layout in LAYOUTS:
        match = re.search("(?:^|/)" + layout.replace("TRAINER", re.escape(trainer)), clean_path(model_dir))
        if match and match["dataset"] in stems():
            name = stems()[match["dataset"]]
            training = TrainingData.of(name, match.groupdict().get("classes", "all"), match["shots"], match["seed"])
            return training, match.string[match.start("dataset") :]
    return None, ""


def clean_path(path: str | Path) -> str:
    """Return a path without "." and ".." parts and without slashes at its ends."""
    return "/".join(part for part in re.split(r"[/\\]", str(path)) if part not in ("", ".", ".."))
