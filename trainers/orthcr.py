"""OrthCR: orthogonal fine-tuning of CLIP with cross-regularization.

Every chosen weight W (out x in) of the frozen CLIP's transformer blocks is rotated on its input side:

    W' = W R,   R = blockdiag(R_1 ... R_m),   R_i = (I + Q_i)^-1 (I - Q_i),   Q_i = -Q_i^T          (1, Cayley)

Only the strict upper triangles of the Q_i are trained, from zero: training starts at CLIP itself. R is orthogonal
for any Q, so the rows of W keep their norms and pairwise angles, and W keeps its singular values.
shared/rotations.py computes R, and never forms the gradient of a whole weight.

f, g are the tuned features, f0, g0 those of the frozen CLIP, all of unit length. s is CLIP's logit scale:

    z   = s f  g^T       tuned image  x tuned text
    z_v = s f  g0^T      tuned image  x frozen text
    z_t = s f0 g^T       frozen image x tuned text
    z_0 = s f0 g0^T      zero-shot CLIP, the anchor ("bypass": no gradient),  p_0 = softmax(z_0 / tau)

g and g0 have the same template. With DESCRIPTIONS, g0 is the mean over the sentences of a class instead.

    L = CE(z, y) + lambda * mean of the terms of REG                                                (2)

    cross_kl   KL(p_0 || softmax(z_v / tau)),  KL(p_0 || softmax(z_t / tau))
    cross_ce   CE(z_v, y),  CE(z_t, y)
    self_kl    KL(p_0 || softmax(z / tau))     (OrthSR)
    none       no term: plain orthogonal fine-tuning

With ATTENTIVE the trainer cuts holes into the images x, around patches drawn by a probability a of the frozen CLIP:

    a = mean over heads of softmax(q_cls k^T / sqrt(d)), over patches, in the last block      (CUTOUT_BY attention)
    a = softmax(s u g0_y^T) over patches, u the projected patch tokens of unit length, y the label      (similarity)

VIEWS both has the loss of the clean and of the cut image, in one forward pass. Each view has its own z_0:

    L = L(x, LAMBDA) + L(cut x, LAMBDA_CUT)                                                         (3)
"""

import math

import torch
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .base import PRECISIONS, node_of
from .shared.backbones import is_vit
from .shared.console import say
from .shared.cutout import class_attention, cut_out, patch_features
from .shared.keys import DESCRIPTIONS, SOME, TEMPLATE, Decides, Key
from .shared.prompts import template_for
from .shared.rotations import Rotation, Rotations, cayley, max_error, rotate, rotated_linear
from .shared.weights import ALIASES, ENCODERS, WEIGHTS, TunedCLIP
from .tuned import TunedTrainer

REGULARIZERS = ["cross_kl", "cross_ce", "self_kl", "none"]
VIEWS = ["cut", "both"]
CUTOUT_BY = ["attention", "similarity"]


# -------------------------------------------------------------------- the loss, equation (2)


def regularizer(kind: str, z, z_v, z_t, z_0, label: torch.Tensor, tau: float) -> torch.Tensor:
    """Return the mean of the terms of `kind` in (2), a scalar, of logits float [B, n_cls] and label int64 [B]."""

    def kl(student):
        p_0 = F.softmax(z_0 / tau, dim=-1)
        return F.kl_div(F.log_softmax(student / tau, dim=-1), p_0, reduction="batchmean")

    if kind == "cross_kl":
        return (kl(z_v) + kl(z_t)) / 2
    if kind == "cross_ce":
        return (F.cross_entropy(z_v, label) + F.cross_entropy(z_t, label)) / 2
    return kl(z)  # self_kl


# -------------------------------------------------------------------- the tuned CLIP, equation (1)


