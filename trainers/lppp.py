"""LP++: a linear probe that blends in the text features with a multiplier for each class.

Huang et al. 2024, "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP", CVPR.

F are the features of one augmented pass over the N training images, of unit length. W, b and alpha [n_cls] are trained:

    z = F W^T + b + alpha (F g^T)                         alpha_c multiplies column c
    L = CE(z, y),  all images in one batch
    start    W_c = sum of the features of class c,   b uniform,   alpha_c = 250 mean over the classes of mean f g_c
    W, b     momentum SGD at the rate   4 N / (largest eigenvalue of F^T F)                 1 / a Lipschitz constant
    alpha    every tenth epoch, gradient descent at   N / (4 max_c sum_i (f_i g_c)^2)

Both rates are computed from the features and need no tuning. OPTIM.LR, by default 1, is a factor of the first rate. The
result is the epoch with the best accuracy on val, the last one if several are equal.
"""

import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer
from .shared.beside_dassl import say
from .shared.classes import class_ids, positions_of, rows_by_name
from .shared.classifier import ClipClassifier
from .shared.encoders import normalize
from .shared.keys import TEMPLATE, Key
from .shared.prompts import templates_for

BLEND = 250  # alpha at the start, for features that equal the text features
TRAINED = ("weight", "bias", "alpha")


