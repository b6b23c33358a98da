"""Trees of results for the tests of reports: our results.json, and log.txt as CoOp's and MaPLe's runs leave it."""

import json
import random

import numpy as np
import pytest

from orthcr.reports.tables import tables
from orthcr.reports.tree import collect

STEMS = {
    "DescribableTextures": "dtd",
    "Caltech101": "caltech101",
    "ImageNet": "imagenet",
    "EuroSAT": "eurosat",
    "ImageNetV2": "imagenetv2",
    "ImageNetSketch": "imagenet_sketch",
    "OxfordPets": "oxford_pets",
}
SEEDS = (1, 2, 3)
NEW = random.Random()  # fresh at every run


def accuracy():
    return NEW.uniform(20, 99)


def ours(
    folder, trainer, on, dataset, classes, acc, eval_only=False, backbone="ViT-B/16", split="test", config=None, **more
):
    """`on`: (data set, classes, shots, seed) of the training; None: zero-shot; `config`: of a config.yaml beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    trained_on = on and dict(zip(("dataset", "classes", "shots", "seed"), on, strict=True))
    results = {
        "trainer": trainer,
        "dataset": dataset,
        "classes": classes,
        "seed": on[3] if on else 1,
        "shots": 16,
        "backbone": backbone,
        "eval_only": eval_only,
        "trained_on": trained_on,
        "split": split,
        "accuracy": acc,
        "trainable_params": 10 if on else 0,
        **more,
    }
    (folder / "results.json").write_text(json.dumps(results))
    if config is not None:
        (folder / "config.yaml").write_text(json.dumps(config))  # which is YAML
    return folder


def train_and_new(root, trainer, dataset, seed, base, new, **kwargs):
    """Our base-to-new runs: the training and, inside its directory, the evaluation on the new classes."""
    on = (dataset, "base", 16, seed)
    folder = ours(root / dataset / trainer / f"seed{seed}", trainer, on, dataset, "base", base, **kwargs)
    ours(folder / "new", trainer, on, dataset, "new", new, eval_only=True, **kwargs)


CONFIG = """\
DATALOADER:
  NUM_WORKERS: 8
  TEST:
    BATCH_SIZE: 100
DATASET:
  NAME: {dataset}
  NUM_SHOTS: {shots}
  ROOT: /data/somewhere
  SOURCE_DOMAINS: ()
  SUBSAMPLE_CLASSES: {classes}
INPUT:
  SIZE: (224, 224)
  TRANSFORMS: ('random_resized_crop', 'random_flip', 'normalize')
MODEL:
  BACKBONE:
    NAME: {backbone}
    PRETRAINED: True
  INIT_WEIGHTS: 
OPTIM:
  MAX_EPOCH: {epochs}
  STEPSIZE: (-1,)
OUTPUT_DIR: {out}
RESUME: 
SEED: {seed}
TEST:
  FINAL_MODEL: last_step
  SPLIT: {split}
TRAINER:
  COOP:
    CSC: {csc}
    CTX_INIT: a photo: of a {{}}
    PREC: fp16
  NAME: {trainer}
