"""MMRL: representation tokens that both encoders share.

Guo and Gu 2025, "MMRL: Multi-Modal Representation Learning for Vision-Language Models", CVPR;
github.com/yunncheng/MMRL.

Both encoders share n tokens R of dimension d. Each listed block j has its own linear maps of R:

    V_j = R A_j + a_j   (image),       T_j = R B_j + b_j   (text)

Before the first listed block these tokens are inserted behind the class token and behind the start of text. Before each
further listed block they replace the tokens at these positions. The other blocks process them like any token.

    f          image feature of the class token, by CLIP's own projection
    g          text feature, by CLIP's own projection
    f_r        W_r^T mean(outputs of the n tokens), with a trained W_r
    f_0, g_0   features of the frozen CLIP

All features have unit length:

    z = 100 f g^T,   z_r = 100 f_r g^T
    L = alpha CE(z, y) + (1 - alpha) CE(z_r, y) + lambda (1 - mean f.f_0) + lambda (1 - mean g.g_0)

On the classes and the data set of the training, an evaluation uses alpha z + (1 - alpha) z_r. On others it uses z
alone, which stays closer to zero-shot CLIP.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer
from .shared.beside_dassl import say
from .shared.classes import class_ids
from .shared.classifier import ClipClassifier
from .shared.deep import PublishedLearner, check_depth
from .shared.encoders import layer_norm, normalize
from .shared.keys import Key
from .shared.prompts import fill_template, template_for
from .shared.siglip import check_class_token, family_of

TASKS = ["", "B2N", "FS", "CD"]
ASCENDING = "one or more, in ascending order", lambda layers: 0 < len(layers) and list(layers) == sorted(set(layers))
REG_WEIGHTS = {  # lambda of the authors, by data set
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
    """The trained tensors R, A_j, B_j and W_r, with the names of the original.

    All A_j start from the same values, and so do all B_j.

    Args:
        node: config node of MMRL.
        widths: width of the image tokens, of the text tokens, and of CLIP's features.
        names: a name for each class that includes its data set; the checkpoint stores a hash of each.

    Attributes:
        trained_on_these: whether `names` are all among the classes of the training.
    """

    published = {r"representation_learner\.(compound_.*)": r"\1", r"image_encoder\.(proj_rep)": r"\1"}

    def __init__(self, node, widths: tuple[int, int, int], names: list[str]):
        super().__init__()
        self.blocks = [layer - 1 for layer in node.REP_LAYERS]
        self.compound_rep_tokens = nn.Parameter(0.02 * torch.randn(node.N_REP_TOKENS, node.REP_DIM))
        self.add_maps(node, *widths)
        self.names, self.trained_on_these = names, True  # loading a checkpoint may set it to False
        self.register_buffer("classes", class_ids(names))

    def add_maps(self, node, image: int, text: int, features: int) -> None:
        """Add A_j, B_j and W_r, for `widths` of the class."""
        for name, width in (("v", image), ("t", text)):
            first = nn.Linear(node.REP_DIM, width)
            maps = nn.ModuleList([copy.deepcopy(first) for _ in self.blocks])
            self.add_module(f"compound_rep_tokens_r2{name}proj", maps)
        self.proj_rep = nn.Parameter(image**-0.5 * torch.randn(image, features))

    def vision(self) -> dict[int, torch.Tensor]:
        """Return {block j: V_j [n, width]}."""
        return self.map_tokens(self.compound_rep_tokens_r2vproj)

    def text(self) -> dict[int, torch.Tensor]:
        """Return {block j: T_j [n, width]}."""
        return self.map_tokens(self.compound_rep_tokens_r2tproj)

    def map_tokens(self, maps: nn.ModuleList) -> dict[int, torch.Tensor]:
        return {j: f(self.compound_rep_tokens) for j, f in zip(self.blocks, maps, strict=True)}

    def load_state_dict(self, state_dict, *args, **kwargs):
        # the original does not save its classes
        state = {"classes": self.classes[:0], **self.rename_weights(state_dict)}
        self.classes = torch.empty_like(state["classes"], device=self.classes.device)  # the number may differ
        result = super().load_state_dict(state, *args, **kwargs)
        self.trained_on_these = bool(torch.isin(class_ids(self.names), self.classes.cpu()).all())
        return result


class CustomCLIP(ClipClassifier):
    """CLIP with the tokens of a `MultiModalRepresentationLearner`.

    Args:
        node: config node of MMRL.
        clip_model: see `ClipClassifier`.
        classnames: see `ClipClassifier`.
        dataset: registered name of the data set, whose template is used.
        fused: whether an evaluation mixes in z_r; None: only on the classes and the data set of the training.
    """

    make_learner = MultiModalRepresentationLearner

    def __init__(self, node, clip_model, classnames: list[str], dataset: str, fused: bool | None = None):
        template = template_for(dataset)
        super().__init__(clip_model, classnames, [template])
        self.logit_scale.fill_(100)  # the constant of the original, in place of CLIP's scale
        self.alpha, self.fused = node.ALPHA, fused
        tokens = self.text_encoder.tokenize(fill_template(template, classnames))
        self.register_buffer("tokens", tokens.to(self.logit_scale.device), persistent=False)
        widths = (clip_model.visual.conv1.out_channels, *clip_model.text_projection.shape)
        names = [f"{dataset}: {name}" for name in classnames]
        self.representation_learner = self.make_learner(node, widths, names)

    @property
    def weight(self) -> float:
        """The weight of the tokens in the blocks after the first listed one; see shared/encoders.py."""
        return 1.0

    def encode_text(self) -> torch.Tensor:
        deep = self.representation_learner.text()
        return normalize(self.text_encoder(None, self.tokens, deep=deep, insert=True, weight=self.weight))

    def encode_both(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return f and f_r, each float32 [B, d] of unit length, for images float [B, 3, H, W]."""
        learner, encoder = self.representation_learner, self.image_encoder
        deep = self.compute_once("image tokens", learner.vision)
        x = encoder.tokens(image, deep=deep, insert=True, weight=self.weight)
        x = layer_norm(encoder.ln_post, x[:, : 1 + len(learner.compound_rep_tokens)])
        return normalize(x[:, 0] @ encoder.proj), normalize(x[:, 1:].mean(dim=1) @ self.rep_projection())

    def rep_projection(self) -> torch.Tensor:
        """Return W_r, float [width, d]."""
        return self.representation_learner.proj_rep

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        return self.encode_both(image)[0]

    def fuse(self, z: torch.Tensor, z_r: torch.Tensor) -> torch.Tensor:
        return self.alpha * z + (1 - self.alpha) * z_r

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        fused = self.representation_learner.trained_on_these if self.fused is None else self.fused
        if not fused:
            return super().forward(image)
        (f, f_r), g = self.encode_both(image), self.compute_once("text", self.encode_text)
        return self.fuse(self.logits(f, g), self.logits(f_r, g))