class OrthogonalCLIP(TunedCLIP):
    """CLIP with W R in place of every chosen W: y = W R x + b, in rows y = (x R^T) W^T + b."""

    def __init__(self, node, clip_model, classnames: list[str], template: str, node_name: str = "TRAINER.ORTHCR"):
        super().__init__(clip_model, classnames, template, node, node_name)
        widths = {name: self.weight(name).shape[1] for name in self.places}
        sizes = block_sizes(widths, node.BLOCK_SIZE, node.N_BLOCKS, node_name)
        self.rotations = Rotations(sizes)
        self.spare: dict[str, list[torch.Tensor]] = {name: [] for name in sizes}  # memory to reuse, see `Rotation`
        self.energies: dict[str, torch.Tensor] = {}  # energies of the frozen weights, see `drift`

    def changes(self, names, s=1.0):
        if not names:
            return {}
        compiled = torch.compiler.is_compiling() or any(e._compiled_call_impl for e in self.encoders.values())
        reuse_memory = torch.is_grad_enabled() and self.logit_scale.device.type == "cpu" and not compiled
        changes = {}
        for name, r in self.rotations(names, s).items():
            changes[name] = Rotation(r, self.spare[name] if reuse_memory else None)
        return changes

    def _apply(self, fn, recurse=True):
        for tensors in self.spare.values():  # the device or the dtype changes
            tensors.clear()
        return super()._apply(fn, recurse)

    def tuned(self, rotation, x, weight, bias):
        return rotated_linear(rotation, x, weight, bias)

    def merge(self, rotation, weight):
        return rotate(weight, rotation.r)

    @torch.no_grad()
    def degrees(self) -> dict[str, float]:
        """Return the mean and the largest rotation angle of the R_i at s = 1, in degrees.

        R_i rotates b / 2 planes by angles theta. The eigenvalues of its symmetric part are the cos(theta), each twice.
        By Q, theta = 2 arctan |eigenvalue of Q|.
        """
        cosines = []
        for name, (_, b) in self.rotations.sizes.items():
            r = cayley(self.rotations.upper[name].detach().cpu().double(), b)
            # 2 cos(theta) in ascending order; for an odd b the last one belongs to the axis
            eigenvalues = torch.linalg.eigvalsh(r + r.mT)
            cosines.append(eigenvalues[:, 0 : b // 2 * 2 : 2].flatten() / 2)
        angles = torch.cat(cosines).clamp(-1, 1).acos().rad2deg()
        return {"mean": angles.mean().item(), "max": angles.max().item()}

    @torch.no_grad()
    def drift(self) -> tuple[float, float]:
        """Return the error of the rotations and the drift of the energies.

        Returns:
            The largest entry of |R^T R - I|, and the largest relative change of a weight's hyperspherical energy.
        """
        rotations, energies = self.rotations(list(self.places)), []
        for name, r in rotations.items():
            if name not in self.energies:
                self.energies[name] = hyperspherical_energy(self.weight(name))
            energies.append((hyperspherical_energy(rotate(self.weight(name), r)) / self.energies[name] - 1).abs())
        return max_error(rotations.values()), torch.stack(energies).max().item()


def block_sizes(widths: dict[str, int], b: int, n: int, node_name: str) -> dict[str, tuple[int, int]]:
    """Return (number of blocks, block size) for each place.

    Args:
        widths: number of inputs, by place.
        b: block size; 0: one block for all inputs.
        n: number of blocks of each place, which has precedence over b; 0: b.
        node_name: full name of the config node, for the message.

    Raises:
        ValueError: b or n does not divide all widths. The message lists values that do.
    """
    common = math.gcd(*widths.values())
    for name, width in widths.items():
        if n and (width % n or width == n):
            numbers = [number for number in (1, 2, 4, 8, 16) if common % number == 0 and common > number]
            problem = f"{node_name}.N_BLOCKS {n} does not divide the {width} inputs of {name} into blocks of 2 or more"
            raise ValueError(f"{problem}: take one of {numbers}")
        if not n and b and width % b:
            sizes = [size for size in (16, 32, 64, 128, 256) if common % size == 0]
            problem = f"{node_name}.BLOCK_SIZE {b} does not divide the {width} inputs of {name}"
            raise ValueError(f"{problem}: take one of {sizes} or 0")
    if n:
        return {name: (n, width // n) for name, width in widths.items()}
    return {name: (width // (b or width), b or width) for name, width in widths.items()}


def hyperspherical_energy(weight: torch.Tensor, rows: int = 512) -> torch.Tensor:
    """Return the sum of 1 / |w_i - w_j| over pairs of unit-length rows (Liu et al. 2018), in fp64.

    Args:
        weight: float [out, in].
        rows: number of leading rows to use.
    """
    unit = F.normalize(weight[:rows].double(), dim=-1)
    return (1 / F.pdist(unit).clamp(min=1e-9)).sum()  # the clamp keeps the sum finite if two rows are equal


@TRAINER_REGISTRY.register()
class OrthCR(TunedTrainer):
    """Orthogonal fine-tuning with cross-regularization."""

    defaults = TunedTrainer.defaults | {
        # encoders to rotate; each cross term of (2) pairs one tuned encoder with the other frozen one
        "ENCODERS": Key(ENCODERS, choices=ENCODERS, rule=SOME),
        # blocks to rotate, for example [-2, -1]; [] = all blocks, which all start at the identity
        "LAYERS": Key([], of=int),
        # weights of each block to rotate; by default all, because rotations are cheap next to the forward pass
        "WEIGHTS": Key(WEIGHTS, choices=WEIGHTS, aliases=ALIASES, rule=SOME),
        # b of (1); 64 is the width of a head, and cheap to invert. 0 = one full block, which is slow on a ViT-B
        "BLOCK_SIZE": Key(64, low=0, rule=("not 1: a 1 x 1 rotation is the number 1", lambda b: b != 1)),
        # m of (1), the number of blocks of each weight whatever its width; 0 = by BLOCK_SIZE
        "N_BLOCKS": Key(0, low=0),
        # regularizer of (2); the default has zero-shot CLIP as its teacher, as in the abstract, and not the labels
        "REG": Key("cross_kl", choices=REGULARIZERS),
        # weight of the regularizer in (2); at 1 it counts as much as the cross-entropy. The YAMLs have tuned values
        "LAMBDA": Key(1.0, low=0, high=10**6),
        # images of the loss: as the loader gives them or, with ATTENTIVE, cut; "both": (3), which needs ATTENTIVE
        "VIEWS": Key("cut", choices=VIEWS),
        # weight of the regularizer of the cut image in (3), where LAMBDA is that of the clean image; None = LAMBDA
        "LAMBDA_CUT": Key(None, of=float, low=0, high=10**6, none=True),
        # whether the trainer cuts INPUT.CUTOUT_N holes of INPUT.CUTOUT_LEN pixels, in place of the transform "cutout"
        "ATTENTIVE": False,
        # probability of the patches around which ATTENTIVE cuts
        "CUTOUT_BY": Key("attention", choices=CUTOUT_BY),
        # temperature of the KL terms; 1 = the confidence of CLIP; above 1 the order of the other classes counts more
        "TAU": Key(1.0, above=0, high=10**6),
        # size of the rotation for any number of steps: the learning rate is REACH / sqrt(steps); 0 = OPTIM.LR
        "REACH": Key(0.0, of=float, low=0),
        # prompt; "" = the data set's template, so that the anchor is the zero-shot CLIP of the literature
        "TEMPLATE": TEMPLATE,
        # sentences of the classes for the frozen side
        **DESCRIPTIONS,
        # whether to write the orthogonality error and the energy drift to TensorBoard each epoch
        "MONITOR": True,
        # precision of the encoders; R of (1) and all of (2) are fp32
        "PREC": Key("amp", choices=PRECISIONS),
    }
    decides = {"REACH": Decides(("OPTIM.LR",)), "N_BLOCKS": Decides(("BLOCK_SIZE",), refused=True)}
    learner = "rotations"
    classifier = OrthogonalCLIP
    angle: dict[str, float] | None = None  # `OrthogonalCLIP.degrees` at the end of training

    def check_node(self, node):
        super().check_node(node)
        attentive = self.key("ATTENTIVE")
        if node.VIEWS == "both" and not node.ATTENTIVE:
            reason = f"needs {attentive} True: a transform leaves no clean image"
            raise ValueError(f"{self.key('VIEWS')} both {reason}")
        if node.LAMBDA_CUT is not None and node.VIEWS == "cut":
            key, views = self.key("LAMBDA_CUT"), self.key("VIEWS")
            raise ValueError(f"{key} has no effect with {views} cut: set {views} both, or {key} None")
        if node.DESCRIPTIONS and node.REG == "none" and node.CUTOUT_BY == "attention":
            reason = f"has no effect with {self.key('REG')} none, which has no frozen side"
            raise ValueError(f"{self.key('DESCRIPTIONS')} (--descriptions) {reason}: leave it out, or set REG")
        if node.CUTOUT_BY != "attention" and not node.ATTENTIVE:
            raise ValueError(f"{self.key('CUTOUT_BY')} {node.CUTOUT_BY} has no effect without {attentive} True: set it")

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        if cfg.TRAINER[node_of(type(self))].ATTENTIVE and "cutout" in cfg.INPUT.TRANSFORMS:
            raise ValueError(
                f'INPUT.TRANSFORMS has "cutout", but with {self.key("ATTENTIVE")} the trainer cuts the holes: '
                f'leave "cutout" out of INPUT.TRANSFORMS'
            )

    def build_classifier(self, clip_model, classnames):
        if self.node.ATTENTIVE and not is_vit(clip_model):
            raise ValueError(
                f"{self.key('ATTENTIVE')} needs the patch tokens of a ViT, which a ResNet does not have: "
                f"take a ViT, or set it to False"
            )
        template = template_for(self.cfg.DATASET.NAME, self.node.TEMPLATE)
        return self.classifier(self.node, clip_model, classnames, template, self.key())

    def optim_cfg(self):
        """Return `cfg.OPTIM` with the learning rate by REACH.

        AdamW moves an entry by about its rate in each step, in either direction. After n steps it has moved by about
        LR sqrt(n), which the rate REACH / sqrt(n) makes independent of n.
        """
        optim = super().optim_cfg()
        if self.node.REACH and self.train_loader_x is not None:  # predict.py has no training data
            steps = optim.MAX_EPOCH * len(self.train_loader_x)
            optim.defrost()
            optim.LR = self.node.REACH / steps**0.5
            if optim.WARMUP_CONS_LR > optim.LR:
                say(f"OPTIM.WARMUP_CONS_LR {optim.WARMUP_CONS_LR:g} is above the learning rate, which is used instead")
                optim.WARMUP_CONS_LR = optim.LR
            rule = f"{self.key('REACH')} {self.node.REACH:g} / sqrt({steps} steps)"
            say(f"Learning rate {optim.LR:.2g} = {rule}; an OPTIM.LR given after it replaces this rate")
        return optim

    def losses(self, image, label):
        """Return the terms of (2), or of (3) with the endings _clean and _cut, and the logits of the first view."""
        node, n = self.node, len(label)
        if node.ATTENTIVE:
            holes = self.cfg.INPUT.CUTOUT_N, self.cfg.INPUT.CUTOUT_LEN
            cut = cut_out(image, self.hole_probability(image, label), *holes)
            image = cut if node.VIEWS == "cut" else torch.cat([image, cut])
        weights = {"": node.LAMBDA}  # of the regularizer, by the ending of a view's terms
        if node.VIEWS == "both":
            weights = {"_clean": node.LAMBDA, "_cut": node.LAMBDA if node.LAMBDA_CUT is None else node.LAMBDA_CUT}
        # without a regularizer the frozen CLIP is not needed
        logits = (self.model(image),) if node.REG == "none" else self.model.all_logits(image)
        terms = {}
        for k, (view, weight) in enumerate(weights.items()):
            z, *others = (of_views[k * n : (k + 1) * n] for of_views in logits)
            terms[f"ce{view}"] = F.cross_entropy(z, label)
            if node.REG != "none":
                terms[node.REG + view] = weight * regularizer(node.REG, z, *others, label, node.TAU)
        return terms, logits[0][:n]

    @torch.no_grad()
    def hole_probability(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Return the probability of each patch to be the centre of a hole, float32 [B, patches], by CUTOUT_BY."""
        if self.node.CUTOUT_BY == "attention":
            return class_attention(self.model.image_encoder, image)
        patches = patch_features(self.model.image_encoder, image)
        return self.model.logits(self.model.frozen_text[label], patches).softmax(dim=-1)

    def before_epoch(self):
        super().before_epoch()
        if isinstance(self.model, OrthogonalCLIP):
            was_exact = self.model.rotations.exact
            error = self.model.rotations.check()
            if self.model.rotations.exact != was_exact:
                steps = "no" if was_exact else "two"
                measurement = f"epoch {self.epoch + 1}: |R^T R - I| is {error:.0e}"
                say(f"{measurement}: {steps} Newton-Schulz steps per rotation from this epoch on")

    def after_epoch(self):
        if self.node.get("MONITOR"):
            error, energy = self.model.drift()
            self.write_scalar("orthcr/orthogonality_error", error, self.epoch + 1)
            self.write_scalar("orthcr/energy_drift", energy, self.epoch + 1)
            for statistic, angle in self.model.degrees().items():
                self.write_scalar(f"orthcr/rotation_degrees_{statistic}", angle, self.epoch + 1)
        super().after_epoch()

    def after_train(self):
        super().after_train()
        if isinstance(self.model, OrthogonalCLIP):
            self.angle = self.model.degrees()
            mean, largest = self.angle["mean"], self.angle["max"]
            say(f"Weights were rotated by {mean:.1f} degrees on average, {largest:.1f} at most")

    def facts(self):
        if not isinstance(self.model, OrthogonalCLIP):
            return super().facts()
        return super().facts() | {"rotation_degrees": self.angle or self.model.degrees()}
