"""Evaluations that adapt to the test images: they resume, and are shared by processes, to the same bits."""

import json
import os
import random
from contextlib import contextmanager

import pytest
import torch

from dassl.engine import TRAINER_REGISTRY, TrainerBase, build_trainer
from dassl.engine.evaluation_state import FILE, EvaluationState
from dassl.evaluation import Classification
from dassl.evaluation.evaluator import BATCHES
from dassl.infrastructure import distributed
from dassl.utils import set_random_seed
from orthcr.run.runner import main
from scripts.robustness import kills
from tests.processes import in_processes

SMALL = ["DATASET.SUBSAMPLE_CLASSES", "base", "DATALOADER.TEST.BATCH_SIZE", 7]
SMALL = {"TPT": [*SMALL, "TRAINER.TPT.VIEWS", 3, "TRAINER.TPT.SELECTION_P", 0.5], "TDA": SMALL}


@pytest.fixture
def every_batch(monkeypatch):
    """The state is written after each batch."""
    monkeypatch.setattr(TrainerBase, "resume_interval", 0.0)


@contextmanager
def stopped(trainer, batch):
    """Ctrl-C in that batch of the evaluation, counted from 0."""
    cls, count = TRAINER_REGISTRY.get(trainer), []
    infer = cls.model_inference

    def model_inference(self, image):
        count.append(image)
        if len(count) > batch:
            raise KeyboardInterrupt
        return infer(self, image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "model_inference", model_inference)
        yield


def scores(trainer):
    """Everything that the evaluator has of the images, and the figures."""
    return {**trainer.evaluator.state_dict(), **trainer.results}


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


@pytest.mark.parametrize("name, workers", [("TPT", 0), ("TPT", 2), ("TDA", 0)])
def test_a_stopped_evaluation_ends_with_the_same_bits(name, workers, make_trainer, every_batch, tmp_path, capsys):
    whole = make_trainer(*SMALL[name], trainer=name, out="whole")
    whole.test()
    batches, path = len(whole.test_loader), tmp_path / "parts" / FILE
    first, second = sorted(random.sample(range(1, batches), 2))
    for stop in (first, second - first):
        with stopped(name, stop), pytest.raises(KeyboardInterrupt):
            make_trainer(*SMALL[name], trainer=name, out="parts").test()
        assert path.exists()
    capsys.readouterr()
    parts = make_trainer(*SMALL[name], "DATALOADER.NUM_WORKERS", workers, trainer=name, out="parts")
    parts.test()
    assert f"{7 * second:,} images are done" in capsys.readouterr().out, (first, second)
    assert same(scores(parts), scores(whole))
    assert not path.exists() and not (tmp_path / "whole" / FILE).exists()
    if name == "TDA":
        caches = zip(parts.model.caches().values(), whole.model.caches().values(), strict=True)
        assert all(same(dict(a.named_buffers()), dict(b.named_buffers())) for a, b in caches)


def test_without_a_seed_the_views_are_those_before_the_stop(make_trainer, every_batch):
    trainer = make_trainer(*SMALL["TPT"], "SEED", -1, trainer="TPT")
    torch.manual_seed(random.randrange(2**40))
    start = torch.get_rng_state()
    trainer.test()
    whole = scores(trainer)
    torch.set_rng_state(start)
    with stopped("TPT", 2), pytest.raises(KeyboardInterrupt):
        trainer.test()
    again = make_trainer(*SMALL["TPT"], "SEED", -1, trainer="TPT")  # with other random numbers
    again.test()
    assert same(scores(again), whole)


def cut(path):
    os.truncate(path, random.randrange(path.stat().st_size - 80))  # the checksum at the end may be cut, but not alone