USE_CUDA: True
VERBOSE: True
VERSION: 1
"""


def result(correct, total, split="test"):
    acc = 100 * correct / total
    return (
        f"Evaluate on the *{split}* set\n=> result\n* total: {total:,}\n* correct: {correct:,}\n"
        f"* accuracy: {acc:.1f}%\n* error: {100 - acc:.1f}%\n* macro_f1: {acc - 1:.1f}%\n"
    )


def log(
    folder,
    trainer,
    dataset,
    classes,
    seed,
    tail,
    model_dir="",
    eval_only=None,
    shots=16,
    backbone="ViT-B/16",
    epochs=5,
    split="test",
    csc=False,
    cfg="vit_b16_c2_ep5_batch4_2ctx",
    name="log.txt",
):
    """`tail`: what follows the config, or (correct, total) of the usual end."""
    folder.mkdir(parents=True, exist_ok=True)
    eval_only = bool(model_dir) if eval_only is None else eval_only
    args = {
        "backbone": "",
        "config_file": f"configs/trainers/{trainer}/{cfg}.yaml",
        "dataset_config_file": f"configs/datasets/{STEMS[dataset]}.yaml",
        "eval_only": eval_only,
        "head": "",
        "load_epoch": epochs if eval_only else None,
        "model_dir": model_dir,
        "no_train": False,
        "opts": ["DATASET.NUM_SHOTS", str(shots), "DATASET.SUBSAMPLE_CLASSES", classes],
        "output_dir": "output/x",
        "resume": "",
        "root": "/data",
        "seed": seed,
        "trainer": trainer,
    }
    config = CONFIG.format(
        dataset=dataset,
        shots=shots,
        classes=classes,
        backbone=backbone,
        epochs=epochs,
        out="output/x",
        seed=seed,
        split=split,
        csc=csc,
        trainer=trainer,
    )
    if isinstance(tail, tuple):
        trained = "epoch [5/5] batch [5/5] time 0.1 (0.1) loss 0.1 (0.1) acc 99.0 (99.0)\nFinish training\n"
        tail = result(*tail) if eval_only else f"{trained}Deploy the last-epoch model\n{result(*tail)}Elapsed: 0:01\n"
    head = "***************\n** Arguments **\n***************\n" + "".join(f"{k}: {v}\n" for k, v in args.items())
    head += f"************\n** Config **\n************\n{config}\n"
    (folder / name).write_text(f"{head}Collecting env info ...\n** System info **\nPyTorch version: 1.9.0\n\n{tail}")
    return folder


def base_log(root, trainer, dataset, seed, tail, cfg="cfg", part="train_base", **kwargs):
    """Where CoCoOp's and MaPLe's scripts put it."""
    folder = root / "base2new" / part / STEMS[dataset] / "shots_16" / trainer / cfg / f"seed{seed}"
    return log(folder, trainer, dataset, part.partition("_")[2], seed, tail, cfg=cfg, **kwargs)


def new_log(root, trainer, dataset, seed, tail, cfg="cfg", trained="train_base", **kwargs):
    common = f"{STEMS[dataset]}/shots_16/{trainer}/{cfg}/seed{seed}"
    return log(
        root / "base2new" / "test_new" / common,
        trainer,
        dataset,
        "new",
        seed,
        tail,
        cfg=cfg,
        model_dir=f"output/base2new/{trained}/{common}",
        **kwargs,
    )


def made(*paths, seeds=None):
    runs, left_out = collect(paths)
    return tables(runs, seeds), left_out


def only(*paths, **kwargs):
    """The one table of a tree, of which nothing is left out."""
    (table,), left_out = made(*paths, **kwargs)
    assert not left_out
    return table


def figure(table, **wanted):
    """The cell with these attributes."""
    (cell,) = [c for c in table.cells if all(getattr(c, key) == value for key, value in wanted.items())]
    return cell


def mean_std(cell):
    return cell.mean, cell.std


def expected(values):
    return pytest.approx((np.mean(values), np.std(values)))


def write_transfer(root):
    """A model of ImageNet on two other data sets and two variants, and zero-shot on all of them."""
    acc = {}
    for seed in SEEDS:
        on = ("ImageNet", "all", 16, seed)
        acc["ImageNet", seed] = accuracy()
        model = ours(root / "xd" / f"seed{seed}", "MaPLe", on, "ImageNet", "all", acc["ImageNet", seed])
        for target in ("OxfordPets", "EuroSAT", "ImageNetV2", "ImageNetSketch"):
            acc[target, seed] = accuracy()
            ours(model / "eval" / target, "MaPLe", on, target, "all", acc[target, seed], eval_only=True)
    for name in ("ImageNet", "OxfordPets", "EuroSAT", "ImageNetV2", "ImageNetSketch"):
        ours(root / "zs" / name, "ZeroshotCLIP", None, name, "all", 40.0)
    return acc


def shown(*paths):
    return [table.text() for table in made(*paths)[0]]
