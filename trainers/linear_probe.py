"""Linear probes on CLIP's image features that start from its text features.

ZS-LP and CLAP are by Silva-Rodriguez et al. 2024 ("A Closer Look at the Few-Shot Adaptation of Large Vision-Language
Models", CVPR). TR is TaskRes (Yu et al. 2023, CVPR). Each class has one vector w_c and no bias. t_c is its text
feature, a mean over templates. Neither is normalised outside the cosine:

    z_c = s cos(f, w_c),   L = CE(z, y)  [CONSTRAINT l2, CLAP:  + mean_c lambda_c |w_c - t_c|^2]

    INIT ZS       w_c is trained, from t_c                   before the first step: zero-shot CLIP
    INIT RANDOM   w_c is trained, from random values
    INIT TR       w_c = t_c + 0.5 r_c, r_c is trained from 0   before the first step: zero-shot CLIP

lambda_c is the mean zero-shot probability of c over the training images of c. The images are encoded once, in PASSES
augmented passes. An epoch draws from the features of all passes, and has as many batches as one pass.
"""

from collections.abc import Iterator

import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer
from .shared.beside_dassl import say
from .shared.classes import class_ids, positions_of
from .shared.classifier import ClipClassifier
from .shared.encoders import normalize, wide
from .shared.keys import TEMPLATE, Key
from .shared.prompts import replace_underscores, template_for
from .shared.templates import IMAGENET_TEMPLATES_SELECT


class Prototypes(nn.Module):
    """The class vectors, with the names of the original.

    Args:
        text: t, float [n_cls, d].
        classes: `class_ids` of the classes, int64 [n_cls].
        init: the key INIT.

    Attributes:
        prototypes: the trained tensor, float [n_cls, d]: w, or r with INIT TR.
        base_text_features: t, float [n_cls, d].
        multipliers: lambda, float [n_cls].
    """

    def __init__(self, text: torch.Tensor, classes: torch.Tensor, init: str):
        super().__init__()
        self.residual = init == "TR"
        start = torch.zeros_like(text) if self.residual else text.clone()
        self.prototypes = nn.Parameter(nn.init.kaiming_normal_(start) if init == "RANDOM" else start)
        self.register_buffer("base_text_features", text)
        self.register_buffer("classes", classes)
        self.register_buffer("multipliers", torch.ones_like(text[:, 0]), persistent=False)

    def forward(self) -> torch.Tensor:
        """Return w, float [n_cls, d]."""
        return self.base_text_features + 0.5 * self.prototypes if self.residual else self.prototypes

    def constraint(self) -> torch.Tensor:
        """Return the second term of CLAP's loss, a scalar."""
        return (self.multipliers * (self() - self.base_text_features).square().sum(dim=-1)).mean()

    def load_state_dict(self, state_dict, *args, **kwargs):
        # the original also saves CLIP's logit_scale, and does not save its classes
        state = {"classes": self.classes} | {name: t for name, t in state_dict.items() if name != "logit_scale"}
        if not torch.equal(state["classes"].cpu(), self.classes.cpu()):
            positions = positions_of(self.classes, state["classes"])
            is_trained, text = (positions >= 0).unsqueeze(1), self.base_text_features
            zero_shot = {"prototypes": torch.zeros_like(text) if self.residual else text, "base_text_features": text}
            for name, rows in zero_shot.items():
                state[name] = torch.where(is_trained, state[name].to(rows)[positions], rows)
            state["classes"] = self.classes
            trained_classes = f"{int(is_trained.sum())} of these {len(positions)} classes"
            say(f"The probe was trained on {trained_classes}, others are zero-shot")
        return super().load_state_dict(state, *args, **kwargs)


class ProbedCLIP(ClipClassifier):
    def __init__(self, node, clip_model, classnames: list[str], templates: list[str]):
        super().__init__(clip_model, classnames, templates)
        names = classnames if node.KEEP_UNDERSCORES else replace_underscores(classnames)
        text = torch.stack([self.text_features([t.replace("{}", n) for n in names]) for t in templates]).mean(dim=0)
        self.adapter = Prototypes(text, class_ids(classnames).to(text.device), node.INIT)

    @torch.no_grad()
    def text_features(self, prompts: list[str]) -> torch.Tensor:
        """Return the text features of the prompts, float32 [n, d], not normalised."""
        tokens = self.text_encoder.tokenize(prompts).to(self.logit_scale.device)
        return wide(self.text_encoder(None, tokens))

    def encode_text(self) -> torch.Tensor:
        return normalize(self.adapter())


class Passes:
    """A loader of stored features: a new random order each time, cut to `batches` batches."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, batch_size: int, batches: int):
        self.features, self.labels, self.batch_size, self.batches = features, labels, batch_size, batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for rows in torch.randperm(len(self.labels)).split(self.batch_size)[: self.batches]:
            yield {"img": self.features[rows], "label": self.labels[rows]}


def mean_probability(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return lambda, float [n_cls]: the mean probability of each class c over the images of c; 0 if there are none.

    Args:
        logits: float [n, n_cls].
        labels: int64 [n].
    """
    n_cls = logits.shape[1]
    probability = logits.softmax(dim=-1).gather(1, labels.unsqueeze(1)).squeeze(1)
    totals = probability.new_zeros(n_cls).index_add(0, labels, probability)
    return totals / labels.bincount(minlength=n_cls).clamp(min=1)


@TRAINER_REGISTRY.register()
class LinearProbe(ClipTrainer):
    """Linear probes of image features, with the config node and the keys of the original."""

    defaults = ClipTrainer.defaults | {
        "INIT": Key("ZS", choices=["ZS", "RANDOM", "TR"]),
        "CONSTRAINT": Key("none", choices=["none", "l2"]),  # l2: CLAP
        "ENHANCED_BASE": Key("none", choices=["none"]),  # the original's YAMLs set it; its other values fail there
        "PASSES": Key(20, low=1),  # number of augmented passes over the training images
        "KEEP_UNDERSCORES": False,  # whether prompts keep the underscores of class names, as in the original
        "TEMPLATE": TEMPLATE,  # "" = the data set's template
    }
    node_name = "ADAPTER"
    learner = "adapter"

    def build_classifier(self, clip_model, classnames):
        templates = [template_for(self.cfg.DATASET.NAME, self.node.TEMPLATE)]
        if self.cfg.DATASET.NAME.startswith("ImageNet"):
            templates = IMAGENET_TEMPLATES_SELECT + templates
        return ProbedCLIP(self.node, clip_model, classnames, templates)

    def before_train(self):
        super().before_train()
        self.encode_passes()  # not in `fit`, because a resumed run needs the features as well

    def encode_passes(self) -> None:
        """Store the features to train on. A resumed run has the same ones."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(max(self.cfg.SEED, 0))
            passes = self.features_of_passes(self.node.PASSES)
        features, labels = (torch.cat(parts) for parts in zip(*passes, strict=True))
        loader = self.train_loader_x
        self.train_loader_x = Passes(features, labels, loader.batch_size, len(loader))
        zero_shot = self.model.logits(normalize(features), normalize(self.model.adapter.base_text_features))
        self.model.adapter.multipliers = mean_probability(zero_shot, labels)

    def losses(self, image, label):
        terms, logits = super().losses(image, label)
        if self.node.CONSTRAINT == "l2":
            terms["constraint"] = self.model.adapter.constraint()
        return terms, logits