def flip(path):
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content) // 2)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_state_is_not_used(damage, make_trainer, every_batch, tmp_path, capsys):
    whole = make_trainer(*SMALL["TDA"], trainer="TDA", out="whole")
    whole.test()
    with stopped("TDA", 3), pytest.raises(KeyboardInterrupt):
        make_trainer(*SMALL["TDA"], trainer="TDA").test()
    path = tmp_path / "out" / FILE
    damage(path)
    again = make_trainer(*SMALL["TDA"], trainer="TDA")
    again.test()
    assert (
        f"{path} is damaged or cannot be read: this evaluation starts from the first image" in capsys.readouterr().out
    )
    assert same(scores(again), scores(whole)) and not path.exists()


# ------------------------------------------------------------------ only the same evaluation


def identity(trainer, split="test"):
    trainer.set_model_mode("eval")
    return EvaluationState(trainer, trainer.test_loader if split == "test" else trainer.val_loader).identity


def test_the_identity_of_an_evaluation(make_trainer):
    name, base = "TDA", SMALL["TDA"]
    trainer = make_trainer(*base, trainer=name)
    first = identity(trainer)
    assert identity(make_trainer(*base, "DATALOADER.NUM_WORKERS", 1, "VERBOSE", False, trainer=name, out="b")) == first
    others = [identity(trainer, "val")]
    for opts in (
        ["SEED", 2],
        ["TRAINER.TDA.SHUFFLE", False],
        ["DATALOADER.TEST.BATCH_SIZE", 6],
        ["TEST.CALIBRATE", True],
    ):
        others.append(identity(make_trainer(*base, *opts, trainer=name)))
    trainer.evaluator.temperature = 2.0
    others.append(identity(trainer))
    trainer.evaluator.temperature, trainer.evaluator.keep_scores = None, True
    others.append(identity(trainer))
    trainer.evaluator.keep_scores = False
    items = trainer.test_loader.dataset.data_source
    items[0], items[1] = items[1], items[0]
    others.append(identity(trainer))
    items[0], items[1] = items[1], items[0]
    with torch.no_grad():
        trainer.model.image_encoder.proj[0, 0] += 1e-3
    others.append(identity(trainer))
    assert len({first, *others}) == 1 + len(others)


def test_an_image_that_was_replaced_changes_the_identity(make_trainer, tmp_path):
    trainer = make_trainer(*SMALL["TDA"], trainer="TDA")
    item, first = trainer.test_loader.dataset.data_source[3], identity(trainer)
    path = tmp_path / "other.png"
    path.write_bytes(b"other")
    trainer.test_loader.dataset.data_source[3] = type(item)(str(path), item.label, item.domain, item.classname)
    second = identity(trainer)
    path.write_bytes(b"others")
    assert len({first, second, identity(trainer)}) == 3


def test_an_evaluation_of_another_seed_does_not_take_the_state(make_trainer, every_batch, tmp_path, capsys):
    whole = make_trainer(*SMALL["TDA"], "SEED", 2, trainer="TDA", out="whole")
    whole.test()
    with stopped("TDA", 3), pytest.raises(KeyboardInterrupt):
        make_trainer(*SMALL["TDA"], "SEED", 1, trainer="TDA").test()
    other = make_trainer(*SMALL["TDA"], "SEED", 2, trainer="TDA")
    other.test()
    said = "is of an evaluation with other settings, weights or images: this evaluation starts from the first image"
    assert f"{tmp_path / 'out' / FILE} {said}" in capsys.readouterr().out
    assert same(scores(other), scores(whole))


def test_a_state_whose_content_does_not_fit(make_trainer, every_batch, one_line):
    trainer = make_trainer(*SMALL["TDA"], trainer="TDA")
    with stopped("TDA", 3), pytest.raises(KeyboardInterrupt):
        trainer.test()
    trainer.get_adaptation_state = dict
    EvaluationState(trainer, trainer.test_loader).save(21)
    with pytest.raises(ValueError, match="cannot go on from .* \\(KeyError: 'positive'\\): remove that file") as error:
        trainer.test()
    one_line(error)


