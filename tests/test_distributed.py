"""Several processes make the run that one makes."""

import json

import pytest
import torch

from dassl import distributed
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed
from experiments.run import main
from tests.processes import in_processes
from tests.test_trainers import METHODS

# 20 classes of 1 shot: two steps of 19 images, or, where the last batch is kept, four of 19 and 1; the last test batch, too,
# is of one image. SGD: it passes on what gradients differ by, where Adam divides it by nearly nothing
SMALL = ["DATASET.SUBSAMPLE_CLASSES", "base", "DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 2, "OPTIM.NAME", "sgd"]
SMALL += ["OPTIM.LR", 0.02, "DATALOADER.TRAIN_X.BATCH_SIZE", 19, "DATALOADER.TEST.BATCH_SIZE", 79]
SMALL += ["TEST.PER_CLASS_RESULT", True]
SAME_DRAWS = {"CLIPLoRA": ["TRAINER.CLIPLORA.DROPOUT", 0.0], "OrthSR": ["TRAINER.ORTHSR.ATTENTIVE", False]}


def test_every_trainer_learns_the_same_in_two_processes(make_cfg, tmp_path):
    """Weights, and all that an evaluation tells; batches of 7 and, at the end of an epoch and of the test, of 1."""

    def train_all(out):
        for name in METHODS:
            cfg = make_cfg(*SMALL, *SAME_DRAWS.get(name, []), trainer=name, out=f"{out}/{name}")
            set_random_seed(1)
            trainer = build_trainer(cfg)
            torch.save(state_of(trainer), tmp_path / f"start-{name}-0.pt")
            trainer.train()
            told = {"results": trainer.results, "pred": trainer.evaluator.y_pred, "true": trainer.evaluator.y_true}
            torch.save(told | state_of(trainer), tmp_path / f"{out}-{name}-{distributed.rank()}.pt")

    def work():
        with distributed.processes():
            train_all("two")

    train_all("one")
    assert in_processes(work, tmp_path / "log") == [0, 0], (tmp_path / "log.1").read_text()
    for name in METHODS:
        files = (("start", 0), ("one", 0), ("two", 0), ("two", 1))
        start, one, *two = (torch.load(tmp_path / f"{run}-{name}-{rank}.pt") for run, rank in files)
        moved = any((weight - start["weights"][key]).abs().max() > 1e-3 for key, weight in one["weights"].items())
        assert moved or not TRAINER_REGISTRY.get(name).learner, name
        for each in two:
            torch.testing.assert_close(
                each["weights"], one["weights"], atol=1e-5, rtol=1e-5, msg=f"{name}: {{}}".format
            )
            assert each["results"] == one["results"], name
            assert each["pred"].equal(one["pred"]) and each["true"].equal(one["true"]), name


def state_of(trainer):
    return {"weights": {key: t.clone() for m in trainer._models.values() for key, t in m.state_dict().items()}}
