"""Accuracy, distances and evaluators against NumPy and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score

from dassl.config import get_cfg_default
from dassl.evaluation import EVALUATOR_REGISTRY, Classification, EvaluatorBase, build_evaluator
from dassl.metrics import compute_accuracy, compute_distance_matrix, cosine_distance, euclidean_squared_distance

# ---------------------------------------------------------------- metrics


def test_compute_accuracy():
    rng = np.random.default_rng()
    scores, labels = rng.normal(size=(37, 9)), rng.integers(0, 9, 37)
    order = np.argsort(-scores, axis=1)
    got = compute_accuracy((torch.from_numpy(scores), None), torch.from_numpy(labels), topk=(1, 3, 9))
    for k, acc in zip((1, 3, 9), got, strict=True):
        expected = 100 * np.mean([label in row[:k] for label, row in zip(labels, order, strict=True)])
        assert acc.shape == (1,) and acc.dtype == torch.float32
        assert acc.item() == pytest.approx(expected, rel=1e-5)


def test_distances_by_hand():
    a, b = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [-4.0, 3.0]])
    assert euclidean_squared_distance(a, b).tolist() == [[16, 50], [13, 17]]
    torch.testing.assert_close(cosine_distance(a, b), torch.tensor([[0.4, 1.0], [1.0, 0.4]]))


def test_distances():
    rng = np.random.default_rng()
    a, b = rng.normal(size=(6, 5)), rng.normal(size=(4, 5))
    euclidean = ((a[:, None] - b[None]) ** 2).sum(-1)
    cosine = 1 - (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    np.testing.assert_allclose(compute_distance_matrix(x, y).numpy(), euclidean, rtol=1e-10)
    np.testing.assert_allclose(compute_distance_matrix(x, y, "cosine").numpy(), cosine, rtol=1e-9, atol=1e-12)
    assert compute_distance_matrix(1e3 * x.float(), 1e3 * x.float()).min() >= 0
    with pytest.raises(ValueError, match="choose euclidean or cosine"):
        compute_distance_matrix(x, y, "manhattan")
    with pytest.raises(ValueError, match="shapes"):
        compute_distance_matrix(x, y[:, :3])


# ---------------------------------------------------------------- evaluation


def eval_cfg(tmp_path, **keys):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    for key, value in keys.items():
        setattr(cfg.TEST, key, value)
    return cfg


def test_classification_by_hand(tmp_path, capsys):
    cfg = eval_cfg(tmp_path, PER_CLASS_RESULT=True, COMPUTE_CMAT=True)
    evaluator = build_evaluator(cfg, lab2cname={0: "cat", 1: "dog", 2: "emu", 3: "fox"})
    assert type(evaluator) is Classification
    evaluator.process(torch.eye(4)[[3]], torch.tensor([0]))
    evaluator.reset()  # forgets that batch
    true = torch.tensor([0, 0, 0, 0, 2, 2, 3])
    pred = torch.tensor([0, 0, 0, 2, 2, 1, 3])
    evaluator.process(torch.eye(4)[pred[:3]], true[:3])
    evaluator.process(torch.eye(4)[pred[3:]], true[3:])
    results = evaluator.evaluate()
    # F1: cat 2*3/(4+3) = 6/7, emu 2*1/(2+2) = 1/2, fox 1; dog has no sample
    expected = {"accuracy": 500 / 7, "error_rate": 200 / 7, "macro_f1": 100 * (6 / 7 + 0.5 + 1) / 3}
    sure = math.e / (math.e + 3)  # of every image, the softmax of a row of the unit matrix
    expected |= {"ece": 100 * abs(5 / 7 - sure), "perclass_accuracy": 75.0}
    assert list(results) == list(expected) and all(type(v) is float for v in results.values())
    assert results == pytest.approx(expected, rel=1e-6)
    assert capsys.readouterr().out == (
        "Loading evaluator: Classification\n"
        "=> result\n* total: 7\n* correct: 5\n* accuracy: 71.4%\n* error: 28.6%\n* macro_f1: 78.6%\n* ece: 23.9%\n"
        "=> per-class result\n"
        "* class: 0 (cat)\ttotal: 4\tcorrect: 3\tacc: 75.0%\n"
        "* class: 2 (emu)\ttotal: 2\tcorrect: 1\tacc: 50.0%\n"
        "* class: 3 (fox)\ttotal: 1\tcorrect: 1\tacc: 100.0%\n"
        "* average: 75.0%\n"
        f'Confusion matrix is saved to "{tmp_path}/cmat.pt"\n'
    )
    cmat = torch.load(tmp_path / "cmat.pt", weights_only=True)
    hand = [[0.75, 0, 0.25, 0], [0, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]]
    assert torch.equal(cmat["matrix"], torch.tensor(hand, dtype=torch.float64))
    assert cmat["classnames"] == ["cat", "dog", "emu", "fox"]


def test_classification_against_scikit_learn(tmp_path, capsys):
    rng = np.random.default_rng()
    # Labels 5...29: not all of them occur, and some are predicted that never occur
    true, scores = rng.integers(5, 25, 3000), rng.normal(size=(3000, 30))
    scores[np.arange(3000), true] += 2
    pred = scores.argmax(1)
    evaluator = build_evaluator(eval_cfg(tmp_path, COMPUTE_CMAT=True))
    for i in range(0, 3000, 128):
        evaluator.process(torch.from_numpy(scores[i : i + 128]), torch.from_numpy(true[i : i + 128]))
    results = evaluator.evaluate()
    f1 = 100 * f1_score(true, pred, average="macro", labels=np.unique(true))
    assert results["macro_f1"] == pytest.approx(f1, rel=1e-10)
    assert results["accuracy"] == pytest.approx(100 * np.mean(true == pred), rel=1e-12)
    cmat = torch.load(tmp_path / "cmat.pt", weights_only=True)
    wanted = confusion_matrix(true, pred, normalize="true", labels=range(30))  # also of those that do not occur
    np.testing.assert_allclose(cmat["matrix"].numpy(), wanted, rtol=1e-12)
    assert cmat["classnames"] == [str(label) for label in range(30)]
    assert "* total: 3,000\n" in capsys.readouterr().out
    assert np.array_equal(evaluator.y_true, true) and np.array_equal(evaluator.y_pred, pred)


def test_an_evaluator_of_somebody_else(tmp_path, monkeypatch):
    class Hits(EvaluatorBase):
        def __init__(self, cfg, lab2cname=None, **kwargs):
            super().__init__(cfg)
            self.lab2cname, self.kwargs, self.hits = lab2cname, kwargs, 0

        def process(self, mo, gt):
            self.hits += (mo.argmax(1) == gt).sum().item()

    monkeypatch.setitem(EVALUATOR_REGISTRY._obj_map, "Hits", Hits)
    cfg = eval_cfg(tmp_path, EVALUATOR="Hits")
    evaluator = build_evaluator(cfg, lab2cname={0: "cat"}, extra=3)
    assert type(evaluator) is Hits and evaluator.cfg is cfg
    assert evaluator.lab2cname == {0: "cat"} and evaluator.kwargs == {"extra": 3}
    evaluator.process(torch.eye(3), torch.tensor([0, 1, 0]))
    assert evaluator.hits == 2
    for unwritten in (evaluator.reset, evaluator.evaluate):
        with pytest.raises(NotImplementedError):
            unwritten()


def test_evaluator_errors(tmp_path):
    assert EVALUATOR_REGISTRY.registered_names() == ["Classification"]
    with pytest.raises(ValueError, match='"Clasification".*"Classification"'):
        build_evaluator(eval_cfg(tmp_path, EVALUATOR="Clasification"))
    with pytest.raises(ValueError, match="lab2cname"):
        build_evaluator(eval_cfg(tmp_path, PER_CLASS_RESULT=True))
    with pytest.raises(ValueError, match="no batch"):
        build_evaluator(eval_cfg(tmp_path)).evaluate()
