"""The trackers Weights & Biases and MLflow, for `TRAIN.TRACKER`. The engine itself writes TensorBoard files.

A tracker records the config, the scalars, the results and the pictures of a run. OUT/trackers.json has the identifier
of the tracker's run, so that a resumed run continues it.
"""

import contextlib
import os
import os.path as osp
import re
import secrets
import sys
import time
from collections.abc import Iterator

from yacs.config import CfgNode

from dassl.evaluation.evaluator import confusion_matrix
from dassl.infrastructure import distributed
from dassl.infrastructure.files import read_json, scratch_folder, write_json
from orthcr.packages import check_installed
from orthcr.reports.predictions import draw_confusion_matrix
from trainers.shared.privacy import report_nothing

from .declarations import config_values

FILE = "trackers.json"
PROJECT = "orthcr"  # name of wandb's project and MLflow's experiment, without WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME
PACKAGES = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,64}")
PICTURES = ("confusion.png", "wrong.png")  # pictures of a run on own images
SEND_EVERY = 2.0  # seconds between two requests to MLflow


def check_trackers(cfg: CfgNode) -> None:
    """Raise ValueError if the library of a tracker is not installed."""
    for name in cfg.TRAIN.TRACKER:
        if name in PACKAGES:
            check_installed(PACKAGES[name], f"TRAIN.TRACKER {name}", "trackers")


class WandbRun:
    """A run of Weights & Biases. WANDB_MODE=offline keeps it in OUT/wandb, for `wandb sync`.

    wandb counts its own steps. The x-axis of a scalar is the step of its group, which is its tag up to the first "/".

    Args:
        identifier: identifier of the run to continue; "": a new run.
        name: name of the run.
        cfg: config of the run.

    Raises:
        ValueError: wandb cannot start, for example without an account.
    """

    def __init__(self, identifier: str, name: str, cfg: CfgNode):
        import wandb

        self.wandb, self.identifier = wandb, identifier or secrets.token_hex(4)
        self.groups, self.row = set(), {}
        settings = wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True, save_code=False)
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=self.identifier,
                resume="allow",
                name=name,
                dir=cfg.OUTPUT_DIR,
                config=config_values(cfg),
                settings=settings,
                reinit="create_new",
            )
        except Exception as error:  # wandb raises a dozen types
            advice = "run `wandb login` once, or set WANDB_MODE=offline"
            raise ValueError(f"TRAIN.TRACKER wandb cannot start ({format_exception(error)}): {advice}") from error
        self.place = osp.join(cfg.OUTPUT_DIR, "wandb") if self.run.settings.mode == "offline" else self.run.url

    def write_scalar(self, tag: str, value: float, step: int | None) -> None:
        group = tag.partition("/")[0]
        axis = f"{group}/step"
        if group not in self.groups:
            self.groups.add(group)
            self.run.define_metric(axis, hidden=True)
            self.run.define_metric(f"{group}/*", step_metric=axis)
        if self.row.get(axis, step) != step:
            self.flush()
        self.row.update({tag: float(value), axis: step})

    def flush(self) -> None:
        """Send the scalars of one step together."""
        if self.row:
            self.run.log(self.row)
            self.row = {}

    def write_results(self, results: dict, pictures: list[str]) -> None:
        self.flush()
        self.run.summary.update(results)
        images = {osp.splitext(osp.basename(path))[0]: self.wandb.Image(path) for path in pictures}
        if images:
            self.run.log(images)

    def close(self, is_finished: bool) -> None:
        self.flush()
        self.run.finish(exit_code=0 if is_finished else 1)


