"""DePT, decoupled prompt tuning (Zhang et al. 2024, "DePT: Decoupled Prompt Tuning", CVPR).

The original code is github.com/Koorye/DePT. A prompt method (BASE) has image features f and class features g, which are
not normalised here. A second classifier, for the base classes, uses them with a scale a and a shift b of each channel,
so that knowledge about the base classes is kept in a separate space:

    f^ = a_i * f + b_i,   g^ = a_t * g + b_t
    z  = s cos(f, g),     h(x) = V x + c
    L  = (1 - w) CE(z, y) + w CE(h([g^_y; f^]), [y; y]) + (further terms of BASE)

The second mean is over 2 B rows: the text features of the labels' classes, and the image features. An evaluation on the
classes of the training uses (1 - w) z + w h(f^), on others z. TYPE similarity has h(f^) = s cos(f^, g^) instead.
"""

import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer, node_of
from .coop import CoOp
from .kgcoop import KgCoOp
from .maple import MaPLe
from .promptsrc import PromptSRC
from .shared.beside_dassl import say
from .shared.classes import class_ids, positions_of
from .shared.encoders import normalize, wide
from .shared.epoch_average import EpochAverage
from .shared.keys import DESCRIPTIONS, SOME, Key

BASES = {"CoOp": CoOp, "KgCoOp": KgCoOp, "MaPLe": MaPLe, "PromptSRC": PromptSRC}
PARTS = ("prompt_learner", "film", "linear_probe")  # parts of the learner's names


class FiLM(nn.Module):
    """A scale and a shift of each of d channels, from 1 and 0."""

    def __init__(self, d: int):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * wide(x) + self.bias


class DecoupledLearner(nn.Module):
    """The prompts of BASE, a and b, V and c, with the names of the original.

    Args:
        prompt_learner: the learner of BASE.
        d: number of channels of the features.
        classnames: names of the classes; the checkpoint stores a hash of each.
        film: whether there are a and b.
        linear: whether there are V and c.
        is_seen: whether a checkpoint without class names counts as trained on these classes.

    Attributes:
        two_heads: whether these classes are all among those of the training, so that h is used.
    """

    def __init__(self, prompt_learner, d: int, classnames: list[str], film: bool, linear: bool, is_seen: bool):
        super().__init__()
        self.prompt_learner, self.is_seen, self.two_heads = prompt_learner, is_seen, True
        if film:
            self.film_lp_img, self.film_lp_text = FiLM(d), FiLM(d)
        if linear:
            self.linear_probe_proj = nn.Linear(d, len(classnames))
        self.register_buffer("classes", class_ids(classnames))

    def load_state_dict(self, state_dict, *args, **kwargs):
        """Load a state dict of this class or of the original. The rows of V and c are matched by class name."""
        dead = tuple(f"prompt_learner.{name}" for name in self.prompt_learner.dead)
        names = [name for name in state_dict if name.startswith(PARTS) and not name.startswith(dead)]
        state, probe = {name: state_dict[name] for name in names}, [n for n in names if n.startswith("linear_probe")]
        if "classes" in state_dict:
            positions = positions_of(self.classes, state_dict["classes"])
            self.two_heads = bool((positions >= 0).all())
        else:  # the original does not save them
            positions = torch.arange(len(self.classes))
            self.two_heads = self.is_seen and all(len(state[name]) == len(positions) for name in probe)
        for name in probe:
            state[name] = state[name][positions.to(state[name].device)] if self.two_heads else self.get_parameter(name)
        if not self.two_heads:
            say("The second head was trained on other classes: it is not used")
        return super().load_state_dict({**state, "classes": self.classes}, *args, **kwargs)


