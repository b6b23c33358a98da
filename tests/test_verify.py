"""`python -m datasets.tools.verify` on miniatures of the benchmarks: whole ones, and each thing that may be wrong."""

import hashlib
import os
import random
from dataclasses import replace

import miniatures
import pytest
from miniatures import JPEG, MINIATURES, TEST_ONLY, WITH_SPLIT_FILE, change_row, folder_of
from test_datasets import PARTS

from dassl.utils import write_json
from datasets.catalogue import get
from datasets.tools import verify

lay = miniatures.lay  # the fixture


@pytest.fixture
def run(tmp_path, capsys):
    """run(word, ...): the exit status, {data set: {header: cell}}, and everything that was printed."""

    def run(*words):
        capsys.readouterr()
        status = verify.main([*words, "--root", str(tmp_path)])
        said = capsys.readouterr()
        lines = said.out.splitlines()
        if len(lines) < 2 or not lines[1].startswith("---"):
            return status, {}, said.out + said.err
        edges, at = [], 0  # columns are as wide as their dashes
        for dashes in lines[1].split("  "):
            edges.append((at, at + len(dashes)))
            at += len(dashes) + 2
        cells = [[line[a:b].strip() for a, b in edges] for line in lines if line and get(line.split()[0])]
        table = {row[0]: dict(zip(verify.HEADERS, row, strict=True)) for row in cells if len(row[-1].split()) in (1, 2)}
        return status, table, said.out + said.err

    return run


