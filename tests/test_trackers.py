"""TRAIN.TRACKER: what Weights & Biases (offline) and MLflow (a SQLite file) hold of a run that was interrupted."""

import json
import struct
from collections import defaultdict

import pytest
import yaml

from dassl.engine import TrainerBase
from dassl.infrastructure.files import read_json
from orthcr.reports.training import read_curves
from orthcr.run.config import setup_cfg
from orthcr.run.declarations import config_values
from orthcr.run.flags import parse
from orthcr.run.runner import main
from orthcr.run.trackers import read_identifiers
from trainers.orthcr import OrthCR


@pytest.fixture
def interrupted_run(pictures, tmp_path, monkeypatch):
    """interrupted_run(tracker): the directory of a run that was interrupted in its second epoch and resumed."""

    def run(tracker):
        words = ["--root", str(pictures), "--output-dir", str(tmp_path / "out"), "TRAIN.TRACKER", str(tracker)]
        words += ["OPTIM.MAX_EPOCH", "3", "DATASET.NUM_SHOTS", "2", "DATALOADER.NUM_WORKERS", "0", "VERBOSE", "False"]
        before_epoch = OrthCR.before_epoch

        def interrupt(self):
            if self.epoch == 1:
                raise KeyboardInterrupt
            before_epoch(self)

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(TrainerBase, "resume_interval", 0)
        with monkeypatch.context() as patch:
            patch.setattr(OrthCR, "before_epoch", interrupt)
            assert main(words) == 130
        first = read_json(tmp_path / "out" / "trackers.json")
        assert main(words) == 0
        assert read_json(tmp_path / "out" / "trackers.json") == first
        return tmp_path / "out", first

    return run


def check_scalars(mine, out):
    """The last value of every tag and step is TensorBoard's."""
    wanted = read_curves(out)
    assert wanted["train/loss"][1].size == 6 and mine.keys() == wanted.keys()
    for tag, (steps, values) in wanted.items():
        assert sorted(mine[tag]) == steps.tolist()
        assert [mine[tag][step] for step in steps] == pytest.approx(values.tolist(), rel=1e-6), tag


def test_mlflow(interrupted_run, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs.db")
    out, identifiers = interrupted_run(["tensorboard", "mlflow"])
    client, results = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs.db"), read_json(out / "results.json")
    (run,) = client.search_runs([client.get_experiment_by_name("orthcr").experiment_id])
    assert run.info.run_id == identifiers["mlflow"] and run.info.status == "FINISHED"
    tags = [tag for tag in run.data.metrics if not tag.startswith("result/")]
    check_scalars(
        {tag: {m.step: m.value for m in client.get_metric_history(run.info.run_id, tag)} for tag in tags}, out
    )
    assert run.data.metrics["result/accuracy"] == results["accuracy"] and run.data.tags["trainer"] == "OrthCR"
    config = config_values(yaml.unsafe_load((out / "config.yaml").read_text()))
    assert run.data.params == {key: str(value) for key, value in config.items()}
    assert [artifact.path for artifact in client.list_artifacts(run.info.run_id)] == ["confusion.png"]


def records_of(path):
    """Yield the records of a .wandb file: 7 bytes, then blocks of 32 KiB in the format of LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, record = path.read_bytes(), 7, b""
    while place < len(data):
        left = 2**15 - place % 2**15
        if left < 7:  # no head fits into the end of a block
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(record)
            record = b""


def test_wandb(interrupted_run, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    out, identifiers = interrupted_run(["tensorboard", "wandb"])
    files = sorted((out / "wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{identifiers['wandb']}.wandb"] * 2
    scalars, axes, summary, params = defaultdict(dict), {}, {}, {}
    for record in (record for file in files for record in records_of(file)):
        kind = record.WhichOneof("record_type")
        assert kind not in ("environment", "stats", "output", "output_raw"), "of the machine, and what is printed"
        if kind == "metric" and record.metric.glob_name:
            axes[record.metric.glob_name.removesuffix("*")] = record.metric.step_metric
        if kind == "history":
            row = {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for tag in row:
                axis = axes.get(tag.partition("/")[0] + "/")
                if axis and tag != axis:
                    scalars[tag][row[axis]] = row[tag]
        if kind == "summary":
            summary |= {item.key: json.loads(item.value_json) for item in record.summary.update if item.key}
        if kind == "run":
            params = {item.key: json.loads(item.value_json) for item in record.run.config.update}
    check_scalars(scalars, out)
    results, config = (
        read_json(out / "results.json"),
        config_values(yaml.unsafe_load((out / "config.yaml").read_text())),
    )
    assert summary["accuracy"] == results["accuracy"] and summary["trainer"] == "OrthCR"
    params.pop("_wandb")
    assert params == json.loads(json.dumps(config))
    (picture,) = out.glob("wandb/offline-run-*/files/**/*.png")
    assert picture.name.startswith("confusion_")


def test_a_tracker_that_is_not_there_is_refused_first(tmp_path, monkeypatch, capsys):
    out = ["--output-dir", str(tmp_path / "out")]
    assert main([*out, "TRAIN.TRACKER", "wandbb"]) == 1
    assert 'do you mean "wandb"?' in capsys.readouterr().err
    monkeypatch.setattr("orthcr.packages.find_spec", lambda package: None)
    assert main([*out, "TRAIN.TRACKER", "['tensorboard', 'mlflow']"]) == 1
    error = capsys.readouterr().err
    assert error == (
        "error: TRAIN.TRACKER mlflow needs mlflow, sqlalchemy, alembic: in the clone, pip install -e '.[trackers]'\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_model_chooses_no_tracker(tmp_path):
    """An evaluation does not send its results where the config of the model says."""
    cfg = setup_cfg(parse(["TRAIN.TRACKER", "[]", "OPTIM.LR", "0.25"]))
    (tmp_path / "config.yaml").write_text(cfg.dump())
    spec = parse(["--eval-only", "--model-dir", str(tmp_path)])
    assert cfg.TRAIN.TRACKER == [] and setup_cfg(spec).TRAIN.TRACKER == ["tensorboard"]
    assert setup_cfg(spec).OPTIM.LR == 0.25


@pytest.mark.parametrize("content", ["[]", '{"wandb": 1}', '{"wandb": "../x"}', '{"else": "a"}'])
def test_damaged_identifiers(tmp_path, content, one_line):
    (tmp_path / "trackers.json").write_text(content)
    with pytest.raises(ValueError, match="is damaged") as error:
        read_identifiers(str(tmp_path))
    one_line(error)