class Decoupled:
    """A mixin for the classifier of BASE: the second head.

    Attributes:
        learner: a `DecoupledLearner`.
        weight: w; 1 without TEST_TIME_FUSION, in an evaluation.
    """

    learner: DecoupledLearner
    weight: float

    def probe(self, x: torch.Tensor) -> torch.Tensor:
        """Return h(x), float32 [n, n_cls]."""
        linear = self.learner.linear_probe_proj
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, linear.weight, linear.bias)

    def spaces(self, f: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return f^ and g^ for features f [B, d] and g [n_cls, d], which are not normalised."""
        learner = self.learner
        if not hasattr(learner, "film_lp_img"):
            return wide(f), wide(g)
        return learner.film_lp_img(f), learner.film_lp_text(g)

    def second_logits(self, f: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        """Return h(f^), float32 [B, n_cls]; with TYPE similarity s cos(f^, g^)."""
        f, g = self.spaces(f, g)
        if hasattr(self.learner, "linear_probe_proj"):
            return self.probe(f)
        return self.logits(normalize(f), normalize(g))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        f, g = self.image_features(image), self.compute_once("features", self.text_features)
        z = self.logits(normalize(f), normalize(g))
        return (1 - self.weight) * z + self.weight * self.second_logits(f, g) if self.learner.two_heads else z


class FixedFeatures:
    """A classifier with the features of one batch in place of its encoders, for the loss of BASE.

    Args:
        model: the classifier.
        f: image features of unit length.
        g: class features of unit length.
        frozen_input: argument of `frozen_image` for these images.
    """

    def __init__(self, model, f: torch.Tensor, g: torch.Tensor, frozen_input: torch.Tensor):
        self.model, self.f, self.g, self.frozen_input = model, f, g, frozen_input

    def frozen_image(self, image: torch.Tensor) -> torch.Tensor:
        return self.model.frozen_image(self.frozen_input)

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        return self.f

    def encode_text(self) -> torch.Tensor:
        return self.g

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return self.model.logits(self.f, self.g)

    def __getattr__(self, name: str):
        return getattr(self.model, name)


@TRAINER_REGISTRY.register()
class DePT(EpochAverage, ClipTrainer):
    """Decoupled prompt tuning over CoOp, KgCoOp, MaPLe or PromptSRC."""

    defaults = CoOp.defaults | {
        "CSC": Key(False, rule=("False: all classes share the context", lambda csc: not csc)),
        "W": Key(2.0, low=0),  # of KgCoOp
        "TEMPLATE": KgCoOp.defaults["TEMPLATE"],  # of KgCoOp
    }
    deciding_keys = CoOp.deciding_keys
    root = {
        "TRAINER": {
            "LINEAR_PROBE": {
                "TYPE": Key("linear", choices=["linear", "similarity"]),  # the second head
                "WEIGHT": Key(0.7, low=0, high=1),  # w
                "TEST_TIME_FUSION": True,  # False: an evaluation uses the second head alone
                "BASE": Key("CoOp", choices=list(BASES)),  # the prompt method; MaPLe and PromptSRC have their own nodes
            },
            "FILM": {"LINEAR_PROBE": True},  # whether there are a and b
            "MAPLE": MaPLe.defaults,
            "PROMPTSRC": {name: key for name, key in PromptSRC.defaults.items() if name not in DESCRIPTIONS},
            "NAMES_TO_UPDATE": Key(list(PARTS), of=str, rule=SOME),  # words in the names of the trained tensors
        },
        "OPTIM": {
            "STAGED_LR": True,  # whether NEW_LAYERS have a rate of their own
            "NEW_LAYERS": Key(("linear_probe", "film"), of=str),  # words in the names of the layers at LR * LR_EXP
            "LR_EXP": Key(6.5, above=0),
            "BASE_LR_MULT": Key(1.0, low=0, high=1000),  # the other layers learn at LR * BASE_LR_MULT
        },
    }
    node_name = "COOP"
    learner, registered = "learner", "PromptLearner"

    @property
    def node(self):
        return self.cfg.TRAINER[node_of(BASES[self.cfg.TRAINER.LINEAR_PROBE.BASE])]  # whose PREC counts

    def gaussian(self):
        return self.base.gaussian() if isinstance(self.base, EpochAverage) else None

    def prompt_method(self) -> ClipTrainer:
        """Return a trainer of BASE, whose classifiers have the second head. It has no data and no optimizer."""
        method = BASES[self.cfg.TRAINER.LINEAR_PROBE.BASE]
        base = method.__new__(method)
        base.cfg, base.device = self.cfg, self.device
        base.classifier = type(f"Decoupled{method.__name__}", (Decoupled, method.classifier), {})
        return base

    def build_classifier(self, clip_model, classnames):
        head, data, self.base = self.cfg.TRAINER.LINEAR_PROBE, self.cfg.DATASET, self.prompt_method()
        classes, d = data.get("SUBSAMPLE_CLASSES", "all"), clip_model.text_projection.shape[1]
        is_seen = classes == "base" or (classes == "all" and "ImageNet" in data.NAME)  # the original's rule
        model = self.base.build_classifier(clip_model, classnames)
        film, linear = self.cfg.TRAINER.FILM.LINEAR_PROBE, head.TYPE == "linear"
        model.learner = DecoupledLearner(model.prompt_learner, d, classnames, film, linear, is_seen)
        for name, p in model.learner.named_parameters():
            p.requires_grad_(any(word in name for word in self.cfg.TRAINER.NAMES_TO_UPDATE))
        model.weight = head.WEIGHT if head.TEST_TIME_FUSION else 1.0
        return model

    def optim_cfg(self):
        optim, learner = super().optim_cfg(), self.model.learner
        if optim.STAGED_LR:
            optim.defrost()
            optim.NEW_LAYERS = [
                name for name, _ in learner.named_children() if any(word in name for word in optim.NEW_LAYERS)
            ]
            optim.LR, optim.BASE_LR_MULT = optim.LR * optim.LR_EXP, optim.BASE_LR_MULT / optim.LR_EXP
        return optim

    def losses(self, image, label):
        model, w = self.model, self.cfg.TRAINER.LINEAR_PROBE.WEIGHT
        f, g = model.image_features(self.model_input(image)), model.text_features()
        self.base.model = FixedFeatures(model, normalize(f), normalize(g), self.frozen_input(image))
        terms, z = self.base.losses(image, label)
        if self.cfg.TRAINER.LINEAR_PROBE.TYPE == "linear":
            images, texts = model.spaces(f, g)
            h = model.probe(torch.cat([texts[label], images]))
            second_loss = F.cross_entropy(h, torch.cat([label, label]))
        else:
            second_loss = F.cross_entropy(model.second_logits(f, g), label)
        return terms | {"ce": (1 - w) * terms["ce"], "ce_probe": w * second_loss}, z
