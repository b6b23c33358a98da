"""OrthSR: OrthCR's later variant, with self-regularization and Cutout guided by attention.

Li et al., "Enhancing Robustness of Vision-Language Models through Orthogonality Learning and Self-Regularization"
(arXiv 2407.08374). Only its abstract was available; docs/methods/OrthSR.md has the choices that it leaves open.

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
    """Return the attention of the class token in the frozen CLIP's last block.

    Args:
        encoder: CLIP's image encoder, a ViT.
        image: float [B, 3, H, W].

    Returns:
        float32 [B, patches]; each row sums to 1.
    """
    last_block = f"image_{len(encoder.transformer.resblocks) - 1}_"
    outputs = {}

    def record(place, x, weight, bias):
        y = F.linear(x, weight, bias)
        if place in (last_block + "q", last_block + "k"):
            outputs[place[-1]] = y
        return y

    encoder(image, linear=record)
    heads = encoder.transformer.resblocks[-1].attn.num_heads
    q, k = (wide(outputs[name]).unflatten(-1, (heads, -1)) for name in "qk")  # [B, tokens, heads, d]
    scores = torch.einsum("bhd,bthd->bht", q[:, 0], k) / q.shape[-1] ** 0.5
    attention = scores.softmax(dim=-1).mean(dim=1)[:, 1:]  # without the attention of the class token to itself
    return attention / attention.sum(dim=-1, keepdim=True)


def cut_out(image: torch.Tensor, attention: torch.Tensor, holes: int, length: int) -> torch.Tensor:
    """Return the images with squares set to zero, the mean colour, around patches drawn by `attention`.

    The border may cut off a part of a square, as with Dassl's Cutout.

    Args:
        image: float [B, 3, H, W].
        attention: probability of each patch, float [B, patches].
        holes: squares per image.
        length: side of a square, in pixels.
    """
    side = int(attention.shape[1] ** 0.5)
    patch = image.shape[-1] // side
    centres = torch.multinomial(attention, holes, replacement=True)  # patch numbers [B, holes]
    pixels = torch.arange(image.shape[-1], device=image.device)

    def covered(k):  # whether the hole around row or column k of the patches covers each pixel: [B, holes, H or W]
        start = (k * patch + patch // 2 - length // 2).unsqueeze(-1)
        return (pixels >= start) & (pixels < start + length)

    hole = covered(centres // side).unsqueeze(-1) & covered(centres % side).unsqueeze(-2)
    return image.masked_fill(hole.any(dim=1).unsqueeze(1), 0)


@TRAINER_REGISTRY.register()
class OrthSR(OrthCR):
    """Orthogonal fine-tuning with self-regularization."""

    defaults = OrthCR.defaults | {
        "REG": Key("self_kl", choices=REGULARIZERS),
        "ATTENTIVE": True,  # whether to cut holes around patches drawn by attention; False: OrthCR with self_kl
    }

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
                f"{self.key('ATTENTIVE')} needs the attention of a class token, which a ResNet does not have: "
                f"take a ViT, or set it to False"
            )
        return super().build_classifier(clip_model, classnames)

    def losses(self, image, label):
        if self.node.ATTENTIVE:
            holes = self.cfg.INPUT.CUTOUT_N, self.cfg.INPUT.CUTOUT_LEN
            image = cut_out(image, class_attention(self.model.image_encoder, image), *holes)
        return super().losses(image, label)
