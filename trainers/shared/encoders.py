"""CLIP's two transformers (Radford et al. 2021): one forward pass for every method, over CLIP's own blocks.

    x <- x + out(attention(q(h), k(h), v(h))),   h = LN(x)
    x <- x + c_proj(gelu(c_fc(h))),              h = LN(x)

A method enters by two seams; nothing is wrapped or patched, and without them this is the frozen CLIP:

    deep      {i: tokens}: before block i these replace as many tokens of x (MaPLe, IVLP, PromptSRC); with `insert`
              those of the first such block are put between the others instead (MMRL)
    linear    linear(place, x, weight, bias) instead of F.linear for q, k, v, out, c_fc and c_proj of every block;
              place is <encoder>_<block>_<map>, for example image_0_q (OrthCR, LoRA, full fine-tuning)
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from .processes import each_its_part

Deep = Mapping[int, torch.Tensor]  # block -> tokens float [n, width] or [N, n, width]


def frozen(place: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The linear map as CLIP has it."""
    return F.linear(x, weight, bias)


def run_blocks(
    blocks: nn.Sequential,
    x: torch.Tensor,
    encoder: str,
    causal: bool = False,
    deep: Deep | None = None,
    at: int | None = None,
    insert: bool = False,
    linear: Callable = frozen,
) -> torch.Tensor:
    """Runs x float [N, L, width] through CLIP's residual blocks.

    Args:
        blocks: `transformer.resblocks` of either encoder.
        encoder: "image" or "text", for the names of the places.
        causal: whether a token sees the ones before it only.
        deep: seam 1.
        at: position of the first token that `deep` replaces; None: it replaces the last ones.
        insert: the first tokens of `deep` are put at that position, and replaced by those of later blocks.
        linear: seam 2.

    Raises:
        ValueError: `deep` names a block that is not there, or has more tokens than x has room for.
    """
    outside = sorted(set(deep or ()) - set(range(len(blocks))))
    if outside:
        raise ValueError(f"no block {outside} in the {encoder} encoder, which has blocks 0 to {len(blocks) - 1}")
    first = min(deep) if deep and insert else None
    for i, block in enumerate(blocks):
        if deep and i in deep:
            x = replace(x, deep[i], at, 0 if i == first else deep[i].shape[-2])
        place = f"{encoder}_{i}_"
        x = x + attention(block.attn, layer_norm(block.ln_1, x), causal, place, linear)
        c_fc, c_proj = block.mlp.c_fc, block.mlp.c_proj
        h = linear(place + "c_fc", layer_norm(block.ln_2, x), c_fc.weight, c_fc.bias)
        x = x + linear(place + "c_proj", block.mlp.gelu(h), c_proj.weight, c_proj.bias)
    return x


def replace(x: torch.Tensor, tokens: torch.Tensor, at: int | None, n: int) -> torch.Tensor:
    """x with `tokens` in place of the n tokens from `at` on."""
    length = x.shape[1]
    if n + 1 > length - (at is not None):  # the class token, or the start and the end of the text, stay
        raise ValueError(f"{n} tokens are to be replaced, which are too many of {length}")
    at = length - n if at is None else at
    return torch.cat([x[:, :at], tokens.to(x.dtype).expand(x.shape[0], -1, -1), x[:, at + n :]], dim=1)


def attention(attn: nn.MultiheadAttention, x: torch.Tensor, causal: bool, place: str, linear: Callable) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v of x float [N, L, width] for every head of width d, then `out`."""
    if linear is frozen:  # q, k and v in one product
        q, k, v = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    else:
        maps = zip("qkv", attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3), strict=True)
        q, k, v = (linear(place + name, x, weight, bias) for name, weight, bias in maps)
    q, k, v = (t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in (q, k, v))  # [N, heads, L, d]
    x = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
    return linear(place + "out", x, attn.out_proj.weight, attn.out_proj.bias)


def layer_norm(ln: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    """In fp32 whatever the autocast, as OpenAI's."""
    return F.layer_norm(wide(x), ln.normalized_shape, ln.weight, ln.bias, ln.eps).to(x.dtype)


def normalize(features: torch.Tensor) -> torch.Tensor:
    """Rows of unit length, in fp32."""
    return F.normalize(wide(features), dim=-1)


