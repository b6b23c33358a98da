"""GDA: Gaussian discriminant analysis of CLIP's image features beside zero-shot CLIP. Nothing is trained.

Wang et al. 2024, "A Hard-to-Beat Baseline for Training-Free CLIP-based Adaptation", ICLR.

x are the features of AUGMENT_EPOCH augmented passes over the training images, M in all, of d numbers and unit length.
mu_c is the mean of class c. The classes share one covariance, whose inverse is P:

    z = 100 f g^T + alpha (f W + b),   W = P mu^T,   b_c = log(1 / C) - mu_c^T P mu_c / 2
    shrunk      P = d ((M - 1) S + tr(S) I)^-1,   S the covariance of all x - mu_{y(x)}        (few-shot)
    per_class   P = (mean over the classes of their own covariances)^+                         (base-to-new)

alpha is selected on val. A class without training images is described by the NEIGHBOURS training features that are
most similar to its text feature g_c:

    mu_c = mean of them and of COPIES times g_c,   S_c = their covariance about g_c
    P    = mean over these classes of d ((NEIGHBOURS - 1) S_c + tr(S_c) I)^-1
"""

import math

import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer
from .shared.beside_dassl import say
from .shared.classes import class_ids, positions_of, rows_by_name
from .shared.classifier import ClipClassifier
from .shared.encoders import normalize
from .shared.keys import TEMPLATE, Key
from .shared.prompts import templates_for

ALPHAS = [1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0]

# -------------------------------------------------------------------- the equations


def inverse(matrix: torch.Tensor) -> torch.Tensor:
    """Return the pseudo-inverse of a symmetric matrix, computed in fp64.

    Eigenvalues below the precision of the type of `matrix` count as 0, as in PyTorch's pinv of this type.
    """
    precision = len(matrix) * torch.finfo(matrix.dtype).eps
    return torch.linalg.pinv(matrix.double(), rtol=precision, hermitian=True).to(matrix)


def shrunk_inverse(scatter: torch.Tensor, n: int) -> torch.Tensor:
    """Return d ((n - 1) S + tr(S) I)^-1 for a covariance S = scatter / (n - 1), float [d, d]."""
    d = len(scatter)
    trace = scatter.trace() / (n - 1)
    return d * inverse(scatter + trace * torch.eye(d, dtype=scatter.dtype, device=scatter.device))


