"""OrthSR: OrthCR's later variant, with self-regularization and Cutout guided by attention.

Li et al., "Enhancing Robustness of Vision-Language Models through Orthogonality Learning and Self-Regularization"
(arXiv 2407.08374), of which only the abstract was at hand: what it leaves open is as in docs/methods/OrthSR.md.

    L   = CE(z, y) + lambda KL(p_0 || softmax(z / tau))      z, p_0 as in trainers/orthcr.py, both of the cut image
    a   = mean over heads of softmax(q_cls k^T / sqrt(d)), over patches, of the frozen CLIP's last block
    cut = INPUT.CUTOUT_N squares of INPUT.CUTOUT_LEN pixels, each centred at a patch drawn with probability a
"""

import torch
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .base import node_of
from .orthcr import REGULARIZERS, OrthCR
from .shared.backbones import is_vit
from .shared.encoders import ImageEncoder, wide
from .shared.keys import Key


@torch.no_grad()
def class_attention(encoder: ImageEncoder, image: torch.Tensor) -> torch.Tensor:
    """What the class token of the frozen CLIP's last block attends to: images [B, 3, H, W] -> float32 [B, patches]."""
    last, outputs = f"image_{len(encoder.transformer.resblocks) - 1}_", {}

    def keep(place, x, weight, bias):
        y = F.linear(x, weight, bias)
        if place in (last + "q", last + "k"):
            outputs[place[-1]] = y
        return y

    encoder(image, linear=keep)
    heads = encoder.transformer.resblocks[-1].attn.num_heads
    q, k = (wide(outputs[name]).unflatten(-1, (heads, -1)) for name in "qk")  # [B, tokens, heads, d]
    scores = torch.einsum("bhd,bthd->bht", q[:, 0], k) / q.shape[-1] ** 0.5
    attention = scores.softmax(dim=-1).mean(dim=1)[:, 1:]  # without what it pays to itself
    return attention / attention.sum(dim=-1, keepdim=True)


def cut_out(image: torch.Tensor, attention: torch.Tensor, holes: int, length: int) -> torch.Tensor:
    """Images [B, 3, H, W] with squares set to zero, the mean colour, around patches drawn by `attention` [B, patches].

    A hole may be clipped by the border, as Dassl's Cutout is.
    """
    side = int(attention.shape[1] ** 0.5)
    patch = image.shape[-1] // side
    drawn = torch.multinomial(attention, holes, replacement=True)  # [B, holes]
    pixels = torch.arange(image.shape[-1], device=image.device)

    def inside(k):  # whether each pixel of a side is within the hole around patch k: [B, holes, H or W]
        start = (k * patch + patch // 2 - length // 2).unsqueeze(-1)
        return (pixels >= start) & (pixels < start + length)

    hole = inside(drawn // side).unsqueeze(-1) & inside(drawn % side).unsqueeze(-2)
    return image.masked_fill(hole.any(dim=1).unsqueeze(1), 0)


@TRAINER_REGISTRY.register()
class OrthSR(OrthCR):
    """Orthogonal fine-tuning with self-regularization."""

    defaults = OrthCR.defaults | {
        "REG": Key("self_kl", choices=REGULARIZERS),
        "ATTENTIVE": True,  # whether attention says where the holes are; False: OrthCR with self_kl
    }

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        if cfg.TRAINER[node_of(type(self))].ATTENTIVE and "cutout" in cfg.INPUT.TRANSFORMS:
            raise ValueError(
                f'with {self.key("ATTENTIVE")} the trainer cuts the holes: leave "cutout" out of INPUT.TRANSFORMS'
            )

    def build_classifier(self, clip_model, classnames):
        if self.node.ATTENTIVE and not is_vit(clip_model):
            raise ValueError(f"a ResNet has no class token that attends: take a ViT, or {self.key('ATTENTIVE')} False")
        return super().build_classifier(clip_model, classnames)

    def losses(self, image, label):
        if self.node.ATTENTIVE:
            holes = self.cfg.INPUT.CUTOUT_N, self.cfg.INPUT.CUTOUT_LEN
            image = cut_out(image, class_attention(self.model.image_encoder, image), *holes)
        return super().losses(image, label)