def test_no_state_of_a_short_evaluation_and_none_of_other_methods(make_trainer, monkeypatch):
    monkeypatch.setattr(EvaluationState, "save", lambda *_: pytest.fail("saved"))
    make_trainer(*SMALL["TDA"], trainer="TDA").test()
    monkeypatch.setattr(TrainerBase, "resume_interval", 0.0)
    make_trainer(*SMALL["TDA"], trainer="ZeroshotCLIP").test()


# ------------------------------------------------------------------ several processes


def test_processes_take_whole_batches_in_turn(monkeypatch):
    batches = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11], [12]]
    monkeypatch.setattr(distributed, "size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        sampler = distributed._PartsOfBatches(batches, 3, whole_batches=True)
        parts.append((list(sampler), list(sampler.pending)))
    counts = [(3, 3, 3), (1, 0, 0)]
    assert [pending for _, pending in parts] == [
        [distributed.Part(3, counts[0]), distributed.Part(last, counts[1])] for last in (1, 0, 0)
    ]
    assert [rows for rows, _ in parts] == [[[3, 4, 5], [12]], [[6, 7, 8], [12]], [[9, 10, 11], [12]]]


@pytest.mark.parametrize("n", [2, 3])
def test_tpt_in_several_processes_has_the_bits_of_one(n, make_cfg, tmp_path, every_batch):
    def evaluate(out):
        cfg = make_cfg(*SMALL["TPT"], trainer="TPT", out=out)
        set_random_seed(1)
        trainer = build_trainer(cfg)
        trainer.test()
        torch.save(scores(trainer), tmp_path / f"{out}-{n}-{distributed.rank()}.pt")

    def work():
        with distributed.processes():
            evaluate("many")
            evaluate("resumed")

    evaluate("one")
    with stopped("TPT", 2), pytest.raises(KeyboardInterrupt):
        evaluate("resumed")
    assert in_processes(work, tmp_path / "log", n) == [0] * n, (tmp_path / "log.0").read_text()
    assert "14 images are done" in (tmp_path / "log.0").read_text()
    one = torch.load(tmp_path / f"one-{n}-0.pt")
    for out in ("many", "resumed"):
        for rank in range(n):
            assert same(torch.load(tmp_path / f"{out}-{n}-{rank}.pt"), one), (out, rank)
        assert not (tmp_path / out / FILE).exists()


# ------------------------------------------------------------------ commands


def test_the_same_command_goes_on(pictures, tmp_path, every_batch, capsys):
    def run(out, *words):
        flags = ["--root", pictures, "--output-dir", tmp_path / out, "--trainer", "TDA", *words, "VERBOSE", False]
        return main([str(word) for word in [*flags, *SMALL["TDA"]]])

    assert run("whole", "--eval-only") == 0
    with stopped("TDA", 2):
        assert run("parts", "--eval-only") == 130
    assert "give the same command again to resume" in capsys.readouterr().err
    assert run("parts", "--eval-only") == 0
    assert "14 images are done" in capsys.readouterr().out
    results = [json.loads((tmp_path / out / "results.json").read_text()) for out in ("whole", "parts")]
    for result in results:
        for key in kills.NOT_COMPARED:
            result.pop(key)
        del result["config"]["OUTPUT_DIR"]
    assert results[0] == results[1]
    assert not (tmp_path / "parts" / FILE).exists()


def test_the_evaluator_goes_on_with_its_scores(noise, bare_cfg):
    cfg = bare_cfg("TEST.COMPUTE_CMAT", False)
    batches = [(noise(4, 3, seed=k), torch.tensor([0, 1, 2, k % 3])) for k in range(3)]
    whole, first, second = (Classification(cfg) for _ in range(3))
    for evaluator in (whole, first, second):
        evaluator.keep_scores = True
    for batch in batches:
        whole.process(*batch)
    for batch in batches[:2]:
        first.process(*batch)
    second.process(*batches[1])
    second.load_state_dict(first.state_dict())
    second.process(*batches[2])
    assert set(first.state_dict()) == {*BATCHES, "_n_classes"} and same(second.state_dict(), whole.state_dict())
    assert second.evaluate() == whole.evaluate() and torch.equal(second.scores, whole.scores)
