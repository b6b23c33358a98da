"""RegularizedTrainer: the base class of OrthCR, FullFT and BlockFT, with their losses and learning rate.

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
    none       no term

With ATTENTIVE the trainer cuts holes into the images x, around patches drawn by a probability a of the frozen CLIP:

    a = mean over heads of softmax(q k^T / sqrt(d)) over patches, q the class token's in the last block, or the query's
        of the attention pooling                                                              (CUTOUT_BY attention)
    a = softmax(s u g0_y^T) over patches, u the projected patch tokens of unit length, y the label      (similarity)

VIEWS both has the loss of the clean and of the cut image, in one forward pass. Each view has its own z_0:

    L = L(x, LAMBDA) + L(cut x, LAMBDA_CUT)                                                         (3)
"""

import torch
from torch.nn import functional as F

from .base import PRECISIONS, node_of
from .shared.backbones import is_vit
from .shared.beside_dassl import say
from .shared.cutout import class_attention, cut_out, patch_features
from .shared.keys import DESCRIPTIONS, SOME, TEMPLATE, DecidingKey, Key
from .shared.prompts import template_for
from .shared.siglip import check_class_token, family_of
from .shared.weights import ALIASES, ENCODERS, WEIGHTS, TunedCLIP
from .tuned import TunedTrainer

REGULARIZERS = ["cross_kl", "cross_ce", "self_kl", "none"]
VIEWS = ["cut", "both"]
CUTOUT_BY = ["attention", "similarity"]


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


class RegularizedTrainer(TunedTrainer):
    """A TunedTrainer with the loss (2) or (3).

    Attributes:
        classifier: class of the model, a `TunedCLIP` with the arguments of `OrthogonalCLIP`.
    """

    defaults = TunedTrainer.defaults | {
        # encoders to tune; each cross term of (2) pairs one tuned encoder with the other frozen one
        "ENCODERS": Key(ENCODERS, choices=ENCODERS, rule=SOME),
        # blocks to tune, for example [-2, -1]; [] = all
        "LAYERS": Key([], of=int),
        # weights of each block to tune
        "WEIGHTS": Key(WEIGHTS, choices=WEIGHTS, aliases=ALIASES, rule=SOME),
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
        # size of the change for any number of steps: the learning rate is REACH / sqrt(steps); 0 = OPTIM.LR
        "REACH": Key(0.0, of=float, low=0),
        # prompt; "" = the data set's template, so that the anchor is the zero-shot CLIP of the literature
        "TEMPLATE": TEMPLATE,
        # sentences of the classes for the frozen side
        **DESCRIPTIONS,
        # precision of the encoders; the changes of the weights and all of (2) are fp32
        "PREC": Key("amp", choices=PRECISIONS),
    }
    deciding_keys = {"REACH": DecidingKey(("OPTIM.LR",))}
    classifier: type[TunedCLIP]

    def check_node(self, node):
        super().check_node(node)
        attentive_key = self.key("ATTENTIVE")
        if node.VIEWS == "both" and not node.ATTENTIVE:
            reason = f"needs {attentive_key} True: a transform leaves no clean image"
            raise ValueError(f"{self.key('VIEWS')} both {reason}")
        if node.LAMBDA_CUT is not None and node.VIEWS == "cut":
            key, views = self.key("LAMBDA_CUT"), self.key("VIEWS")
            raise ValueError(f"{key} has no effect with {views} cut: set {views} both, or {key} None")
        if node.DESCRIPTIONS and node.REG == "none" and node.CUTOUT_BY == "attention":
            reason = f"has no effect with {self.key('REG')} none, which has no frozen side"
            raise ValueError(f"{self.key('DESCRIPTIONS')} (--descriptions) {reason}: leave it out, or set REG")
        if node.CUTOUT_BY != "attention" and not node.ATTENTIVE:
            problem = f"{self.key('CUTOUT_BY')} {node.CUTOUT_BY} has no effect without {attentive_key} True"
            raise ValueError(f"{problem}: set it, or leave CUTOUT_BY out")

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
        if self.node.CUTOUT_BY == "similarity":
            advice = f"take a CLIP, or {self.key('CUTOUT_BY')} attention"
            check_class_token(family_of(clip_model), f"{self.key('CUTOUT_BY')} similarity", advice)
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
            cut_image = cut_out(image, self.hole_probability(image, label), *holes)
            image = cut_image if node.VIEWS == "cut" else torch.cat([image, cut_image])
        weights = {"": node.LAMBDA}  # of the regularizer, by the ending of a view's terms
        if node.VIEWS == "both":
            weights = {"_clean": node.LAMBDA, "_cut": node.LAMBDA if node.LAMBDA_CUT is None else node.LAMBDA_CUT}
        if node.REG == "none":  # the frozen CLIP is not needed
            logits = (self.model(image if node.ATTENTIVE else self.model_input(image)),)
        else:
            logits = self.model.all_logits(image, image if node.ATTENTIVE else self.frozen_input(image))
        terms = {}
        for k, (view, weight) in enumerate(weights.items()):
            z, *other_terms = (view_terms[k * n : (k + 1) * n] for view_terms in logits)
            terms[f"ce{view}"] = F.cross_entropy(z, label)
            if node.REG != "none":
                terms[node.REG + view] = weight * regularizer(node.REG, z, *other_terms, label, node.TAU)
        return terms, logits[0][:n]

    @torch.no_grad()
    def hole_probability(self, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Return the probability of each patch to be the centre of a hole, float32 [B, patches], by CUTOUT_BY."""
        if self.node.CUTOUT_BY == "attention":
            return class_attention(self.model.image_encoder, image)
        patches = patch_features(self.model.image_encoder, image)
        return self.model.logits(self.model.frozen_text[label], patches).softmax(dim=-1)
