"""MMRL (Guo and Gu 2025, "MMRL: Multi-Modal Representation Learning for Vision-Language Models", CVPR;
github.com/yunncheng/MMRL).

n tokens R of dimension d are shared by both encoders. Each listed block j has its own linear maps of them:

    V_j = R A_j + a_j   (image),       T_j = R B_j + b_j   (text)

In the first listed block they are inserted behind the class token and behind the start of text; in the further ones
they take the place of what the blocks before made of them; elsewhere they flow on. With the features f of the class
token, g of the text, both through CLIP's own projections, f_r = W_r^T mean(outputs of the n tokens) with a trained W_r,
and f_0, g_0 of the frozen CLIP, all of unit length:

    z = 100 f g^T,   z_r = 100 f_r g^T
    L = alpha CE(z, y) + (1 - alpha) CE(z_r, y) + lambda (1 - mean f.f_0) + lambda (1 - mean g.g_0)

The classes and the data set of the training are told apart by alpha z + (1 - alpha) z_r, others by z alone, which keeps
what CLIP knows.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer
from .shared.classes import class_ids
from .shared.classifier import ClipClassifier
from .shared.console import say
from .shared.deep import PublishedLearner, check_reach
from .shared.encoders import layer_norm, normalize
from .shared.keys import Key
from .shared.prompts import fill_template, template_for, tokenize

TASKS = ["", "B2N", "FS", "CD"]
ASCENDING = "one or more, in ascending order", lambda layers: 0 < len(layers) and list(layers) == sorted(set(layers))
REG_WEIGHTS = {  # lambda by data set, as the authors set it
    "StanfordCars": 7.0,
    "FGVCAircraft": 6.0,
    "SUN397": 6.0,
    "DescribableTextures": 6.0,
    "Food101": 5.0,
    "OxfordFlowers": 4.0,
    "UCF101": 3.0,
    "ImageNet": 0.5,
    "Caltech101": 0.5,
    "OxfordPets": 0.2,
    "EuroSAT": 0.01,
}


class MultiModalRepresentationLearner(PublishedLearner, nn.Module):
    """R, A_j, B_j and W_r, by the original's names; all A_j are equal at the start, and all B_j.

    Args:
        node: config node of MMRL.
        widths: of the image's tokens, of the text's tokens, of CLIP's features.
        names: what tells the classes of this data set from others; the checkpoint keeps a number for each.
    """

    published = {r"representation_learner\.(compound_.*)": r"\1", r"image_encoder\.(proj_rep)": r"\1"}

    def __init__(self, node, widths: tuple[int, int, int], names: list[str]):
        super().__init__()
        image, text, features = widths
        self.blocks = [layer - 1 for layer in node.REP_LAYERS]
        self.compound_rep_tokens = nn.Parameter(0.02 * torch.randn(node.N_REP_TOKENS, node.REP_DIM))
        for name, width in (("v", image), ("t", text)):
            first = nn.Linear(node.REP_DIM, width)
            maps = nn.ModuleList([copy.deepcopy(first) for _ in self.blocks])
            self.add_module(f"compound_rep_tokens_r2{name}proj", maps)
        self.proj_rep = nn.Parameter(image**-0.5 * torch.randn(image, features))
        self.names, self.trained_on_these = names, True  # the latter until a checkpoint says otherwise
        self.register_buffer("classes", class_ids(names))

    def vision(self) -> dict[int, torch.Tensor]:
        """{block j: V_j [n, width]}."""
        return self.of(self.compound_rep_tokens_r2vproj)

    def text(self) -> dict[int, torch.Tensor]:
        """{block j: T_j [n, width]}."""
        return self.of(self.compound_rep_tokens_r2tproj)

    def of(self, maps: nn.ModuleList) -> dict[int, torch.Tensor]:
        return {j: f(self.compound_rep_tokens) for j, f in zip(self.blocks, maps, strict=True)}

    def load_state_dict(self, state_dict, *args, **kwargs):
        state = {"classes": self.classes[:0], **self.renamed(state_dict)}  # the original's does not say
        self.classes = torch.empty_like(state["classes"], device=self.classes.device)  # as many as there are
        done = super().load_state_dict(state, *args, **kwargs)
        self.trained_on_these = bool(torch.isin(class_ids(self.names), self.classes.cpu()).all())
        return done


class CustomCLIP(ClipClassifier):
    """CLIP with the tokens of a `MultiModalRepresentationLearner`.

    Args:
        dataset: registered name; gives the template.
        fused: whether an evaluation mixes in z_r; None: on the classes and the data set trained on.
    """

    def __init__(self, node, clip_model, classnames: list[str], dataset: str, fused: bool | None = None):
        template = template_for(dataset)
        super().__init__(clip_model, classnames, [template])
        self.logit_scale.fill_(100)  # whatever CLIP's own
        self.alpha, self.fused = node.ALPHA, fused
        tokens = tokenize(fill_template(template, classnames), self.text_encoder.context_length)
        self.register_buffer("tokens", tokens.to(self.logit_scale.device), persistent=False)
        widths = (clip_model.visual.conv1.out_channels, *clip_model.text_projection.shape)
        names = [f"{dataset}: {name}" for name in classnames]
        self.representation_learner = MultiModalRepresentationLearner(node, widths, names)

    def encode_text(self) -> torch.Tensor:
        return normalize(self.text_encoder(None, self.tokens, deep=self.representation_learner.text(), insert=True))

    def encode_both(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """f and f_r, each float32 [B, d] of unit length, of float [B, 3, H, W]."""
        learner, encoder = self.representation_learner, self.image_encoder
        deep = self.once("image tokens", learner.vision)
        x = encoder.tokens(image, deep=deep, insert=True)[:, : 1 + len(learner.compound_rep_tokens)]
        x = layer_norm(encoder.ln_post, x)
        return normalize(x[:, 0] @ encoder.proj), normalize(x[:, 1:].mean(dim=1) @ learner.proj_rep)

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        return self.encode_both(image)[0]

    def fuse(self, z: torch.Tensor, z_r: torch.Tensor) -> torch.Tensor:
        return self.alpha * z + (1 - self.alpha) * z_r

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if not (self.representation_learner.trained_on_these if self.fused is None else self.fused):
            return super().forward(image)
        (f, f_r), g = self.encode_both(image), self.once("text", self.encode_text)
        return self.fuse(self.logits(f, g), self.logits(f_r, g))


@TRAINER_REGISTRY.register()
class MMRL(ClipTrainer):
    """Multi-modal representation learning."""

    defaults = ClipTrainer.defaults | {
        "ALPHA": Key(0.7, low=0, high=1),  # alpha
        "REG_WEIGHT": Key(None, of=float, low=0, none=True),  # lambda; None = the authors' of the data set, else 1
        "N_REP_TOKENS": Key(5, low=1),  # n
        "REP_LAYERS": Key([6, 7, 8, 9, 10, 11, 12], low=1, rule=ASCENDING),  # blocks j, counted from 1
        "REP_DIM": Key(512, low=1),  # d; the authors have 2048 for EuroSAT
    }
    root = {"TASK": Key("", choices=TASKS)}  # told, z_r is mixed in where the original does; "" = where it was trained
    learner = "representation_learner"
    registered = "MultiModalRepresentationLearner"

    def build_classifier(self, clip_model, classnames):
        cfg, node = self.cfg, self.node
        for encoder in ("image", "text"):
            check_reach(clip_model, cfg.MODEL.BACKBONE.NAME, encoder, max(node.REP_LAYERS), self.key("REP_LAYERS"))
        return CustomCLIP(node, clip_model, classnames, cfg.DATASET.NAME, self.fused())

    def fused(self) -> bool | None:
        """Whether the original, told the TASK, evaluates with z_r."""
        data = self.cfg.DATASET
        rule = {"B2N": data.get("SUBSAMPLE_CLASSES") == "base", "FS": True, "CD": data.NAME == "ImageNet"}
        return rule.get(self.cfg.TASK)

    def fit(self):
        name, given = self.cfg.DATASET.NAME, self.node.REG_WEIGHT
        if given not in (None, REG_WEIGHTS.get(name, given)):  # as the 1 of the original's YAMLs, which it ignores
            own = f"for {name} the authors have {REG_WEIGHTS[name]:g}, whatever their YAML says"
            say(f"{self.key('REG_WEIGHT')} is {given:g}: {own}; leave it out to take that")

    def losses(self, image, label):
        model, node = self.model, self.node
        weight = REG_WEIGHTS.get(self.cfg.DATASET.NAME, 1.0) if node.REG_WEIGHT is None else node.REG_WEIGHT
        (f, f_r), g = model.encode_both(image), model.encode_text()
        z, z_r = model.logits(f, g), model.logits(f_r, g)
        return {
            "ce": node.ALPHA * F.cross_entropy(z, label),
            "ce_rep": (1 - node.ALPHA) * F.cross_entropy(z_r, label),
            "cos_image": weight * (1 - (f * model.frozen_image(image)).sum(dim=-1).mean()),
            "cos_text": weight * (1 - (g * model.frozen_text).sum(dim=-1).mean()),
        }, model.fuse(z, z_r)
