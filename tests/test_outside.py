"""A directory of somebody else, of a model or of results: on its word nothing is written, removed or downloaded."""

import os
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

import benchmark
from dassl.infrastructure.files import atomic_write, protected, scratch_folder, sweep, write_json
from orthcr.run.runner import main


def files_of(folder):
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def victim(tmp_path):
    """A folder with Caltech101 of two classes in it, in CoOp's layout."""
    home, rng = tmp_path / "victim", np.random.default_rng()
    rows = {part: [] for part in ("train", "val", "test")}
    for label, name in enumerate(("ant", "bee")):
        for k in range(9):
            path = home / "caltech-101" / "101_ObjectCategories" / name / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
            rows[("train", "val", "test")[k % 3]].append([f"{name}/{k}.png", label, name])
    write_json(rows, home / "caltech-101" / "split_zhou_Caltech101.json")
    return home


@pytest.fixture
def foreign(tmp_path, victim):
    """The directory of a zero-shot run whose config names the victim's folder."""
    mine = tmp_path / "mine"
    shutil.copytree(victim, mine)
    words = ["--trainer", "ZeroshotCLIP", "--root", str(mine), "--output-dir", str(tmp_path / "OUT")]
    words += ["--dataset-config-file", "configs/datasets/caltech101.yaml", "DATASET.NUM_SHOTS", "2"]
    assert main([*words, "VERBOSE", "False"]) == 0
    file = tmp_path / "OUT" / "config.yaml"
    text = "\n".join(line for line in file.read_text().splitlines() if not line.startswith("#"))
    config = yaml.safe_load(text)
    assert config["DATASET"]["ROOT"] == str(mine)
    config["DATASET"]["ROOT"] = str(victim)
    file.write_text(yaml.safe_dump(config))
    return tmp_path / "OUT"


def test_no_selection_is_written_into_a_folder_that_the_config_names(foreign, victim, capsys):
    before = files_of(victim)
    assert main(["--eval-only", "--model-dir", str(foreign), "VERBOSE", "False"]) == 0
    assert files_of(victim) == before and "The few-shot selection is not saved" in capsys.readouterr().out
    assert main(["--eval-only", "--model-dir", str(foreign), "--root", str(victim), "VERBOSE", "False"]) == 0
    assert len(files_of(victim)) == len(before) + 2, "with a word of the user"


def test_what_is_protected(tmp_path):
    inside, link, allowed = tmp_path / "a" / "b", tmp_path / "link", tmp_path / "a" / "OUT"
    inside.mkdir(parents=True)
    allowed.mkdir()
    link.symlink_to(tmp_path / "a")
    leftover = inside / ".x.json.0123abcd.tmp"
    leftover.touch()
    with protected(str(tmp_path / "a"), but=[str(allowed)]):
        for folder in (inside, link, link / "b", tmp_path / "a" / "new"):
            with pytest.raises(OSError, match="only the model's config.yaml names"), atomic_write(folder / "x") as f:
                f.write(b"text")
        with pytest.raises(OSError, match="only the model's"), scratch_folder(str(inside), "x"):
            pass
        sweep(inside)
        with atomic_write(allowed / "x") as f, atomic_write(tmp_path / "y") as g:
            f.write(b"text")
            g.write(b"text")
    assert leftover.exists() and sorted(os.listdir(tmp_path / "a")) == ["OUT", "b"] and (tmp_path / "y").exists()
    sweep(inside)
    assert not leftover.exists(), "by the user's own runs it is"


def test_nothing_is_swept_behind_a_link(tmp_path, pictures):
    victim, out = tmp_path / "victim", tmp_path / "OUT"
    victim.mkdir()
    out.mkdir()
    (victim / ".x.json.0123abcd.tmp").touch()
    (out / "sub").symlink_to(victim)
    words = ["--trainer", "ZeroshotCLIP", "--root", str(pictures), "--output-dir", str(out), "VERBOSE", "False"]
    assert main(words) == 0 and os.listdir(victim) == [".x.json.0123abcd.tmp"]


def test_a_benchmark_writes_through_no_link(tmp_path, pictures, capsys):
    victim, out = tmp_path / "victim", tmp_path / "OUT"
    victim.mkdir()
    words = ["--trainers", "ZeroshotCLIP", "--protocol", "base2new", "--datasets", "shapes", "--root", str(pictures)]
    words += ["--output-dir", str(out), "--seeds", "1", "--workers", "1"]
    assert benchmark.main(words) == 0
    folder = next(path.parent for path in out.rglob("results.json"))
    link = folder.parent
    shutil.rmtree(link)
    link.symlink_to(victim)
    capsys.readouterr()
    assert benchmark.main(words) == 1
    assert "lies behind a link" in capsys.readouterr().err and os.listdir(victim) == []
    link.unlink()
    (out / "report.html").unlink()
    (out / "report.html").symlink_to(victim / "page.html")
    assert benchmark.main(words) == 0 and os.listdir(victim) == [] and not (out / "report.html").is_symlink()


def test_nothing_is_downloaded_for_a_model_of_somebody_else(foreign, monkeypatch, capsys):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def snapshot_download(repository, local_files_only=False, **_):
        asked.append((repository, local_files_only))
        raise hub.errors.LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    file = foreign / "config.yaml"
    file.write_text(file.read_text().replace("NAME: tiny", "NAME: hf-hub:evil/model"))
    assert main(["--eval-only", "--model-dir", str(foreign), "VERBOSE", "False"]) == 1
    err = capsys.readouterr().err
    assert "hf download evil/model" in err and err.count("\n") == 1
    assert asked and all(local for _, local in asked)