def state_of(folder):
    return {path: hashlib.sha256(path.read_bytes()).digest() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("name", MINIATURES)
def test_a_whole_data_set_is_found_to_be_so_and_left_as_it_is(name, lay, run, tmp_path):
    cls, split = lay(name)
    before = state_of(tmp_path)
    status, table, said = run(name)
    assert status == 0, said
    counts = {part: f"{len(split[part])}/{len(split[part])}" if split[part] else "-" for part in PARTS}
    classes = len({row[1] for part in PARTS for row in split[part]})
    assert table == {
        name: {
            "data set": name,
            "present": "yes",
            "classes": f"{classes}/{classes}",
            **counts,
            "missing": "0",
            "unreadable": "0",
            "verdict": "ok",
            "same name": "1" if classes == 11 else "0",
        }
    }
    assert ("several classes of the same name: crane" in said) == (classes == 11)
    assert state_of(tmp_path) == before


@pytest.mark.parametrize("name", ["StanfordCars", "EuroSAT", "FGVCAircraft", "ImageNetR"])
def test_unreadable_files_are_listed_and_others_counted(name, lay, run, tmp_path):
    cls, split = lay(name)
    paths = [folder_of(cls, tmp_path) / row[0] for part in PARTS for row in split[part]]
    bad = random.sample(paths, 3)
    for path, content in zip(bad, (JPEG[:-20], b"<html>404</html>", b""), strict=True):
        path.write_bytes(content)
    status, table, said = run(name)
    assert status == 1 and table[name]["unreadable"] == "3" and table[name]["verdict"] == "wrong"
    assert [str(path) in said for path in paths] == [path in bad for path in paths]

    status, table, said = run(name, "--fast")
    assert status == 0 and table[name]["unreadable"] == "not checked" and "cannot be read" not in said


def test_only_the_first_20_are_listed(lay, run, tmp_path):
    cls, split = lay("ImageNet")
    paths = [folder_of(cls, tmp_path) / row[0] for part in PARTS for row in split[part]]
    assert len(paths) > 20
    for path in paths:
        path.write_bytes(JPEG[:100])
    _, table, said = run("imagenet")
    assert table["ImageNet"]["unreadable"] == str(len(paths))
    assert sum(str(path) in said for path in paths) == 20 and f"... and {len(paths) - 20:,} more" in said


@pytest.mark.parametrize("name", [*WITH_SPLIT_FILE, "FGVCAircraft"])
def test_missing_images_are_listed(name, lay, run, tmp_path):
    cls, split = lay(name)
    if name in WITH_SPLIT_FILE:
        write_json(split, tmp_path / cls.dataset_dir / cls.split_file)
    paths = [folder_of(cls, tmp_path) / row[0] for part in PARTS for row in split[part]]
    gone = random.sample(paths, 4)
    for path in gone:
        path.unlink()
    for words in ([], ["--fast"]):
        status, table, said = run(name.upper(), *words)
        assert status == 1 and table[name]["missing"] == "4" and table[name]["verdict"] == "wrong"
        assert [str(path) in said for path in paths] == [path in gone for path in paths]


@pytest.mark.parametrize(
    "name, part",
    [
        ("OxfordPets", "train"),
        ("Caltech101", "classes"),
        ("SUN397", "val"),
        ("ImageNet", "test"),
        ("ImageNetV2", "test"),
    ],
)
def test_other_numbers_than_expected(name, part, lay, run, monkeypatch):
    lay(name)
    size = get(name).size
    found = getattr(size, part)
    change_row(monkeypatch, name, size=replace(size, **{part: found + 1234}))
    status, table, _ = run(name)
    assert status == 1 and table[name]["verdict"] == "wrong"
    assert table[name][part] == f"{found}/{found + 1234:,}"


def test_what_cannot_be_read_at_all_is_said(lay, run, tmp_path):
    cls, _ = lay("UCF101")
    (tmp_path / "ucf101" / "ucfTrainTestlist" / "classInd.txt").write_text("one\n")
    cls, _ = lay("ImageNetSketch")
    (folder_of(cls, tmp_path) / "n01440764").rename(tmp_path / "away")
    lay("EuroSAT")
    status, table, said = run()
    assert status == 1 and {name: row["verdict"] for name, row in table.items()} == {
        "UCF101": "wrong",
        "ImageNetSketch": "wrong",
        "EuroSAT": "ok",
    }
    assert table["UCF101"]["present"] == "incomplete" and "classInd.txt, line 1" in said
    assert "10 of the 11 class folders; missing or empty: n01440764" in said


def test_a_folder_that_may_not_be_read_does_not_stop_the_others(lay, run, monkeypatch):
    lay("DescribableTextures")
    lay("EuroSAT")
    listdir = os.listdir

    def refuse(folder="."):
        if str(folder).endswith("eurosat"):
            raise PermissionError(13, "Permission denied", folder)
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", refuse)
    status, table, said = run()
    assert status == 1 and table["DescribableTextures"]["verdict"] == "ok" and table["EuroSAT"]["verdict"] == "wrong"
    assert "EuroSAT: [Errno 13] Permission denied" in said


def test_all_that_are_there(lay, run):
    lay("DescribableTextures")
    lay("ImageNetA")
    status, table, said = run()
    assert status == 0 and list(table) == ["DescribableTextures", "ImageNetA"]
    (absent,) = [line for line in said.splitlines() if line.startswith("not there: ")]
    assert set(absent.removeprefix("not there: ").split(", ")) == MINIATURES.keys() - table.keys()


def test_named_but_not_there(lay, run, tmp_path):
    lay("EuroSAT")
    status, table, said = run("eurosat", "oxford_flowers")
    assert status == 1 and table["EuroSAT"]["verdict"] == "ok"
    assert table["OxfordFlowers"]["present"] == "no" and str(tmp_path / "oxford_flowers") in said


def test_names_and_root(run, capsys, tmp_path):
    status, _, said = run("OxfordPet")
    assert status == 1 and said.startswith("error: ") and 'mean "OxfordPets"' in said and said.count("\n") == 1
    assert "Digits is embedded" in run("digits")[2]
    status = verify.main(["--root", str(tmp_path / "nowhere")])
    assert status == 1 and str(tmp_path / "nowhere") in capsys.readouterr().err


def test_variants_need_no_list_of_their_own(lay, run, tmp_path):
    """classnames.txt is taken from imagenet/ if it is not there; without both, it is missing."""
    for name in TEST_ONLY:
        cls, _ = lay(name)
        own, shared = tmp_path / cls.dataset_dir / "classnames.txt", tmp_path / "imagenet" / "classnames.txt"
        if own.exists():
            shared.parent.mkdir(exist_ok=True)
            own.rename(shared)
        assert run(name, "--fast")[0] == 0
    shared.unlink()
    status, table, said = run(*TEST_ONLY)
    assert status == 1 and all(row["present"] == "incomplete" for row in table.values()) and str(shared) in said
