"""`python -m datasets.tools.prepare` against a server on loopback: CoOp's layouts."""

import json
import os
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
import serving
from miniatures import change_row
from serving import Served, files_in, md5, random_tree, tar_bytes, zip_bytes

from dassl.utils import download_url, locked
from datasets.catalogue import downloads, find
from datasets.tools import prepare

server, drive = serving.server, serving.drive  # the fixtures


# ------------------------------------------------------------------ whole data sets


@pytest.fixture
def net(server, monkeypatch):
    """Every address leads to the server: net(url, body) serves there, and the entry's checksum becomes the body's."""

    def redirected(url, dst, checksum=None):
        return download_url(server.url(urlsplit(url).path), dst, checksum)

    def serve(url, body):
        for b in downloads(["all"]):
            items = tuple(replace(i, checksum=md5(body)) if i.url == url else i for i in b.items)
            change_row(monkeypatch, b.name, items=items)
        served = server.files[urlsplit(url).path] = Served(body)
        return served

    monkeypatch.setattr(prepare, "download_url", redirected)
    return serve


def urls(name):
    return [item.url for item in find(name).items if item.url]


def split_id(name):
    return find(name).items[0].drive


def split_of(*paths):
    return json.dumps({"train": [[path, 0, "x"] for path in paths], "val": [], "test": []}).encode()


def snapshot(folder):
    return {str(p.relative_to(folder)): (p.lstat().st_mtime_ns, p.lstat().st_ino) for p in folder.rglob("*")}


def run(*argv):
    return prepare.main([str(word) for word in argv])


def test_caltech_with_an_archive_in_an_archive(net, drive, tmp_path, capsys):
    images = random_tree("101_ObjectCategories/ant/image_0001.jpg", "101_ObjectCategories/crab/image_0001.jpg")
    outer = {
        "caltech-101/101_ObjectCategories.tar.gz": tar_bytes(images),
        "caltech-101/Annotations.tar": b"",
        "__MACOSX/caltech-101/._101_ObjectCategories.tar.gz": b"mac",
    }
    served = net(*urls("Caltech101"), zip_bytes(outer))
    drive[split_id("Caltech101")] = split = split_of("ant/image_0001.jpg")
    assert run("caltech101", "--root", tmp_path) == 0
    assert files_in(tmp_path) == {
        f"caltech-101/{path}": content for path, content in (images | {"split_zhou_Caltech101.json": split}).items()
    }
    assert f"python -m datasets.tools.verify Caltech101 --root {tmp_path}" in capsys.readouterr().out
    before = snapshot(tmp_path)
    drive.clear()
    assert run("CALTECH101", "--root", tmp_path) == 0  # given twice: nothing is asked for or touched
    assert snapshot(tmp_path) == before and len(served.sent) == 1


def test_dtd_interrupted_and_given_again(net, drive, tmp_path, monkeypatch, capsys):
    tree = random_tree("images/a/1.jpg", "imdb/imdb.mat", "labels/train1.txt")
    served = net(*urls("DescribableTextures"), tar_bytes({f"dtd/{path}": body for path, body in tree.items()}))
    drive[split_id("DescribableTextures")] = split = split_of("a/1.jpg")
    rename = os.rename

    def pressed(source, target):
        if str(target).endswith("labels"):
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", pressed)
        assert run("dtd", "--root", tmp_path) == 130
    assert "goes on" in capsys.readouterr().err
    assert not (tmp_path / "dtd" / "labels").exists() and not (tmp_path / "dtd" / prepare.SCRATCH).exists()
    images = (tmp_path / "dtd" / "images").stat().st_ino
    drive.clear()
    assert run("dtd", "--root", tmp_path) == 0
    expected = {f"dtd/{path}": body for path, body in (tree | {"split_zhou_DescribableTextures.json": split}).items()}
    assert files_in(tmp_path) == expected and len(served.sent) == 1
    assert (tmp_path / "dtd" / "images").stat().st_ino == images


def test_aircraft_keeps_only_data(net, tmp_path):
    tree = random_tree(
        "images/1.jpg",
        "variants.txt",
        "images_variant_train.txt",
        "images_variant_val.txt",
        "images_variant_test.txt",
        "families.txt",
    )
    packed = {f"fgvc-aircraft-2013b/data/{path}": body for path, body in tree.items()}
    net(*urls("FGVCAircraft"), tar_bytes(packed | {"fgvc-aircraft-2013b/evaluation.m": b"m"}))
    assert run("fgvc-aircraft", "--root", tmp_path, "--keep-archives") == 0
    assert (tmp_path / "fgvc_aircraft" / "fgvc-aircraft-2013b.tar.gz").unlink() is None
    assert files_in(tmp_path / "fgvc_aircraft") == tree