class MlflowRun:
    """A run of MLflow, in the store of MLFLOW_TRACKING_URI.

    If the store fails during a run, a line is printed, and the run goes on without the tracker.

    Args:
        identifier: identifier of the run to continue; "": a new run.
        name: name of the run.
        cfg: config of the run.

    Raises:
        ValueError: the store cannot be reached, or lacks the run to continue.
    """

    def __init__(self, identifier: str, name: str, cfg: CfgNode):
        import mlflow
        from mlflow.entities import Metric, Param

        self.metric, self.client, self.place = Metric, mlflow.MlflowClient(), mlflow.get_tracking_uri()
        self.rows, self.sent_at, self.fails = [], time.time(), False
        try:
            if identifier:
                self.client.update_run(identifier, status="RUNNING")
            else:
                identifier = self.client.create_run(self.experiment(), run_name=name).info.run_id
                params = [Param(key, str(value)[:6000]) for key, value in config_values(cfg).items()]
                for start in range(0, len(params), 100):  # MLflow takes a hundred at once
                    self.client.log_batch(identifier, params=params[start : start + 100])
        except Exception as error:  # MLflow raises a dozen types
            advice = f"set MLFLOW_TRACKING_URI, or remove {osp.join(cfg.OUTPUT_DIR, FILE)} to start another run"
            raise ValueError(
                f"TRAIN.TRACKER mlflow cannot use {self.place} ({format_exception(error)}): {advice}"
            ) from error
        self.identifier = identifier

    def experiment(self) -> str:
        """Return the identifier of the experiment; create it if it does not exist."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        return experiment.experiment_id if experiment else self.client.create_experiment(name)

    def write_scalar(self, tag: str, value: float, step: int | None) -> None:
        self.rows.append(self.metric(tag, float(value), int(1000 * time.time()), step or 0))
        if time.time() - self.sent_at >= SEND_EVERY:
            self.flush()

    def flush(self) -> None:
        """Send the scalars that were written since the last call."""
        for start in range(0, len(self.rows), 1000):  # MLflow takes a thousand at once
            self.send("log_batch", metrics=self.rows[start : start + 1000])
        self.rows, self.sent_at = [], time.time()

    def send(self, method: str, *args, **kwargs) -> None:
        """Call a method of the client for this run, unless an earlier call failed."""
        if self.fails:
            return
        try:
            getattr(self.client, method)(self.identifier, *args, **kwargs)
        except Exception as error:  # MLflow raises a dozen types
            self.fails = True
            reason = format_exception(error)
            print(f"MLflow at {self.place} failed ({reason}): the run goes on without it", file=sys.stderr)

    def write_results(self, results: dict, pictures: list[str]) -> None:
        for key, value in results.items():
            if isinstance(value, str):
                self.send("set_tag", key, value)
            else:
                self.rows.append(self.metric(f"result/{key}", float(value), int(1000 * time.time()), 0))
        self.flush()
        for path in pictures:
            self.send("log_artifact", path)

    def close(self, is_finished: bool) -> None:
        self.flush()
        self.send("set_terminated", "FINISHED" if is_finished else "FAILED")


TRACKERS = {"wandb": WandbRun, "mlflow": MlflowRun}


@contextlib.contextmanager
def open_trackers(cfg: CfgNode, name: str) -> Iterator[list]:
    """Yield the trackers of a run, [] except in the first process; close them at the end.

    Args:
        cfg: config of the run.
        name: name of the run in its trackers.
    """
    names = [tracker for tracker in cfg.TRAIN.TRACKER if tracker in TRACKERS and distributed.is_first()]
    trackers, is_finished = [], False
    report_nothing()
    try:
        for tracker in names:
            identifiers = read_identifiers(cfg.OUTPUT_DIR)
            trackers.append(TRACKERS[tracker](identifiers.get(tracker, ""), name, cfg))
            identifiers[tracker] = trackers[-1].identifier
            write_json(identifiers, osp.join(cfg.OUTPUT_DIR, FILE), seal=True)
            print(f"{tracker} records this run as {trackers[-1].identifier} in {trackers[-1].place}")
        yield trackers
        is_finished = True
    finally:
        for tracker in trackers:
            tracker.close(is_finished)


def read_identifiers(folder: str) -> dict[str, str]:
    """Return {tracker: identifier of its run} from an output directory.

    Raises:
        ValueError: the file is damaged.
    """
    path = osp.join(folder, FILE)
    identifiers = read_json(path) if osp.exists(path) else {}
    is_valid = isinstance(identifiers, dict) and all(
        name in TRACKERS and isinstance(text, str) and IDENTIFIER.fullmatch(text) for name, text in identifiers.items()
    )
    if not is_valid:
        raise ValueError(f"{path} is damaged: put the original back, or remove it to start new runs in the trackers")
    return identifiers


def name_of(cfg: CfgNode, eval_only: bool) -> str:
    """Return the name of a run in its trackers."""
    words = [cfg.TRAINER.NAME, cfg.DATASET.NAME, cfg.DATASET.SUBSAMPLE_CLASSES, f"seed {cfg.SEED}"]
    if cfg.DATASET.NUM_SHOTS > 0:
        words.insert(3, f"{cfg.DATASET.NUM_SHOTS} shots")
    return " ".join(words + ["evaluation"] * eval_only)


def write_to_trackers(trackers: list, trainer, cfg: CfgNode, results: dict) -> None:
    """Write the result and the pictures of a run into its trackers."""
    if not trackers:
        return
    scalars = {key: value for key, value in results.items() if isinstance(value, int | float | str)}
    with scratch_folder(cfg.OUTPUT_DIR, "trackers") as folder:
        pictures = [path for path in (osp.join(cfg.OUTPUT_DIR, name) for name in PICTURES) if osp.exists(path)]
        if cfg.DATASET.NAME != "Images":
            pictures = draw_confusion(trainer, osp.join(folder, PICTURES[0]))
        for tracker in trackers:
            tracker.write_results(scalars, pictures)


def draw_confusion(trainer, path: str) -> list[str]:
    """Draw the confusion matrix of the last test; return [path], or [] if there was no test."""
    predicted = getattr(trainer.evaluator, "y_pred", None)
    if predicted is None or not trainer.results:
        return []
    names = [trainer.lab2cname[label] for label in sorted(trainer.lab2cname)]
    matrix = confusion_matrix(trainer.evaluator.y_true, predicted, len(names)).numpy()
    draw_confusion_matrix(matrix, names, path)
    return [path]


def format_exception(error: Exception) -> str:
    """Return the message of a library's exception in one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
