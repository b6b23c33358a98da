"""OrthCR: orthogonal fine-tuning of CLIP with cross-regularization.

Every chosen weight W (out x in) of the frozen CLIP's transformer blocks is rotated on its input side:

    W' = W R,   R = blockdiag(R_1 ... R_m),   R_i = (I + Q_i)^-1 (I - Q_i),   Q_i = -Q_i^T          (1, Cayley)

Only the strict upper triangles of the Q_i are trained, from zero: training starts at CLIP itself. R is orthogonal
whatever Q is, so the rows of W keep their norms and pairwise angles, and W keeps its singular values.

With tuned features f, g, those of the frozen CLIP f0, g0 (all of unit length), and its logit scale s:

    z   = s f  g^T       tuned image  x tuned text
    z_v = s f  g0^T      tuned image  x frozen text
    z_t = s f0 g^T       frozen image x tuned text
    z_0 = s f0 g0^T      zero-shot CLIP, the anchor ("bypass": no gradient),  p_0 = softmax(z_0 / tau)

    L = CE(z, y) + lambda * mean of the terms of REG                                                (2)

    cross_kl   KL(p_0 || softmax(z_v / tau)),  KL(p_0 || softmax(z_t / tau))
    cross_ce   CE(z_v, y),  CE(z_t, y)
    self_kl    KL(p_0 || softmax(z / tau))     (OrthSR)
    none       no term: plain orthogonal fine-tuning
"""

from collections import defaultdict

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import check_availability

from .base import ClipTrainer
from .shared.classifier import ClipClassifier, normalize
from .shared.clip_model import is_vit
from .shared.text import fill_template, template_for, tokenize

ENCODERS = ["image", "text"]
WEIGHTS = ["q", "k", "v", "out", "c_fc", "c_proj"]
REGULARIZERS = ["cross_kl", "cross_ce", "self_kl", "none"]


# -------------------------------------------------------------------- equation (1)


def cayley(upper: torch.Tensor, b: int) -> torch.Tensor:
    """R = (I + Q)^-1 (I - Q), one batched solve.

    Args:
        upper: strict upper triangles of the skew-symmetric Q, row by row, float [m, b (b - 1) / 2].
        b: block size.

    Returns:
        Orthogonal matrices [m, b, b] of the dtype given; exactly I for Q = 0.
    """
    row, col = torch.triu_indices(b, b, offset=1, device=upper.device)
    q = upper.new_zeros(upper.shape[0], b, b)
    q[:, row, col] = upper
    q = q - q.mT
    eye = torch.eye(b, dtype=upper.dtype, device=upper.device)
    r = torch.linalg.solve_ex(eye + q, eye - q)[0]  # without a check that would wait for the GPU
    # I + Q is never singular, but for a large Q the solve loses digits: two Newton-Schulz steps towards the nearest
    # orthogonal matrix bring R^T R - I back to rounding
    for _ in range(2):
        r = r @ (1.5 * eye - 0.5 * r.mT @ r)
    return r


