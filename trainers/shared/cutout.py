"""Cutout guided by the frozen CLIP: a probability for each patch of an image, and holes at patches drawn by it."""

import torch
from torch.nn import functional as F

from .encoders import ImageEncoder, layer_norm, normalize, wide


@torch.no_grad()
def class_attention(encoder: ImageEncoder, image: torch.Tensor) -> torch.Tensor:
    """Return the attention to the patches that the feature of the frozen CLIP comes from, a mean over the heads.

    It is the attention of the class token in the last block or, without a class token, of the query of the pooling.

    Args:
        encoder: CLIP's image encoder, a ViT.
        image: float [B, 3, H, W].

    Returns:
        float32 [B, patches]; each row sums to 1.
    """
    pool, blocks = encoder.attn_pool, encoder.transformer.resblocks
    attn, place_of = (blocks[-1].attn, f"image_{len(blocks) - 1}_") if pool is None else (pool.attn, "image_pool_")
    outputs = {}

    def record(place, x, weight, bias):
        y = F.linear(x, weight, bias)
        if place in (place_of + "q", place_of + "k"):
            outputs[place[-1]] = y
        return y

    encoder(image, linear=record)
    q, k = (wide(outputs[name]).unflatten(-1, (attn.num_heads, -1)) for name in "qk")  # [B, tokens, heads, d]
    scores = torch.einsum("bhd,bthd->bht", q[:, 0], k) / q.shape[-1] ** 0.5
    attention = scores.softmax(dim=-1).mean(dim=1)
    if pool is None:
        attention = attention[:, 1:]  # without the attention of the class token to itself
    return attention / attention.sum(dim=-1, keepdim=True)


@torch.no_grad()
def patch_features(encoder: ImageEncoder, image: torch.Tensor) -> torch.Tensor:
    """Return the frozen CLIP's patch tokens, projected as the class token is.

    Args:
        encoder: CLIP's image encoder, a ViT.
        image: float [B, 3, H, W].

    Returns:
        float32 [B, patches, embed_dim], of unit length.
    """
    return normalize(layer_norm(encoder.ln_post, encoder.tokens(image)[:, 1:]) @ encoder.proj)


def cut_out(image: torch.Tensor, probability: torch.Tensor, holes: int, length: int) -> torch.Tensor:
    """Return the images with squares set to zero, the mean colour, around patches that are drawn.

    The border may cut off a part of a square, as with Dassl's Cutout.

    Args:
        image: float [B, 3, H, W].
        probability: probability of each patch, float [B, patches].
        holes: squares per image.
        length: side of a square, in pixels.
    """
    side = int(probability.shape[1] ** 0.5)
    patch = image.shape[-1] // side
    centres = torch.multinomial(probability, holes, replacement=True)  # patch numbers [B, holes]
    pixels = torch.arange(image.shape[-1], device=image.device)

    def covered(k):  # whether the hole around row or column k of the patches covers each pixel: [B, holes, H or W]
        start = (k * patch + patch // 2 - length // 2).unsqueeze(-1)
        return (pixels >= start) & (pixels < start + length)

    hole = covered(centres // side).unsqueeze(-1) & covered(centres % side).unsqueeze(-2)
    return image.masked_fill(hole.any(dim=1).unsqueeze(1), 0)