def wide(x: torch.Tensor) -> torch.Tensor:
    """In fp32 if it was in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class ImageEncoder(nn.Module):
    """CLIP's vision transformer; parameters have the names that they have in `clip_model.visual`."""

    def __init__(self, visual):
        super().__init__()
        self.conv1, self.transformer = visual.conv1, visual.transformer
        self.class_embedding, self.positional_embedding = visual.class_embedding, visual.positional_embedding
        self.ln_pre, self.ln_post, self.proj = visual.ln_pre, visual.ln_post, visual.proj

    def forward(
        self,
        image: torch.Tensor,
        context: torch.Tensor | None = None,
        deep: Deep | None = None,
        linear: Callable = frozen,
    ) -> torch.Tensor:
        """Features float [B, embed_dim] at the class token, not normalised; arguments as of `tokens`."""
        x = self.tokens(image, context, deep, linear=linear)
        return layer_norm(self.ln_post, x[:, 0]) @ self.proj

    def tokens(
        self,
        image: torch.Tensor,
        context: torch.Tensor | None = None,
        deep: Deep | None = None,
        insert: bool = False,
        linear: Callable = frozen,
    ) -> torch.Tensor:
        """All tokens after the last block, before ln_post, the class token first: float [B, L, width].

        Args:
            image: float [B, 3, H, W].
            context: prompts float [n, width] or [B, n, width], which follow the patches without a position.
            deep: seam 1; replaces the last n tokens.
            insert: `deep` starts as n tokens more, at the positions 1 to n, behind the class token, and stays there.
            linear: seam 2.
        """
        x = wide(self.conv1(image)).flatten(2).mT  # [B, patches, width]; what blocks add up is in fp32, as the text's
        x = torch.cat([self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
        x = x + self.positional_embedding.to(x.dtype)
        if context is not None:
            x = torch.cat([x, context.to(x.dtype).expand(x.shape[0], -1, -1)], dim=1)
        x = layer_norm(self.ln_pre, x)
        at = 1 if insert else None
        return run_blocks(self.transformer.resblocks, x, "image", deep=deep, at=at, insert=insert, linear=linear)


class TextEncoder(nn.Module):
    """CLIP's text transformer from token embeddings on; the name is CoOp's, the parameters' names are CLIP's."""

    def __init__(self, clip_model):
        super().__init__()
        self.token_embedding, self.transformer = clip_model.token_embedding, clip_model.transformer
        self.positional_embedding, self.ln_final = clip_model.positional_embedding, clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.context_length = len(self.positional_embedding)  # 77, OpenAI's

    def forward(
        self,
        prompts: torch.Tensor | None,
        tokenized_prompts: torch.Tensor,
        deep: Deep | None = None,
        insert: bool = False,
        linear: Callable = frozen,
    ) -> torch.Tensor:
        """Features at the end-of-text tokens, not normalised; several processes share the classes in training.

        Args:
            prompts: embeddings float [..., n, L, width], L <= context_length; None: those of the tokens themselves.
            tokenized_prompts: ids int64 [n, L]; they say where each prompt ends.
            deep: seam 1; replaces the tokens 1 to n, behind the start of text.
            insert: `deep` starts as n tokens more, at those positions.
            linear: seam 2.

        Returns:
            float [..., n, embed_dim].
        """
        return each_its_part(
            partial(self.encode_here, deep=deep, insert=insert, linear=linear), prompts, tokenized_prompts
        )

    def encode_here(self, prompts, tokenized_prompts, deep, insert, linear):
        """`forward` in this process."""
        if prompts is None:
            prompts = self.token_embedding(tokenized_prompts)
        x = (prompts + self.positional_embedding[: prompts.shape[-2]]).flatten(0, -3)  # [N, L, width]
        blocks = self.transformer.resblocks
        x = run_blocks(blocks, x, "text", causal=True, deep=deep, at=1, insert=insert, linear=linear)
        end = tokenized_prompts.argmax(dim=-1).repeat(len(x) // len(tokenized_prompts))  # it has the highest id
        end = end + x.shape[1] - prompts.shape[-2]  # behind what was inserted
        x = x[torch.arange(len(x), device=x.device), end]
        return (layer_norm(self.ln_final, x) @ self.text_projection).unflatten(0, prompts.shape[:-2])