def rotate(weight: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """W R for block-diagonal R: weight [out, m b], r [m, b, b] -> [out, m b]."""
    m, b, _ = r.shape
    return torch.einsum("omi,mij->omj", weight.view(-1, m, b), r).reshape(weight.shape)


class Rotations(nn.Module):
    """The trained tensors: one [m, b (b - 1) / 2] of zeros for each name; `sizes` gives (m, b) of each."""

    def __init__(self, sizes: dict[str, tuple[int, int]]):
        super().__init__()
        self.sizes = sizes
        self.upper = nn.ParameterDict({name: torch.zeros(m, b * (b - 1) // 2) for name, (m, b) in sizes.items()})

    def forward(self, names: list[str]) -> dict[str, torch.Tensor]:
        """R [m, b, b] by name, in fp32 or more whatever the autocast; all blocks of one size in one solve."""
        by_size, rotations = defaultdict(list), {}
        for name in names:
            by_size[self.sizes[name][1]].append(name)
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            for b, group in by_size.items():
                blocks = cayley(torch.cat([self.upper[name] for name in group]), b)
                rotations.update(zip(group, blocks.split([self.sizes[name][0] for name in group]), strict=True))
        return rotations


# -------------------------------------------------------------------- equation (2)


def regularizer(kind: str, z, z_v, z_t, z_0, label: torch.Tensor, tau: float) -> torch.Tensor:
    """The mean of the terms of `kind` in (2); logits float [B, n_cls], label int64 [B] -> scalar."""

    def kl(student):
        p_0 = F.softmax(z_0 / tau, dim=-1)
        return F.kl_div(F.log_softmax(student / tau, dim=-1), p_0, reduction="batchmean")

    if kind == "cross_kl":
        return (kl(z_v) + kl(z_t)) / 2
    if kind == "cross_ce":
        return (F.cross_entropy(z_v, label) + F.cross_entropy(z_t, label)) / 2
    return kl(z)  # self_kl


# -------------------------------------------------------------------- the tuned CLIP


class OrthogonalCLIP(ClipClassifier):
    """One CLIP in memory: called with the rotated weights it is tuned, called without them it is the frozen bypass."""

    def __init__(self, node, clip_model, classnames: list[str], template: str):
        super().__init__(clip_model)
        self.encoders = {"image": self.image_encoder, "text": self.text_encoder}
        self.places = {}  # name of a rotated weight -> (encoder, name of the parameter, its rows)
        for which in node.ENCODERS:
            self.places |= find_weights(which, self.encoders[which], node.LAYERS, node.WEIGHTS)
        self.rotations = Rotations({n: block_sizes(n, self.weight(n).shape[1], node.BLOCK_SIZE) for n in self.places})
        tokens = tokenize(fill_template(template, classnames)).to(self.logit_scale.device)
        self.register_buffer("tokens", tokens, persistent=False)
        with torch.no_grad():  # the frozen side of the text never changes: once per run
            frozen = normalize(self.text_encoder(None, tokens))
        self.register_buffer("frozen_text", frozen, persistent=False)
        self.energies: dict[str, torch.Tensor] = {}  # of the frozen weights, see `drift`

    def weight(self, name: str) -> torch.Tensor:
        """The frozen W that `name` stands for; a view."""
        which, parameter, rows = self.places[name]
        return self.encoders[which].get_parameter(parameter)[rows]

    def rotated(self, *encoders: str) -> dict[str, dict[str, torch.Tensor]]:
        """For each encoder named: its rotated parameters by name, as `functional_call` and state dicts want them."""
        names = [name for name, (which, _, _) in self.places.items() if which in encoders]
        parts: dict = {which: defaultdict(dict) for which in encoders}
        with torch.autocast(self.logit_scale.device.type, enabled=False):
            for name, r in self.rotations(names).items():
                which, parameter, rows = self.places[name]
                parts[which][parameter][rows.start] = rotate(self.weight(name), r)
        return {which: {p: self._assemble(which, p, rows) for p, rows in parts[which].items()} for which in encoders}

    def _assemble(self, which: str, parameter: str, rotated: dict[int, torch.Tensor]) -> torch.Tensor:
        """A whole parameter: the rotated tensor itself, or q, k, v below each other, those not chosen as they are."""
        weight = self.encoders[which].get_parameter(parameter)
        size = len(next(iter(rotated.values())))
        if size == len(weight):
            return rotated[0]
        return torch.cat([rotated.get(start, weight[start : start + size]) for start in range(0, len(weight), size)])

    def tuned(self, which: str, weights: dict[str, torch.Tensor], *inputs) -> torch.Tensor:
        """f or g: unit-length features of an encoder called with its rotated weights."""
        return normalize(functional_call(self.encoders[which], weights, inputs))

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        weights = self.once("image weights", lambda: self.rotated("image"))
        return self.tuned("image", weights["image"], image)

    def encode_text(self) -> torch.Tensor:
        weights = self.rotated("text")["text"]
        return self.tuned("text", weights, None, self.tokens) if weights else self.frozen_text

    def all_logits(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """z, z_v, z_t, z_0 of (2), each float32 [B, n_cls]."""
        weights, g_0 = self.rotated("image", "text"), self.frozen_text
        f = self.tuned("image", weights["image"], image)
        g = self.tuned("text", weights["text"], None, self.tokens) if weights["text"] else g_0
        with torch.no_grad():
            f_0 = super().encode_image(image) if weights["image"] else f
        return self.logits(f, g), self.logits(f, g_0), self.logits(f_0, g), self.logits(f_0, g_0)

    def merged(self) -> dict[str, dict[str, torch.Tensor]]:
        """The rotated weights to write into a plain CLIP: by encoder, then by parameter name, detached."""
        with torch.no_grad():
            return self.rotated("image", "text")

    @torch.no_grad()
    def drift(self) -> tuple[float, float]:
        """(largest |R^T R - I|, largest relative change of the hyperspherical energy of a rotated weight's rows)."""
        errors, energies = [], []
        for name, r in self.rotations(list(self.places)).items():
            errors.append((r.mT @ r - torch.eye(r.shape[-1], device=r.device)).abs().max())
            if name not in self.energies:
                self.energies[name] = hyperspherical_energy(self.weight(name))
            energies.append((hyperspherical_energy(rotate(self.weight(name), r)) / self.energies[name] - 1).abs())
        return torch.stack(errors).max().item(), torch.stack(energies).max().item()  # NaN stays NaN


def find_weights(which: str, encoder: nn.Module, layers, kinds) -> dict[str, tuple[str, str, slice]]:
    """Where the chosen weights of an encoder lie: name -> (encoder, name of the parameter, its rows).

    Raises:
        ValueError: a layer that the encoder does not have.
    """
    blocks = encoder.transformer.resblocks
    outside = [i for i in layers if not -len(blocks) <= i < len(blocks)]
    if outside:
        raise ValueError(
            f"TRAINER.ORTHCR.LAYERS names {outside}, but the {which} encoder has blocks 0 to {len(blocks) - 1}"
        )
    places = {}
    for i in sorted({i % len(blocks) for i in layers} or range(len(blocks))):
        d, block = blocks[i].attn.embed_dim, f"transformer.resblocks.{i}."
        for kind in kinds:
            if kind in ("q", "k", "v"):
                start = "qkv".index(kind) * d
                parameter, rows = "attn.in_proj_weight", slice(start, start + d)
            else:
                parameter = "attn.out_proj.weight" if kind == "out" else f"mlp.{kind}.weight"
                rows = slice(0, None)
            places[f"{which}_{i}_{kind}"] = (which, block + parameter, rows)
    return places


def block_sizes(name: str, width: int, b: int) -> tuple[int, int]:
    """(number of blocks, block size) for `width` inputs; b = 0 means one block."""
    b = b or width
    if width % b:
        fit = [n for n in (16, 32, 64, 128, 256) if width % n == 0]
        raise ValueError(
            f"TRAINER.ORTHCR.BLOCK_SIZE {b} does not divide the {width} inputs of {name}: take one of {fit} or 0"
        )
    return width // b, b


def hyperspherical_energy(weight: torch.Tensor, rows: int = 512) -> torch.Tensor:
    """Sum of 1 / |w_i - w_j| over pairs of unit-length rows (Liu et al. 2018), of the first `rows` ones, in fp64."""
    unit = F.normalize(weight[:rows].double(), dim=-1)
    return (1 / F.pdist(unit).clamp(min=1e-9)).sum()  # two equal rows must not make it infinite


@TRAINER_REGISTRY.register()
class OrthCR(ClipTrainer):
    """Orthogonal fine-tuning with cross-regularization."""

    defaults = {
        "ENCODERS": ["image", "text"],  # both: the cross terms of (2) tie each to the other one's frozen side
        "LAYERS": [],  # blocks to rotate, e.g. [-2, -1]; [] = all: every block starts at the identity, none is risky
        "WEIGHTS": WEIGHTS,  # of each block; all: rotations are cheap next to the forward pass
        "BLOCK_SIZE": 64,  # b of (1); 64: a head's width, and a cheap solve. 0 = one full block, slow on a ViT-B
        "REG": "cross_kl",  # of (2); the abstract's words, with zero-shot CLIP as teacher, not the labels again
        "LAMBDA": 1.0,  # weight of the regularizer in (2); 1: as much as the cross-entropy. Tuned values: the YAMLs
        "TAU": 1.0,  # temperature of the KL terms; 1: CLIP's own confidence, more: its ranking rather than its choice
        "TEMPLATE": "",  # prompt; "" = the data set's own, so that the anchor is the zero-shot CLIP people report
        "MONITOR": True,  # write the orthogonality error and the energy drift to TensorBoard each epoch
        "PREC": "amp",  # fp32, amp or bf16 for the encoders; (1) and (2) are always fp32
    }
    learner = "rotations"

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        node = cfg.TRAINER.ORTHCR
        check_availability(node.REG, REGULARIZERS)
        for given, known in ((node.ENCODERS, ENCODERS), (node.WEIGHTS, WEIGHTS)):
            for name in given:
                check_availability(name, known)
        if not all(isinstance(i, int) for i in node.LAYERS):
            raise ValueError(f"TRAINER.ORTHCR.LAYERS is {list(node.LAYERS)}, but takes whole numbers, e.g. [0, -1]")
        if not node.ENCODERS or not node.WEIGHTS:
            raise ValueError("TRAINER.ORTHCR.ENCODERS and WEIGHTS must name at least one each: else nothing is trained")
        if node.LAMBDA < 0 or node.TAU <= 0 or node.BLOCK_SIZE < 0 or node.BLOCK_SIZE == 1:
            raise ValueError(
                "TRAINER.ORTHCR wants LAMBDA >= 0, TAU > 0 and BLOCK_SIZE 0 or >= 2 (a 1 x 1 rotation is 1)"
            )

    def build_classifier(self, clip_model, classnames):
        if "image" in self.node.ENCODERS and not is_vit(clip_model):
            raise ValueError(
                f"{self.cfg.MODEL.BACKBONE.NAME} is a ResNet: its image encoder has no transformer blocks to "
                f"rotate; take a ViT, or tune the text side alone with TRAINER.ORTHCR.ENCODERS \"['text']\""
            )
        template = template_for(self.cfg.DATASET.NAME, self.node.TEMPLATE)
        return OrthogonalCLIP(self.node, clip_model, classnames, template)

    def losses(self, image, label):
        node = self.node
        if node.REG == "none":  # no bypass to run
            return super().losses(image, label)
        z, z_v, z_t, z_0 = self.model.all_logits(image)
        reg = node.LAMBDA * regularizer(node.REG, z, z_v, z_t, z_0, label, node.TAU)
        return {"ce": F.cross_entropy(z, label), node.REG: reg}, z

    def after_epoch(self):
        if self.node.MONITOR:
            error, energy = self.model.drift()
            self.write_scalar("orthcr/orthogonality_error", error, self.epoch + 1)
            self.write_scalar("orthcr/energy_drift", energy, self.epoch + 1)
        super().after_epoch()
