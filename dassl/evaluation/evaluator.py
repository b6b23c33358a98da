"""Evaluation of a classifier: accuracy, macro-F1, calibration, per-class accuracy, confusion matrix."""

import os.path as osp
from collections import OrderedDict

import torch

from dassl.infrastructure.distributed import is_first
from dassl.metrics import confidence, expected_calibration_error
from dassl.utils import atomic_write

from .build import EVALUATOR_REGISTRY

BATCHES = ("_y_true", "_y_pred", "_finite", "_sure", "_scores")  # lists of `Classification`, an entry for each batch


class EvaluatorBase:
    """The interface of an evaluator: reset(), then process() for every batch, then evaluate().

    The evaluation of a method that adapts to the test images can be resumed if its evaluator also has `state_dict()`
    and `load_state_dict(state)`, for the batches since the last reset().
    """

    def __init__(self, cfg):
        self.cfg = cfg

    def reset(self):
        raise NotImplementedError

    def process(self, mo, gt):
        raise NotImplementedError

    def evaluate(self):
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Single-label classification.

    Args:
        cfg (CfgNode): config; TEST.PER_CLASS_RESULT and TEST.COMPUTE_CMAT add results to the averages.
        lab2cname (dict): label (int) to class name (str), needed for per-class results.

    Attributes:
        temperature (float): T of the probabilities softmax(scores / T); None: T is 1, and not part of the results.
        keep_scores (bool): whether `evaluate` sets `scores` [samples, classes], to fit T to them.

    Raises:
        ValueError: TEST.PER_CLASS_RESULT without `lab2cname`.
    """

    def __init__(self, cfg, lab2cname=None, **kwargs):
        super().__init__(cfg)
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise ValueError("TEST.PER_CLASS_RESULT needs the class names: pass lab2cname")
        self._lab2cname = lab2cname
        self.temperature, self.keep_scores = None, False
        self.reset()

    def reset(self):
        """Forget all batches."""
        self._y_true = []
        self._y_pred = []
        self._finite = []
        self._sure = []
        self._scores = []
        self._n_classes = len(self._lab2cname or {})

    def process(self, mo, gt):
        """Add a batch: scores `mo` [batch, classes] and true labels `gt`, int64 [batch], on any device."""
        # the tensors stay on the device, because a copy to the CPU for every batch would stall CUDA
        self._y_pred.append(mo.argmax(1))
        # the largest score is NaN if any score is; minus infinity is allowed for a hidden class
        self._finite.append(mo.amax(1).isfinite())
        self._sure.append(confidence(mo, self.temperature or 1.0))
        if self.keep_scores:
            self._scores.append(mo)
        self._n_classes = max(self._n_classes, mo.shape[1])
        self._y_true.append(gt)

    def state_dict(self):
        """Return the batches since the last reset(), as tensors and plain types by name."""
        tensors = {name: torch.cat(getattr(self, name)) for name in BATCHES if getattr(self, name)}
        return {**tensors, "_n_classes": self._n_classes}

    def load_state_dict(self, state):
        """Replace the batches by those of a `state_dict`, with its tensors on the device of the batches to come."""
        self.reset()
        for name in BATCHES:
            if name in state:
                setattr(self, name, [state[name]])
        self._n_classes = state["_n_classes"]

    def evaluate(self):
        """Print and return the results over all batches since the last reset().

        The F1 of a class is 2 TP / (2 TP + FP + FN). Macro-F1 is its mean over the classes that have samples, like
        scikit-learn's f1_score(average="macro", labels=np.unique(y_true)). The expected calibration error is that of
        softmax(scores / T), for all methods. The labels remain in `y_true` and `y_pred`, int64 [samples], in the order
        of the batches.

        With TEST.COMPUTE_CMAT the confusion matrix is saved to OUTPUT_DIR/cmat.pt, a dict for
        `torch.load(path, weights_only=True)`. Its "matrix" is float64 [n_cls, n_cls], with true classes as rows and
        predicted classes as columns. Each row sums to 1, or to 0 without samples. Its "classnames" are n_cls strings.
        Both have all classes, in the order of their labels.

        Returns:
            OrderedDict: accuracy, error_rate, macro_f1, ece and, with TEST.PER_CLASS_RESULT, perclass_accuracy: floats,
            in percent. If it is set, also the temperature. The accuracy is the first entry, by which models are
            selected.

        Raises:
            ValueError: no batch was processed.
            FloatingPointError: the best score of a sample is infinite or NaN.
        """
        if not self._y_true:
            raise ValueError("Nothing to evaluate: no batch was processed")
        self.y_true = y_true = torch.cat(self._y_true).cpu()
        n_not_finite = int((~torch.cat(self._finite)).sum())
        if n_not_finite:
            advice = "the training diverged (lower OPTIM.LR), or the precision is too small (fp32)"
            raise FloatingPointError(f"{n_not_finite:,} of {len(y_true):,} images get infinite or NaN scores: {advice}")
        self.y_pred = y_pred = torch.cat(self._y_pred).cpu()
        if self.keep_scores:
            self.scores = torch.cat(self._scores).cpu()
        n = int(max(y_true.max(), y_pred.max())) + 1
        correct = torch.bincount(y_true[y_true == y_pred], minlength=n)  # each of the three: int64 [n]
        total = torch.bincount(y_true, minlength=n)
        predicted = torch.bincount(y_pred, minlength=n)
        labels = total.nonzero().flatten()

        n_correct, n_total = int(correct.sum()), int(total.sum())
        acc = 100.0 * n_correct / n_total
        f1 = 2.0 * correct[labels].double() / (total + predicted)[labels]
        macro_f1 = 100.0 * f1.mean().item()
        ece = expected_calibration_error(torch.cat(self._sure).cpu(), y_pred == y_true)
        results = OrderedDict(accuracy=acc, error_rate=100.0 - acc, macro_f1=macro_f1, ece=ece)
        print(
            "=> result\n"
            f"* total: {n_total:,}\n"
            f"* correct: {n_correct:,}\n"
            f"* accuracy: {acc:.1f}%\n"
            f"* error: {100.0 - acc:.1f}%\n"
            f"* macro_f1: {macro_f1:.1f}%\n"
            f"* ece: {ece:.1f}%"
        )
        if self.temperature:
            results["temperature"] = self.temperature
            print(f"* temperature: {self.temperature:.3f}")

        if self.cfg.TEST.PER_CLASS_RESULT:
            print("=> per-class result")
            accs = 100.0 * correct[labels].double() / total[labels]
            for label, class_acc in zip(labels.tolist(), accs.tolist(), strict=True):
                counts = f"total: {total[label].item():,}\tcorrect: {correct[label].item():,}"
                print(f"* class: {label} ({self._lab2cname[label]})\t{counts}\tacc: {class_acc:.1f}%")
            results["perclass_accuracy"] = accs.mean().item()
            print(f"* average: {results['perclass_accuracy']:.1f}%")

        if self.cfg.TEST.COMPUTE_CMAT and is_first():
            save_path = osp.join(self.cfg.OUTPUT_DIR, "cmat.pt")
            with atomic_write(save_path) as f:
                torch.save(self._confusion(), f)
            print(f'Confusion matrix is saved to "{save_path}"')
        return results

    def _confusion(self):
        n = max(self._n_classes, int(self.y_true.max()) + 1)
        names = self._lab2cname or {}
        return {
            "matrix": confusion_matrix(self.y_true, self.y_pred, n),
            "classnames": [str(names.get(label, label)) for label in range(n)],
        }


def confusion_matrix(y_true, y_pred, n):
    """Return row-normalised counts, float64 [n, n], of true labels (rows) and predicted ones (columns)."""
    counts = torch.bincount(y_true * n + y_pred, minlength=n * n).view(n, n).double()
    return counts / counts.sum(1, keepdim=True).clamp(min=1)
