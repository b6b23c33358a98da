"""Few-shot splits of others: read, held against the data set, recorded; and the order of draws of CLIP-LoRA."""

import json
import random
from collections import defaultdict

import pytest

from dassl.data.datasets import Datum, build_dataset
from dassl.infrastructure.files import file_hash
from dassl.utils import read_json
from datasets.imagenet import ImageNet
from orthcr.compare.command_line import parse_arguments
from orthcr.run.checks import check_same_run
from orthcr.run.config import setup_cfg
from orthcr.run.flags import parse
from orthcr.run.runner import main
from tests.test_datasets import cfg_of, made_up, rows, write_split


def lines_of(chosen, folder="oxford_pets/images"):
    entries = [{"_impath": f"{folder}/{path}", "_label": k, "_domain": -1, "_classname": c} for path, k, c in chosen]
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def draw(rng, split_rows, n):
    by_class = defaultdict(list)
    for row in split_rows:
        by_class[row[1]].append(row)
    return [row for of_class in by_class.values() for row in rng.sample(of_class, min(n, len(of_class)))]


@pytest.fixture
def pets(tmp_path):
    """(data root, folder, split, file of 2 training images a class); every class name has an underscore."""
    split, rng = made_up(seed=random.randrange(10**6)), random.Random()
    folder, file = write_split(tmp_path, split), tmp_path / "shot_2-seed_1_train.jsonl"
    file.write_text(lines_of(draw(rng, split["train"], 2)))
    return tmp_path, folder, split, file


def built(root, *words, dataset="OxfordPets", shots=2, classes="all"):
    argv = ["--root", str(root), "--trainer", "CoOp", *map(str, words), "DATASET.NAME", dataset, "VERBOSE", "False"]
    argv += ["USE_CUDA", "False", "DATASET.NUM_SHOTS", str(shots), "DATASET.SUBSAMPLE_CLASSES", classes]
    return build_dataset(setup_cfg(parse(argv)))


@pytest.mark.parametrize("prefix", ["oxford_pets/images", "OxfordPets/images", "ROOT/oxford_pets/images", ""])
def test_the_file_replaces_the_draw(pets, prefix):
    root, folder, split, file = pets
    chosen, val = draw(random.Random(), split["train"], 2), draw(random.Random(), split["val"], 1)
    prefix = prefix.replace("ROOT", str(root))
    written = [(row[0], row[1], row[2].replace("_", " ").upper()) for row in chosen]
    file.write_text(lines_of(written, prefix).replace('": "/', '": "') if not prefix else lines_of(written, prefix))
    drawn = built(root)
    data = built(root, "--few-shot-split", file)
    image_dir = folder / "images"
    assert rows(data.train_x, image_dir) == chosen and rows(data.test, image_dir) == split["test"]
    assert data.val == drawn.val  # there is no file for it
    (file.parent / "shot_2-seed_1_val.jsonl").write_text(lines_of(val))
    data = built(root, "--few-shot-split", file)
    assert rows(data.train_x, image_dir) == chosen and rows(data.val, image_dir) == val
    new = built(root, "--few-shot-split", file, classes="new")  # subsampled after reading, as the drawn ones
    wanted = [[path, k - 4, name] for path, k, name in chosen if k >= 4]
    assert rows(new.train_x, image_dir) == wanted and new.classnames == drawn.classnames[4:]


def test_an_image_may_stand_there_twice_and_val_may_be_trained_on(pets, capsys):
    root, folder, split, file = pets
    chosen = draw(random.Random(), split["train"], 1)
    label = split["val"][0][1]
    chosen = [row for row in chosen if row[1] != label] + [split["val"][0]] * 2
    chosen += [row for row in chosen if row[1] != label]
    file.write_text(lines_of(chosen))
    data = built(root, "--few-shot-split", file)
    assert rows(data.train_x, folder / "images") == chosen
    assert split["val"][0] not in rows(data.val, folder / "images")
    assert "have fewer training images" in capsys.readouterr().out


def replaced(**changes):
    return lambda entry: entry | {f"_{key}": value for key, value in changes.items()}


