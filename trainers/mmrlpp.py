"""MMRL++ (Guo and Gu 2025, "MMRL++: Parameter-Efficient and Interaction-Aware Representation Learning").

The original code is github.com/yunncheng/MMRL, `trainers/mmrlpp.py`. MMRL (mmrl.py) with three changes. The maps of the
tokens R share a weight, and each listed block j has a low-rank residual and a bias of its own:

    V_j = R (W + A_j B_j)^T + b_j            W of the image, another one of the text; A_j [d, r], B_j [r, dim R] from 0

From the second listed block on the tokens keep a part of what stands at their places:

    beta V_j + (1 - beta) (outputs of the block before),   and T_j likewise

The projection of the second classifier starts from CLIP's own, which stays frozen:

    f_r = (proj + A B)^T mean(outputs of the n tokens),   B from 0
"""

import math

import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY

from . import mmrl
from .mmrl import MMRL
from .shared.keys import Key

# beta and lambda of the authors, by data set, for base-to-new and few-shot
PUBLISHED = {
    "ImageNet": (0.9, 0.2),
    "FGVCAircraft": (0.9, 2.0),
    "UCF101": (0.9, 3.0),
    "DescribableTextures": (0.9, 7.0),
    "OxfordPets": (0.7, 0.01),
    "StanfordCars": (0.7, 6.0),
    "Caltech101": (0.6, 3.0),
    "SUN397": (0.5, 3.0),
    "OxfordFlowers": (0.4, 7.0),
    "EuroSAT": (0.2, 0.01),
    "Food101": (0.1, 1.0),
}
# beta of the authors with TASK CD, by target; a model of ImageNet is trained with 0.9
CROSS_DATASET_BETA = {
    **dict.fromkeys(["ImageNet", "FGVCAircraft", "UCF101", "ImageNetV2", "ImageNetR"], 0.9),
    **dict.fromkeys(["OxfordPets", "Caltech101"], 0.6),
    **dict.fromkeys(["StanfordCars", "EuroSAT", "Food101"], 0.3),
    "DescribableTextures": 0.5,
    "SUN397": 0.7,
    "OxfordFlowers": 0.4,
    "ImageNetA": 0.8,
    "ImageNetSketch": 0.7,
}


def low_rank(rows: int, r: int, columns: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Return A [rows, r], random, and B [r, columns], zero."""
    a = nn.init.kaiming_uniform_(torch.empty(rows, r), a=math.sqrt(5))
    return nn.Parameter(a), nn.Parameter(torch.zeros(r, columns))


class Residual(nn.Module):
    """A_j, B_j and b_j of a listed block."""

    def __init__(self, rows: int, r: int, columns: int, bias: torch.Tensor):
        super().__init__()
        self.A, self.B = low_rank(rows, r, columns)
        self.bias = nn.Parameter(bias.detach().clone())


class SharedResidualMaps(nn.Module):
    """The maps of one encoder, float [..., dim R] -> [..., width]. All b_j start from the same values."""

    def __init__(self, columns: int, rows: int, r: int, count: int):
        super().__init__()
        first = nn.Linear(columns, rows)
        self.weight = first.weight
        self.srra = nn.ModuleList([Residual(rows, r, columns, first.bias) for _ in range(count)])

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Return the mapped tokens of each listed block."""
        return [tokens @ (self.weight + block.A @ block.B).T + block.bias for block in self.srra]


class RepresentationLearner(mmrl.MultiModalRepresentationLearner):
    """The trained tensors, with the names of the original, and the beta of their training.

    Args:
        node: config node of MMRL++.
        widths, names: see `MultiModalRepresentationLearner`.
    """

    published = {r"representation_learner\.(compound_rep_tokens|srra_.*)": r"\1", r"image_encoder\.(A|B)": r"\1"}

    def add_maps(self, node, image, text, features):
        for name, width in (("v", image), ("t", text)):
            maps = SharedResidualMaps(node.REP_DIM, width, node.RES_LORA_DIM, len(self.blocks))
            self.add_module(f"srra_r2{name}proj", maps)
        self.A, self.B = low_rank(image, node.PROJ_LORA_DIM, features)
        self.register_buffer("beta", torch.tensor(0.0))

    def keep_beta(self, beta: float) -> None:
        """Set the beta of the training, which the checkpoint stores."""
        self.trained_beta = beta
        self.beta.fill_(beta)

    def vision(self):
        return dict(zip(self.blocks, self.srra_r2vproj(self.compound_rep_tokens), strict=True))

    def text(self):
        return dict(zip(self.blocks, self.srra_r2tproj(self.compound_rep_tokens), strict=True))

    def load_state_dict(self, state_dict, *args, **kwargs):
        state = {"beta": self.beta, **self.rename_weights(state_dict)}  # the original does not save it
        result = super().load_state_dict(state, *args, **kwargs)
        self.trained_beta = round(self.beta.item(), 6)  # the tensor is float32
        return result


class CustomCLIP(mmrl.CustomCLIP):
    """CLIP with the tokens of a `RepresentationLearner`."""

    make_learner = RepresentationLearner
    beta: float | None = None  # of this evaluation; None: that of the training

    @property
    def weight(self):
        return self.representation_learner.trained_beta if self.beta is None else self.beta

    def rep_projection(self):
        learner = self.representation_learner
        return self.image_encoder.proj + learner.A @ learner.B


@TRAINER_REGISTRY.register()
class MMRLpp(MMRL):
    """MMRL with shared maps and tokens that keep a part of the block before."""

    defaults = MMRL.defaults | {
        # beta; None = the authors' for the data set, else 0.9; for an evaluation that of its training, and with TASK CD
        # the authors' for the target. A number counts in the evaluation too
        "BETA": Key(None, of=float, low=0, high=1, none=True),
        "REP_DIM": Key(512, low=1),  # dim R, for all data sets
        "RES_LORA_DIM": Key(4, low=1),  # r of A_j and B_j
        "PROJ_LORA_DIM": Key(64, low=1),  # r of A and B
    }
    node_name = "MMRLpp"
    classifier = CustomCLIP

    @property
    def reg_weights(self) -> dict[str, float]:
        weights = {name: weight for name, (_, weight) in PUBLISHED.items()}
        return weights | ({"ImageNet": 0.1} if self.cfg.TASK == "CD" else {})

    def build_classifier(self, clip_model, classnames):
        model = super().build_classifier(clip_model, classnames)
        model.beta = self.node.BETA
        if model.beta is None and self.cfg.TASK == "CD":
            model.beta = CROSS_DATASET_BETA.get(self.cfg.DATASET.NAME, 0.9)
        model.representation_learner.keep_beta(self.training_beta(model))
        return model

    def training_beta(self, model: CustomCLIP) -> float:
        """Return the beta of a training on this data set."""
        return PUBLISHED.get(self.cfg.DATASET.NAME, (0.9,))[0] if model.beta is None else model.beta

    def fit(self):
        super().fit()
        self.model.representation_learner.keep_beta(self.training_beta(self.model))  # not that of MODEL.INIT_WEIGHTS