def test_sketch_and_class_names(net, drive, tmp_path, capsys):
    """Class names are ImageNet's if they are there, else downloaded; a refusal of Drive is an error for them."""
    net(urls("ImageNetSketch")[0], zip_bytes(tree := random_tree("sketch/n01440764/sketch_0.JPEG")))
    names = find("ImageNet").items[0].drive
    assert run("imagenet_sketch", "--root", tmp_path) == 1
    error = capsys.readouterr().err
    assert f"https://drive.google.com/file/d/{names}/view" in error
    assert str(tmp_path / "imagenet-sketch" / "classnames.txt") in error
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "classnames.txt").write_text("n01440764 tench\n")
    assert run("imagenet_sketch", "--root", tmp_path) == 0
    assert files_in(tmp_path / "imagenet-sketch") == {
        "images/n01440764/sketch_0.JPEG": tree["sketch/n01440764/sketch_0.JPEG"],
        "classnames.txt": b"n01440764 tench\n",
    }


def test_cars_without_drive(net, drive, tmp_path, capsys):
    """The archive of the mirror lies below other folders, and its split makes up for Drive's refusal."""
    tree = random_tree(
        "cars_train/00001.jpg",
        "cars_train/cars_train/00001.jpg",
        "cars_test/00001.jpg",
        "devkit/cars_meta.mat",
        "cars_test_annos_withlabels.mat",
        "split_zhou_StanfordCars.json",
    )
    net(*urls("StanfordCars"), zip_bytes({f"data/x/stanford_cars/{path}": body for path, body in tree.items()}))
    assert run("stanford_cars", "--root", tmp_path) == 0
    assert files_in(tmp_path / "stanford_cars") == tree
    error = capsys.readouterr().err
    assert "Google Drive" in error and "rule" not in error  # no talk of a missing split: it came after all


def test_ucf_second_source_and_lists(net, drive, tmp_path, capsys):
    frames, lists, _ = [item.url for item in find("UCF101").items[2:]] + [None]
    net(frames, zip_bytes(tree := random_tree("ucf101/UCF-101-midframes/Archery/v_1.jpg")))
    net(lists, zip_bytes(listed := random_tree("ucfTrainTestlist/trainlist01.txt")))
    assert run("ucf101", "--root", tmp_path) == 0
    assert "by the same rule, but it is not the published one" in capsys.readouterr().err
    assert files_in(tmp_path) == tree | {f"ucf101/{path}": body for path, body in listed.items()}
    drive[split_id("UCF101")] = b"{}"
    assert run("ucf101", "--root", tmp_path / "other") == 0  # with the published split the lists are not asked for
    assert sorted(os.listdir(tmp_path / "other" / "ucf101")) == ["UCF-101-midframes", "split_zhou_UCF101.json"]


def test_a_split_that_is_a_web_page(net, drive, tmp_path, capsys):
    drive[split_id("EuroSAT")] = b"<html>Sign in</html>"
    net(*urls("EuroSAT"), zip_bytes(tree := random_tree("2750/River/River_1.jpg")))
    (tmp_path / "eurosat" / "2750").mkdir(parents=True)  # an empty folder is not taken for the data
    assert run("EuroSAT", "--root", tmp_path) == 0
    assert "no JSON" in (error := capsys.readouterr().err) and "in a browser" in error
    assert files_in(tmp_path / "eurosat") == tree


def test_imagenet_by_hand(drive, tmp_path, capsys):
    drive[find("ImageNet").items[0].drive] = b"n01440764 tench\n"
    assert run("ImageNet", "--root", tmp_path) == 1
    error = capsys.readouterr().err
    for expected in ("images/train", "images/val", "image-net.org", "ILSVRC2012_img_val.tar", "classnames.txt"):
        assert expected in error
    assert files_in(tmp_path) == {"imagenet/classnames.txt": b"n01440764 tench\n"}  # what can be had
    for part in ("train", "val"):
        (tmp_path / "imagenet" / "images" / part / "n01440764").mkdir(parents=True)
    assert run("ImageNet", "--root", tmp_path) == 0