WRONG = {
    "nothing": (lambda lines, split: [], "has no image"),
    "no JSON": (lambda lines, split: [*lines, "PK\x03\x04"], "is no JSON"),
    "deep": (lambda lines, split: ["[" * 10**5], "is no JSON"),
    "a list": (lambda lines, split: ["[1, 2]"], "should read"),
    "a number as label": (lambda lines, split: changed(lines, label="0"), "should read"),
    "a truth value as label": (lambda lines, split: changed(lines, label=True), "should read"),
    "a missing key": (lambda lines, split: [lines[0].replace("_classname", "name")], "should read"),
    "an image that is not there": (lambda lines, split: changed(lines, impath="a/b.jpg"), "1 of .* first a/b.jpg"),
    "an image elsewhere": (lambda lines, split: changed(lines, impath="/etc/passwd"), "not in the data set"),
    "another label": (lambda lines, split: changed(lines, label=10**20), "has label 1000"),
    "another class": (lambda lines, split: changed(lines, classname="dog"), 'class "dog" for label'),
    "a test image": (lambda lines, split: [lines_of([split["test"][0]])], "is a test image"),
    "a missing class": (lambda lines, split: [line for line in lines if '"_label": 3,' not in line], 'first "class_3"'),
    "another number of shots": (lambda lines, split: lines + lines[:1], "has 3 images of a class"),
}


def changed(lines, **changes):
    return [json.dumps(replaced(**changes)(json.loads(lines[0]))), *lines[1:]]


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_belong_to_the_data_set_is_an_error(pets, kind, one_line):
    root, _, split, file = pets
    change, message = WRONG[kind]
    file.write_text("\n".join(change(file.read_text().splitlines(), split)))
    with pytest.raises(ValueError, match=message) as caught:
        built(root, "--few-shot-split", file)
    assert str(file) in one_line(caught) and len(one_line(caught)) < 400


def test_flags_that_do_not_go_together(pets, one_line, capsys):
    root, _, _, file = pets
    (root / "photos").mkdir()
    cases = {
        "is empty": ["--few-shot-split", ""],
        "both choose the training images": ["--few-shot-split", file, "--images", root / "photos"],
        "there is no few-shot split": ["--few-shot-split", root / "gone.jsonl"],
        "ImageNetV2 takes no": ["--few-shot-split", file, "DATASET.NAME", "ImageNetV2"],
        "val_first has no effect with --few": ["--few-shot-split", file, "DATASET.SAMPLING", "val_first"],
        "val_first has no effect without few shots": ["DATASET.SAMPLING", "val_first", "DATASET.NUM_SHOTS", "-1"],
        "SPLIT_SHA256 has no effect": ["DATASET.SPLIT_SHA256", "['a']"],
        "does not have the checksum": ["DATASET.FEW_SHOT_SPLIT", file, "DATASET.SPLIT_SHA256", "['a']"],
    }
    for message, words in cases.items():
        argv = ["--root", str(root), "--trainer", "CoOp", *map(str, words), "USE_CUDA", "False"]
        with pytest.raises((ValueError, OSError), match=message) as caught:
            setup_cfg(parse(argv))
        one_line(caught)
    with pytest.raises(SystemExit):
        parse_arguments(["--trainers", "CoOp", "DATASET.FEW_SHOT_SPLIT", str(file)])
    assert "give --few-shot-split to train.py" in capsys.readouterr().err