@TRAINER_REGISTRY.register()
class MMRL(ClipTrainer):
    """Multi-modal representation learning."""

    defaults = ClipTrainer.defaults | {
        "ALPHA": Key(0.7, low=0, high=1),  # alpha
        "REG_WEIGHT": Key(None, of=float, low=0, none=True),  # lambda; None = REG_WEIGHTS for the data set, else 1
        "N_REP_TOKENS": Key(5, low=1),  # n
        "REP_LAYERS": Key([6, 7, 8, 9, 10, 11, 12], low=1, rule=ASCENDING),  # blocks j, counted from 1
        "REP_DIM": Key(512, low=1),  # d; the authors use 2048 for EuroSAT
    }
    # the original's protocol, which decides whether z_r is mixed in; "" = on the classes and data set of the training
    root = {"TASK": Key("", choices=TASKS)}
    classifier = CustomCLIP
    reg_weights = REG_WEIGHTS
    learner = "representation_learner"
    registered = "MultiModalRepresentationLearner"

    def build_classifier(self, clip_model, classnames):
        cfg, node = self.cfg, self.node
        check_class_token(family_of(clip_model), type(self).__name__)
        for encoder in ("image", "text"):
            check_depth(clip_model, cfg.MODEL.BACKBONE.NAME, encoder, max(node.REP_LAYERS), self.key("REP_LAYERS"))
        return self.classifier(node, clip_model, classnames, cfg.DATASET.NAME, self.evaluates_fused())

    def evaluates_fused(self) -> bool | None:
        """Return whether the original evaluates with z_r for the given TASK; None: there is no TASK."""
        data = self.cfg.DATASET
        rule = {"B2N": data.get("SUBSAMPLE_CLASSES") == "base", "FS": True, "CD": data.NAME == "ImageNet"}
        return rule.get(self.cfg.TASK)

    def fit(self):
        name, weight = self.cfg.DATASET.NAME, self.node.REG_WEIGHT
        # the YAMLs of the original have 1, which its code ignores
        if weight is not None and weight != self.reg_weights.get(name, weight):
            published = f"the code of the authors uses {self.reg_weights[name]:g} for {name} and ignores their YAML"
            say(f"{self.key('REG_WEIGHT')} is {weight:g}, but {published}; leave it out to use theirs")

    def losses(self, image, label):
        model, node = self.model, self.node
        weight = self.reg_weights.get(self.cfg.DATASET.NAME, 1.0) if node.REG_WEIGHT is None else node.REG_WEIGHT
        (f, f_r), g = model.encode_both(image), model.encode_text()
        z, z_r = model.logits(f, g), model.logits(f_r, g)
        return {
            "ce": node.ALPHA * F.cross_entropy(z, label),
            "ce_rep": (1 - node.ALPHA) * F.cross_entropy(z_r, label),
            "cos_image": weight * (1 - (f * model.frozen_image(self.frozen_input(image))).sum(dim=-1).mean()),
            "cos_text": weight * (1 - (g * model.frozen_text).sum(dim=-1).mean()),
        }, model.fuse(z, z_r)