def gaussians(x: torch.Tensor, labels: torch.Tensor, n_cls: int, covariance: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mu float [n_cls, d] and P float [d, d] of the training classes.

    Args:
        x: features float [M, d] of unit length.
        labels: int64 [M].
        n_cls: number of classes; one without features has the mean 0 and no part in P.
        covariance: shrunk or per_class.

    Raises:
        ValueError: a covariance needs more features.
    """
    counts = labels.bincount(minlength=n_cls)
    means = x.new_zeros(n_cls, x.shape[1]).index_add(0, labels, x) / counts.clamp(min=1).unsqueeze(1)
    deviations = x - means[labels]
    has_one_feature = counts.max() if covariance == "shrunk" else counts[counts > 0].min()
    if has_one_feature < 2:
        raise ValueError("a class has one feature, which has no covariance: give more shots or a larger AUGMENT_EPOCH")
    if covariance == "shrunk":
        return means, shrunk_inverse(deviations.T @ deviations, len(x))
    freedoms = (counts[labels] - 1).to(x).unsqueeze(1)
    return means, inverse(deviations.T @ (deviations / freedoms) / (counts > 0).sum())


def new_gaussians(x: torch.Tensor, g: torch.Tensor, neighbours: int, copies: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mu float [n, d] and P float [d, d] of classes without training images.

    Args:
        x: features float [M, d] of other classes.
        g: text features float [n, d] of these classes, of unit length.
        neighbours: number of features that describe a class.
        copies: number of times that g_c is among them in the mean.
    """
    k, means, total = min(neighbours, len(x)), [], 0
    for g_c in g:
        nearest_features = x[(x @ g_c).topk(k).indices]
        means.append((nearest_features.sum(dim=0) + copies * g_c) / (k + copies))
        total = total + shrunk_inverse((nearest_features - g_c).T @ (nearest_features - g_c), max(k, 2))
    return torch.stack(means), total / len(g)


def discriminant(means: torch.Tensor, precision: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return W^T float [n, d] and b float [n]; log(1 / C) is left out, as it changes no difference of scores."""
    weight = means @ precision
    return weight, -(weight * means).sum(dim=1) / 2


# -------------------------------------------------------------------- the classifier and the trainer


class Discriminant(nn.Module):
    """The fitted tensors: W^T, b and alpha of the training classes, and the training features for further classes.

    Args:
        width: d.
        classes: `class_ids` of the classes, int64 [n_cls].
        alpha: initial value.
    """

    def __init__(self, width: int, classes: torch.Tensor, alpha: float):
        super().__init__()
        self.register_buffer("weight", torch.zeros(len(classes), width))
        self.register_buffer("bias", torch.zeros(len(classes)))
        self.register_buffer("counts", torch.zeros(len(classes), dtype=torch.int64))  # training features of each class
        self.register_buffer("alpha", torch.tensor(alpha))
        self.register_buffer("features", torch.zeros(0, width))
        self.register_buffer("classes", classes)

    def load_state_dict(self, state_dict, *args, **kwargs):
        state = dict(state_dict)
        if state.keys() >= {"classes", "counts", "weight", "bias", "features"}:
            positions = positions_of(self.classes, state["classes"])
            for name in ("weight", "bias", "counts"):
                state[name] = rows_by_name(torch.zeros_like(getattr(self, name)), state[name], positions)
            n_unknown = int((state["counts"] == 0).sum())
            if n_unknown:
                text = "are described by features of other classes" if len(state["features"]) else "are zero-shot"
                say(f"GDA has no training images of {n_unknown} of these {len(positions)} classes, which {text}")
            state["classes"] = self.classes
            self.features = self.features.new_empty(state["features"].shape)  # the number of images may differ
        return super().load_state_dict(state, *args, **kwargs)


class DiscriminantCLIP(ClipClassifier):
    takes_features = True

    def __init__(self, node, clip_model, classnames: list[str], templates: list[str]):
        super().__init__(clip_model, classnames, templates)
        self.gda = Discriminant(clip_model.text_projection.shape[1], class_ids(classnames), node.ALPHA or 0.1)
        self.neighbours, self.copies = node.NEIGHBOURS, node.COPIES
        if node.LOGIT_SCALE:
            self.logit_scale.fill_(node.LOGIT_SCALE)

    def discriminants(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return W^T float [n_cls, d] and b float [n_cls] of all classes, including those without training images."""
        gda, weight, bias = self.gda, self.gda.weight, self.gda.bias
        if len(gda.features) and (gda.counts == 0).any():
            new = gda.counts == 0
            means, precision = new_gaussians(gda.features, self.frozen_text[new], self.neighbours, self.copies)
            weight, bias = weight.clone(), bias.clone()
            weight[new], bias[new] = discriminant(means, precision)
        return weight, bias

    def score(self, f: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, alpha) -> torch.Tensor:
        """Return z, float32 [B, n_cls], for features f float [B, d] of unit length."""
        with torch.autocast(f.device.type, enabled=False):
            return self.logits(f, self.frozen_text) + alpha * (f @ weight.T + bias - math.log(len(bias)))

    def forward(self, image):
        f, discriminants = self.encode_image(image), self.compute_once("discriminants", self.discriminants)
        return self.score(f, *discriminants, self.gda.alpha)

    def search(self, f: torch.Tensor, label: torch.Tensor) -> tuple[float, float]:
        """Return the accuracy in percent and the first of `ALPHAS` that has it, for the training classes.

        Args:
            f: features float [m, d] of unit length.
            label: int64 [m].
        """
        best = 0.0, 0.1
        for alpha in ALPHAS:
            accuracies = self.score(f, self.gda.weight, self.gda.bias, alpha).argmax(dim=1) == label
            best = max(best, (100 * accuracies.double().mean().item(), alpha), key=lambda pair: pair[0])
        return best


@TRAINER_REGISTRY.register()
class GDA(ClipTrainer):
    """Gaussian discriminant analysis, without training."""

    defaults = ClipTrainer.defaults | {
        "AUGMENT_EPOCH": Key(10, low=1),  # number of augmented passes over the training images
        "COVARIANCE": Key("shrunk", choices=["shrunk", "per_class"]),
        "ALPHA": Key(0.0, low=0),  # 0 = selected by SELECT, or 0.1 without val images
        "SELECT": Key("val", choices=["val", "test"]),  # test: as published for ImageNet; no fair figure
        "NEIGHBOURS": Key(64, low=0),  # 0 = no training features are kept, and new classes are zero-shot
        "COPIES": Key(16, low=0),
        "LOGIT_SCALE": Key(100.0, low=0),  # the constant of the original; 0 = CLIP's scale
        "TEMPLATE": TEMPLATE,  # "" = the data set's template, for ImageNet 7 of them
    }
    learner = "gda"
    plan = {"learning rate": "none", "epochs": "none: GDA is fitted to the training features", "steps": "none"}

    def build_classifier(self, clip_model, classnames):
        templates = templates_for(self.cfg.DATASET.NAME, self.node.TEMPLATE)
        return DiscriminantCLIP(self.node, clip_model, classnames, templates)

    def fit(self):
        passes = self.features_of_passes(self.node.AUGMENT_EPOCH)
        features, labels = (torch.cat(parts) for parts in zip(*passes, strict=True))
        self.fill(normalize(features), labels)
        if not self.node.ALPHA:
            self.search()

    def fill(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        """Set W and b from features float [M, d] of unit length and labels int64 [M]."""
        gda, n_cls = self.model.gda, len(self.model.classnames)
        gda.weight, gda.bias = discriminant(*gaussians(x, labels, n_cls, self.node.COVARIANCE))
        gda.counts = labels.bincount(minlength=n_cls)
        if self.node.NEIGHBOURS:
            gda.features = x

    def search(self) -> None:
        """Select alpha on val, or on test with SELECT test."""
        items = getattr(self.dm.dataset, self.node.SELECT)
        if not items:
            say(f"There are no {self.node.SELECT} images: alpha stays {self.model.gda.alpha.item():g}")
            return
        features, label = self.features(items)
        accuracy, alpha = self.model.search(normalize(features), label)
        warning = ", not a fair figure" if self.node.SELECT == "test" else ""
        say(f"Best on {self.node.SELECT}: alpha {alpha:g}, with {accuracy:.1f}%{warning}")
        self.model.gda.alpha.fill_(alpha)
