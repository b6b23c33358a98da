"""CoPrompt (Roy and Etemad 2024, "Consistency-guided Prompt Learning for Vision-Language Models", ICLR).

The original code is github.com/ShuvenduRoy/CoPrompt. MaPLe's prompts (maple.py) in both encoders, and an adapter behind
each of them, on features f and g that are not normalised:

    f' = 0.1 A_i(f) + 0.9 f,   g' = 0.2 A_t(g) + 0.8 g,   A(x) = relu(W_2 relu(W_1 x)),   W_1 [d / 4, d], no biases
    L  = CE(s cos(f', g'), y) + W (1 - mean_c cos(g'_c, q_c) + 1 - mean cos(f', f_0))

q_c is the frozen CLIP's feature of one of the class's DESCRIPTIONS, number j for every class; j is drawn in each step.
f_0 is the frozen CLIP's feature of a second augmented view of the image. DISTILL mse has the mean squared differences
of the normalised features instead of 1 - cos.
"""

import random
from functools import cached_property
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from . import maple
from .clip_adapter import Adapter
from .maple import MaPLe
from .shared.deep import PublishedLearner
from .shared.encoders import normalize, wide
from .shared.keys import DESCRIPTIONS, Key
from .shared.prompts import fill_template
from .shared.templates import IMAGENET_TEMPLATES

IMAGE_RATIO, TEXT_RATIO = 0.1, 0.2
# PROMPT_DEPTH, N_CTX and W of the authors, by data set
PUBLISHED = {
    "ImageNet": (12, 4, 8.0),
    "Caltech101": (12, 4, 4.0),
    "OxfordPets": (12, 2, 0.1),
    "StanfordCars": (12, 4, 4.0),
    "OxfordFlowers": (9, 4, 8.0),
    "Food101": (9, 4, 0.5),
    "FGVCAircraft": (9, 4, 2.0),
    "SUN397": (12, 4, 8.0),
    "DescribableTextures": (12, 2, 8.0),
    "EuroSAT": (12, 2, 0.1),
    "UCF101": (12, 4, 2.0),
}
OTHERS = PUBLISHED["ImageNet"]


class ConsistentLearner(PublishedLearner, nn.Module):
    """MaPLe's prompts and both adapters, with the names of the original."""

    published = {r"(prompt_learner\.(?:ctx|proj|compound_prompt).*|adapter_(?:image|text)\..*)": r"\1"}

    def __init__(self, prompt_learner: nn.Module, d: int):
        super().__init__()
        self.prompt_learner, self.adapter_image, self.adapter_text = prompt_learner, Adapter(d, 4), Adapter(d, 4)


class CustomCLIP(maple.CustomCLIP):
    """MaPLe's CLIP with an adapter behind each encoder.

    Args:
        node: N_CTX, CTX_INIT and PROMPT_DEPTH of the prompts.
        clip_model, classnames: see `ClipClassifier`.
        descriptions: see `ClipClassifier`; "": CLIP's 80 templates.
    """

    def __init__(self, node, clip_model, classnames: list[str], descriptions: str):
        super().__init__(node, clip_model, classnames)
        self.description_file = descriptions
        self.learner = ConsistentLearner(self.prompt_learner, clip_model.text_projection.shape[1])

    @cached_property
    def descriptions(self) -> list[list[str]]:
        """The descriptions [j][class]; the class with the fewest descriptions limits their number."""
        if self.description_file:
            return [list(column) for column in zip(*self.sentences, strict=False)]
        return [fill_template(template, self.classnames) for template in IMAGENET_TEMPLATES]

    def frozen_descriptions(self, j: int) -> torch.Tensor:
        """Return q [n_cls, d] of the descriptions number j, of unit length. They are encoded at their first use."""
        return self.compute_frozen_once(f"descriptions {j}", lambda: self.encode_descriptions(j))

    @torch.no_grad()
    def encode_descriptions(self, j: int) -> torch.Tensor:
        """Return the features float [n_cls, d] of the j-th description of each class, with unit length."""
        with torch.autocast(self.logit_scale.device.type, enabled=False):
            cut = bool(self.description_file)
            tokens = self.text_encoder.tokenize(self.descriptions[j], cut)
            return normalize(self.text_encoder(None, tokens.to(self.logit_scale.device)))

    def image_features(self, image: torch.Tensor) -> torch.Tensor:
        f = wide(super().image_features(image))
        return IMAGE_RATIO * self.learner.adapter_image(f) + (1 - IMAGE_RATIO) * f

    def text_features(self) -> torch.Tensor:
        g = wide(super().text_features())
        return TEXT_RATIO * self.learner.adapter_text(g) + (1 - TEXT_RATIO) * g


@TRAINER_REGISTRY.register()
class CoPrompt(MaPLe):
    """Consistency-guided prompt learning."""

    defaults = MaPLe.defaults | {
        "N_CTX": Key(None, of=int, low=1, none=True),  # None: the authors' for the data set, else 4
        "PROMPT_DEPTH": Key(None, of=int, low=1, none=True),  # J; None: the authors' for the data set, else 12
        **DESCRIPTIONS,  # "" = CLIP's 80 templates
    }
    root = {
        "TRAINER": {
            "W": Key(None, of=float, low=0, none=True),  # None: the authors' for the data set, else 8
            "DISTILL": Key("cosine", choices=["cosine", "mse"]),
        }
    }
    node_name = "CoPrompt"
    learner = "learner"
    views = 2
    epoch = batch_idx = 0  # until the training counts them

    def setting(self, place: int, value: float | None) -> float:
        """Return `value`, or the authors' value for the data set if it is None; `place`: its index in `PUBLISHED`."""
        return PUBLISHED.get(self.cfg.DATASET.NAME, OTHERS)[place] if value is None else value

    def classifier(self, node, clip_model, classnames):
        return CustomCLIP(node, clip_model, classnames, self.node.DESCRIPTIONS)

    def prompt_settings(self):
        depth, n = self.setting(0, self.node.PROMPT_DEPTH), self.setting(1, self.node.N_CTX)
        return SimpleNamespace(PROMPT_DEPTH=depth, N_CTX=n, CTX_INIT=self.node.CTX_INIT)

    def parse_batch_train(self, batch):
        """Return the images [B, ...], or both views of them [2, B, ...], and the labels."""
        views = batch["img"]
        if isinstance(views, list):
            batch = batch | {"img": torch.stack(views)}
        return super().parse_batch_train(batch)

    def draw(self) -> int:
        """Return j of this step, the same in all processes and in a resumed run."""
        step = f"{self.cfg.SEED} {self.epoch} {self.batch_idx}"
        return random.Random(step).randrange(len(self.model.descriptions))

    def losses(self, image, label):
        model, weight = self.model, self.setting(2, self.cfg.TRAINER.W)
        image, view = image if image.dim() == 5 else (image, self.frozen_input(image))
        f, g = model.encode_image(image), model.encode_text()
        f_0, q = model.frozen_image(view), model.frozen_descriptions(self.draw())
        z = model.logits(f, g)
        if self.cfg.TRAINER.DISTILL == "cosine":
            text, images = 1 - (g * q).sum(dim=-1).mean(), 1 - (f * f_0).sum(dim=-1).mean()
        else:
            text, images = F.mse_loss(g, q), F.mse_loss(f, f_0)
        return {"ce": F.cross_entropy(z, label), "cos_text": weight * text, "cos_image": weight * images}, z