class Blend(nn.Module):
    """The trained tensors, with the names of the original, and the tensors of the best epoch so far.

    Args:
        width: d.
        classes: `class_ids` of the classes, int64 [n_cls].
    """

    def __init__(self, width: int, classes: torch.Tensor):
        super().__init__()
        n_cls = len(classes)
        self.weight = nn.Parameter(torch.zeros(n_cls, width))
        self.bias = nn.Parameter(torch.empty(n_cls).uniform_(-(width**-0.5), width**-0.5))
        self.alpha = nn.Parameter(torch.full((1, n_cls), float(BLEND)))
        self.register_buffer("alpha_gradient", torch.zeros(1, n_cls))
        for name in TRAINED:
            self.register_buffer(f"best_{name}", getattr(self, name).detach().clone())
        self.register_buffer("best_accuracy", torch.tensor(-1.0))
        self.register_buffer("rate_of_alpha", torch.tensor(0.0))
        self.register_buffer("classes", classes)

    def forward(self, f: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """Return z float [B, n_cls] for features f float [B, d] and text features g float [n_cls, d]."""
        return F.linear(f, self.weight, self.bias) + (f @ g.T) * self.alpha

    @torch.no_grad()
    def start(self, f: torch.Tensor, g: torch.Tensor, labels: torch.Tensor) -> float:
        """Set W, alpha and the rate of alpha from the training features; return the rate of W and b."""
        self.weight.copy_(torch.zeros_like(self.weight).index_add(0, labels, f))
        counts = labels.bincount(minlength=len(g))
        similarity = ((self.weight * g).sum(dim=1) / counts.clamp(min=1)).sum() / (counts > 0).sum()
        self.alpha.fill_(BLEND * similarity)
        self.rate_of_alpha.fill_(len(f) / (4 * (f @ g.T).square().sum(dim=0).max()))
        return 4 * len(f) / torch.linalg.eigvalsh(f.T @ f)[-1].item()

    @torch.no_grad()
    def keep(self, accuracy: float) -> None:
        """Store the trained tensors unless an earlier epoch was better."""
        if accuracy >= self.best_accuracy:
            self.best_accuracy.fill_(accuracy)
            for name in TRAINED:
                getattr(self, f"best_{name}").copy_(getattr(self, name))

    @torch.no_grad()
    def restore(self) -> None:
        for name in TRAINED:
            getattr(self, name).copy_(getattr(self, f"best_{name}"))

    def load_state_dict(self, state_dict, *args, **kwargs):
        state = dict(state_dict)
        if not torch.equal(state.get("classes", self.classes).cpu(), self.classes.cpu()):
            positions = positions_of(self.classes, state["classes"])
            for name in (*TRAINED, *(f"best_{name}" for name in TRAINED), "alpha_gradient"):
                rows = state[name].T if name.endswith(("alpha", "gradient")) else state[name]
                initial_value = rows.mean() if name.endswith("alpha") else 0.0  # a new class has the mean multiplier
                initial_rows = rows.new_full((len(positions), *rows.shape[1:]), initial_value)
                matched_rows = rows_by_name(initial_rows, rows, positions)
                state[name] = matched_rows.T if name.endswith(("alpha", "gradient")) else matched_rows
            say(f"LP++ was trained on {int((positions >= 0).sum())} of these {len(positions)} classes")
            state["classes"] = self.classes
        return super().load_state_dict(state, *args, **kwargs)


class BlendedCLIP(ClipClassifier):
    takes_features = True

    def __init__(self, clip_model, classnames: list[str], templates: list[str]):
        super().__init__(clip_model, classnames, templates)
        self.lppp = Blend(clip_model.text_projection.shape[1], class_ids(classnames))

    def forward(self, image):
        f, g = self.encode_image(image), self.frozen_text
        with torch.autocast(f.device.type, enabled=False):
            return self.lppp(f, g)


@TRAINER_REGISTRY.register()
class LPpp(ClipTrainer):
    """LP++: block-coordinate steps on stored features."""

    defaults = ClipTrainer.defaults | {
        "ALPHA_EVERY": Key(10, low=1),  # epochs between two steps of alpha
        # sum: the gradients since the first epoch, which the original never clears; present: of this epoch alone
        "ALPHA_GRADIENT": Key("sum", choices=["sum", "present"]),
        "SELECT": Key("val", choices=["val", "last"]),  # split that selects the epoch; last: the last epoch
        "TEMPLATE": TEMPLATE,  # "" = the data set's template, for ImageNet 7 of them
    }
    learner = "lppp"
    unread_keys = {"DATALOADER.TRAIN_X.BATCH_SIZE": "all training images are one batch"}
    plan = {"learning rate": "OPTIM.LR times a factor that the training features determine", "steps": "one an epoch"}

    def build_classifier(self, clip_model, classnames):
        templates = templates_for(self.cfg.DATASET.NAME, self.node.TEMPLATE)
        return BlendedCLIP(clip_model, classnames, templates)

    def build_model(self):
        super().build_model()
        self.optim.param_groups[0]["params"] = [self.model.lppp.weight, self.model.lppp.bias]

    def before_train(self):
        self.encode_once()  # not in `fit`, because a resumed run needs the features as well
        super().before_train()

    def encode_once(self) -> None:
        """Store the features to train and to select on. A resumed run has the same ones."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(max(self.cfg.SEED, 0))
            features, labels = self.features(self.dm.dataset.train_x, train=True)
            self.train_loader_x = [{"img": features, "label": labels}]
            self.val = None
            if self.node.SELECT == "val" and self.dm.dataset.val:
                self.val = self.features(self.dm.dataset.val)

    def fit(self):
        (batch,) = self.train_loader_x
        f = normalize(batch["img"])
        rate = self.cfg.OPTIM.LR * self.model.lppp.start(f, self.model.frozen_text, batch["label"])
        say(f"Learning rate {rate:.3g}, of alpha {self.model.lppp.rate_of_alpha.item():.3g}: from the features")
        self.optim.param_groups[0]["lr"] = rate
        for schedule in (self.sched, getattr(self.sched, "successor", self.sched)):
            schedule.base_lrs = [rate]

    def backward(self, terms):
        super().backward(terms)
        lppp = self.model.lppp
        gradient = lppp.alpha.grad / self.scaler.get_scale()
        lppp.alpha_gradient.copy_(lppp.alpha_gradient + gradient if self.node.ALPHA_GRADIENT == "sum" else gradient)
        lppp.alpha.grad = None

    def step_alpha(self, epoch: int) -> None:
        """Move alpha after every `ALPHA_EVERY` epochs, counted from 0."""
        lppp = self.model.lppp
        if (epoch + 1) % self.node.ALPHA_EVERY == 0:
            lppp.alpha.data -= lppp.rate_of_alpha * lppp.alpha_gradient

    def after_epoch(self):
        self.step_alpha(self.epoch)
        self.model.lppp.keep(float(self.epoch) if self.val is None else self.accuracy_on_val())
        if self.epoch + 1 == self.max_epoch:
            self.model.lppp.restore()
        super().after_epoch()

    @torch.no_grad()
    def accuracy_on_val(self) -> float:
        features, labels = self.val
        return 100 * (self.model(features).argmax(dim=1) == labels).double().mean().item()