def test_what_a_user_has_is_respected(net, drive, tmp_path, capsys):
    """Files, folders behind links and archives of the user's are used, neither overwritten nor removed."""
    own, root = tmp_path / "own", tmp_path / "root"
    (own / "images").mkdir(parents=True)
    (own / "images" / "cat.jpg").write_text("mine")
    (own / "annotations.tar.gz").write_bytes(tar_bytes({"annotations/list.txt": b"1"}))
    (own / "split_zhou_OxfordPets.json").write_text("my split")
    root.mkdir()
    (root / "oxford_pets").symlink_to(own)
    before = snapshot(own)
    assert run("oxford_pets", "--root", root) == 1  # the user's archive is not the expected one
    assert "MD5" in capsys.readouterr().err and snapshot(own) == before
    archive = tar_bytes({"annotations/list.txt": b"2", "images/cat.jpg": b"not asked for"})
    served = net(urls("OxfordPets")[0], archive)
    (own / "annotations.tar.gz").write_bytes(archive)
    assert run("oxford_pets", "--root", root) == 0
    assert served.sent == [] and "annotations.tar.gz is kept" in capsys.readouterr().out
    assert files_in(own) == {
        "annotations/list.txt": b"2",
        "images/cat.jpg": b"mine",
        "annotations.tar.gz": archive,
        "split_zhou_OxfordPets.json": b"my split",
    }
    assert (root / "oxford_pets").is_symlink()


def test_links_to_nothing(drive, tmp_path, capsys):
    (tmp_path / "eurosat").symlink_to(tmp_path / "gone")
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd" / "images").symlink_to(tmp_path / "gone")
    assert run("dtd", "eurosat", "--root", tmp_path) == 1
    assert capsys.readouterr().err.count(f"is a link to {tmp_path / 'gone'}, which is not there") >= 2
    assert not (tmp_path / "gone").exists()


def test_another_archive_than_expected(net, drive, tmp_path, capsys):
    net(*urls("EuroSAT"), zip_bytes(random_tree("other/x.jpg")))
    (tmp_path / "eurosat" / prepare.SCRATCH / "2750").mkdir(parents=True)  # left behind by a run that was killed
    assert run("eurosat", "--root", tmp_path) == 1
    error = capsys.readouterr().err
    assert "holds no 2750" in error and f"EuroSAT lacks {tmp_path / 'eurosat' / '2750'}" in error
    assert not (tmp_path / "eurosat" / "2750").exists() and not (tmp_path / "eurosat" / prepare.SCRATCH).exists()


def test_a_damaged_archive_is_fetched_anew(net, drive, tmp_path, capsys):
    tree = random_tree("2750/River/River_1.jpg")
    url = urls("EuroSAT")[0]
    net(url, zip_bytes(tree)[:-30])
    assert run("eurosat", "--root", tmp_path) == 1
    assert "damaged or cut off" in capsys.readouterr().err and os.listdir(tmp_path / "eurosat") == []
    net(url, zip_bytes(tree))
    assert run("eurosat", "--root", tmp_path) == 0 and files_in(tmp_path / "eurosat") == tree
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd" / "dtd-r1.0.1.tar.gz").write_bytes(b"mine")
    net(urls("DescribableTextures")[0], b"mine")
    assert run("dtd", "--root", tmp_path) == 1 and files_in(tmp_path / "dtd") == {"dtd-r1.0.1.tar.gz": b"mine"}


def test_two_at_once(drive, tmp_path, capsys):
    (tmp_path / "eurosat").mkdir()
    with locked(tmp_path / "eurosat", ""):
        assert run("eurosat", "--root", tmp_path) == 1
    assert "another prepare is at work" in capsys.readouterr().err and os.listdir(tmp_path / "eurosat") == []


# ------------------------------------------------------------------ command line and table


def test_a_typo_starts_nothing(tmp_path, capsys):
    assert run("caltech101", "nope", "--root", tmp_path) == 1
    assert 'no data set "nope"' in capsys.readouterr().err and os.listdir(tmp_path) == []
    assert run("caltech101", "shapes", "--root", tmp_path) == 1
    assert "Shapes is embedded" in capsys.readouterr().err and os.listdir(tmp_path) == []
    with pytest.raises(SystemExit):
        run()


def test_list_and_dry_run(tmp_path, capsys, monkeypatch):
    for name in ("download_url", "download_gdrive"):
        monkeypatch.setattr(prepare, name, None)
    assert run("--list") == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed[2:]] == [b.name for b in downloads(["all"])]
    assert any("ImageNet " in line and "account" in line for line in listed)
    (tmp_path / "eurosat" / "2750" / "River").mkdir(parents=True)
    assert run("all", "--dry-run", "--root", tmp_path) == 0
    planned = capsys.readouterr().out
    assert os.listdir(tmp_path) == ["eurosat"] and "there already: 2750" in planned
    assert all(url in planned for b in downloads(["all"]) for url in urls(b.name) if b.name != "EuroSAT")