def test_the_file_is_recorded_and_another_one_is_a_conflict(tmp_path, pictures, one_line, capsys):
    """A training and evaluations: with the file, with another one, on other data, without the file."""
    split = read_json(pictures / "shapes" / "split.json")
    few, val = (draw(random.Random(), split[part], 1) for part in ("train", "val"))
    file, other = tmp_path / "few_train.jsonl", tmp_path / "other.jsonl"
    file.write_text(lines_of(few, "shapes/images"))
    (tmp_path / "few_val.jsonl").write_text(lines_of(val, "shapes/images"))
    other.write_text(lines_of(few[::-1], "shapes/images"))
    common = ["--root", str(pictures), "--output-dir", str(tmp_path / "OUT"), "--trainer", "CoOp"]
    small = "VERBOSE False USE_CUDA False DATASET.NUM_SHOTS 1 DATASET.SUBSAMPLE_CLASSES base OPTIM.MAX_EPOCH 1".split()
    assert main([*common, "--few-shot-split", str(file), *small, "TEST.SPLIT", "val"]) == 0
    results = read_json(tmp_path / "OUT" / "results.json")
    assert results["config"]["DATASET.FEW_SHOT_SPLIT"] == str(file) and "* total: 20\n" in capsys.readouterr().out
    checksums = [file_hash(file), file_hash(tmp_path / "few_val.jsonl")]
    assert results["config"]["DATASET.SPLIT_SHA256"] == checksums and results["shots"] == 1

    for words in ([], ["--few-shot-split", str(other)]):
        with pytest.raises(ValueError, match="OUT holds a run with DATASET.SPLIT_SHA256") as caught:
            check_same_run(setup_cfg(parse([*common, *words, *small, "TEST.SPLIT", "val"])))
        one_line(caught)
    for path in (file, tmp_path / "few_val.jsonl"):  # the same files elsewhere are no conflict
        (tmp_path / "moved").mkdir(exist_ok=True)
        path.rename(tmp_path / "moved" / path.name)
    moved = ["--few-shot-split", str(tmp_path / "moved" / file.name)]
    check_same_run(setup_cfg(parse([*common, *moved, *small, "TEST.SPLIT", "val"])))

    evaluate = ["--eval-only", "--model-dir", str(tmp_path / "OUT"), "--output-dir", str(tmp_path / "E")]
    capsys.readouterr()
    assert main(evaluate) == 1
    assert f"there is no few-shot split {file}" in capsys.readouterr().err
    assert main([*evaluate, *moved]) == 0
    assert read_json(tmp_path / "E" / "results.json")["accuracy"] == results["accuracy"]
    config = setup_cfg(parse([*evaluate, "DATASET.NAME", "Digits"])).DATASET  # not of these data
    assert config.FEW_SHOT_SPLIT == "" and config.SPLIT_SHA256 == []


# ------------------------------------------------------------------ CLIP-LoRA's draws


def lora_draws(split, shots, seed):
    """By hand: val before train, classes as they first appear, small classes with replacement."""
    rng, chosen = random.Random(seed), {}
    for part, n in (("val", min(shots, 4)), ("train", shots)):
        labels = list(dict.fromkeys(row[1] for row in split[part]))
        chosen[part] = []
        for label in labels:
            of_class = [row for row in split[part] if row[1] == label]
            chosen[part] += rng.sample(of_class, n) if len(of_class) >= n else rng.choices(of_class, k=n)
    return chosen


@pytest.mark.parametrize("shots", [1, 4, 16])
def test_val_first_draws_as_clip_lora(tmp_path, shots):
    split, seed = made_up(random.randint(2, 9), seed=random.randrange(10**6)), random.randrange(1000)
    folder = write_split(tmp_path, split)
    wanted = lora_draws(split, shots, seed)
    for _ in range(2):  # drawn, and read again
        words = ["--root", str(tmp_path), "--trainer", "CoOp", "--seed", str(seed), "DATASET.NAME", "OxfordPets"]
        words += ["VERBOSE", "False", "DATASET.NUM_SHOTS", str(shots), "DATASET.SAMPLING", "val_first"]
        data = build_dataset(setup_cfg(parse(words)))
        assert rows(data.train_x, folder / "images") == wanted["train"]
        assert rows(data.val, folder / "images") == wanted["val"]
    drawn = build_dataset(cfg_of(tmp_path, shots=shots, seed=seed))  # has a file of its own
    assert rows(drawn.train_x, folder / "images") != wanted["train"]


def test_val_first_draws_both_from_the_training_images_of_imagenet():
    """CLIP-LoRA's code draws the images of a class at once: the first for training, the others for val."""
    train = [Datum(f"{label}/{k}", label) for label in range(5) for k in range(random.randint(6, 9))]
    data, rng = ImageNet.__new__(ImageNet), random.Random(7)
    data.sampling, data.image_dir, wanted = "val_first", "images", ([], [])
    for label in range(5):
        of_class = rng.sample([item for item in train if item.label == label], 4)
        for items, part in zip(wanted, (of_class[:2], of_class[2:]), strict=True):
            items += part
    assert data.sample(train, [], 2, random.Random(7)) == wanted
    with pytest.raises(ValueError, match='has . training images of "", but val_first draws 10'):
        data.sample(train, [], 6, random.Random(7))
