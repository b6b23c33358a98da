"""CLIP's two transformers (Radford et al. 2021): one forward pass for every method, over CLIP's own blocks.

    x <- x + out(attention(q(h), k(h), v(h))),   h = LN(x)
    x <- x + c_proj(gelu(c_fc(h))),              h = LN(x)

Prompts of one class set begin alike, and attention is causal: what they share is encoded once, as a prefix P before
the suffixes S_c of the classes c, all in one sequence (packing.py). Linear maps and LayerNorms see rows; only attention
sees whose they are:

    P:    softmax(q_P k_P^T) v_P                                                      causal
    S_c:  softmax([q_c k_P^T, q_c k_c^T]) [v_P; v_c]                                  P seen by all, S_c causal

Every k_P, v_P is there once, so autograd sums the gradients of all classes in it; the numbers are those of each prompt
alone. What would not fit into memory is encoded in parts and recomputed in the backward pass (memory.py).

A method enters by two seams; nothing is wrapped or patched, and without them this is the frozen CLIP:

    deep      {i: tokens}: before block i these replace as many tokens of x (MaPLe, IVLP, PromptSRC); with `insert`
              those of the first such block are put between the others instead (MMRL)
    linear    linear(place, x, weight, bias) instead of F.linear for q, k, v, out, c_fc and c_proj of every block;
              place is <encoder>_<block>_<map>, for example image_0_q (OrthCR, LoRA, full fine-tuning)
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import ceil

import torch
from clip.model import QuickGELU
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakTensorKeyDictionary

from .memory import blocks_to_recompute, split
from .packing import Groups, Packing, Plan, pack
from .processes import each_its_part

Deep = Mapping[int, torch.Tensor]  # block -> tokens float [n, width] or [N, n, width]
PLANS = WeakTensorKeyDictionary()  # token ids -> those of `TextEncoder.plan`; here, as a module is copied and pickled


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
    groups: Groups = (),
    recompute: int = 0,
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
        groups: (n, s) for n suffixes of s tokens each, which do not see each other; only with `causal`.
        recompute: of so many blocks, the first ones, nothing but the input is kept for the backward pass.

    Raises:
        ValueError: `deep` names a block that is not there, or has more tokens than x has room for.
    """
    outside = sorted(set(deep or ()) - set(range(len(blocks))))
    if outside:
        raise ValueError(f"no block {outside} in the {encoder} encoder, which has blocks 0 to {len(blocks) - 1}")
    first = min(deep) if deep and insert else None
    suffixes = sum(n * s for n, s in groups)
    for i, block in enumerate(blocks):
        if deep and i in deep:
            shared = x[:, : x.shape[1] - suffixes]
            shared = replace(shared, deep[i], at, 0 if i == first else deep[i].shape[-2], bool(groups))
            x = torch.cat([shared, x[:, x.shape[1] - suffixes :]], dim=1) if groups else shared
        attend = partial(packed_attention, groups=groups) if groups else partial(sdpa, is_causal=causal)
        run = partial(run_block, block, place=f"{encoder}_{i}_", attend=attend, linear=linear)
        x = checkpoint(run, x, use_reentrant=False) if i < recompute else run(x)
    return x


def run_block(block: nn.Module, x: torch.Tensor, place: str, attend: Callable, linear: Callable) -> torch.Tensor:
    """One residual block; `attend(q, k, v)` of float [N, heads, L, d] says which tokens see which."""
    x = x + attention(block.attn, layer_norm(block.ln_1, x), attend, place, linear)
    c_fc, c_proj = block.mlp.c_fc, block.mlp.c_proj
    h = linear(place + "c_fc", layer_norm(block.ln_2, x), c_fc.weight, c_fc.bias)
    return x + linear(place + "c_proj", activation(block.mlp.gelu, h), c_proj.weight, c_proj.bias)


def activation(gelu: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The block's own; QuickGELU, x sigmoid(1.702 x), as silu(1.702 x) / 1.702, which keeps one tensor and not two."""
    return F.silu(1.702 * x) / 1.702 if type(gelu) is QuickGELU else gelu(x)


def replace(x: torch.Tensor, tokens: torch.Tensor, at: int | None, n: int, shared: bool = False) -> torch.Tensor:
    """x with `tokens` in place of the n tokens from `at` on; `shared`: of prompts, whose ends are not in x."""
    length = x.shape[1] + shared
    if n + 1 > length - (at is not None):  # the class token, or the start and the end of the text, stay
        short = " that all prompts share" * shared
        raise ValueError(f"{n} tokens are to be replaced, which are too many of {x.shape[1]}{short}")
    at = length - n if at is None else at
    return torch.cat([x[:, :at], tokens.to(x.dtype).expand(x.shape[0], -1, -1), x[:, at + n :]], dim=1)


def attention(attn: nn.MultiheadAttention, x: torch.Tensor, attend: Callable, place: str, linear: Callable):
    """`attend` to x float [N, L, width] by every head of width d, then `out`."""
    if linear is frozen:  # q, k and v in one product
        q, k, v = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    else:
        maps = zip("qkv", attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3), strict=True)
        q, k, v = (linear(place + name, x, weight, bias) for name, weight, bias in maps)
    q, k, v = (t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in (q, k, v))  # [N, heads, L, d]
    x = attend(q, k, v).transpose(1, 2).flatten(2)
    return linear(place + "out", x, attn.out_proj.weight, attn.out_proj.bias)


sdpa = F.scaled_dot_product_attention  # softmax(q k^T / sqrt(d)) v


def packed_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: Groups) -> torch.Tensor:
    """Of q, k, v float [N, heads, L, d]: a prefix, then for each (n, s) of `groups` n suffixes of s tokens.

    One softmax over the scores of the prefix and a suffix's own: no k or v is repeated for each class.
    """
    sizes = [n * s for n, s in groups]
    sizes = [q.shape[2] - sum(sizes), *sizes]
    # contiguous: else each product keeps copies of its own, and a part keeps the whole
    (q_p, *q_s), (k_p, *k_s), (v_p, *v_s) = ([p.contiguous() for p in t.split(sizes, dim=2)] for t in (q, k, v))
    out = [sdpa(q_p, k_p, v_p, is_causal=True)] if sizes[0] else []
    for (n, s), q_c, k_c, v_c in zip(groups, q_s, k_s, v_s, strict=True):
        q_c = q_c * q.shape[-1] ** -0.5
        k_c, v_c = k_c.unflatten(2, (n, s)), v_c.unflatten(2, (n, s))  # [N, heads, n, s, d]
        later = torch.full((s, s), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
        scores = [(q_c @ k_p.mT).unflatten(2, (n, s)), q_c.unflatten(2, (n, s)) @ k_c.mT + later]
        to_prefix, to_own = torch.cat(scores, dim=-1).softmax(dim=-1).split([sizes[0], s], dim=-1)
        out.append(to_prefix.flatten(2, 3) @ v_p + (to_own @ v_c).flatten(2, 3))
    return torch.cat(out, dim=2)


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
        self.recomputed: dict[tuple, int] = {}  # blocks, by what is computed

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
        blocks, at = self.transformer.resblocks, 1 if insert else None
        recompute = 0
        if torch.is_grad_enabled():  # else nothing is kept; and ONNX would fix a shape that is asked for
            key = x.shape, linear is not frozen
            if key not in self.recomputed:
                self.recomputed[key] = blocks_to_recompute(x, len(blocks), linear is not frozen)
            recompute = self.recomputed[key]
        return run_blocks(blocks, x, "image", deep=deep, at=at, insert=insert, linear=linear, recompute=recompute)


class TextEncoder(nn.Module):
    """CLIP's text transformer from token embeddings on; the name is CoOp's, the parameters' names are CLIP's.

    Attributes:
        at_once: prompts that are encoded at once; 0: as many as memory has room for.
    """

    at_once = 0

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
        shared: int | None = None,
        deep: Deep | None = None,
        insert: bool = False,
        linear: Callable = frozen,
    ) -> torch.Tensor:
        """Features at the end-of-text tokens, not normalised; several processes share the classes in training.

        Args:
            prompts: embeddings float [..., n, L, width], L <= context_length; None: those of the tokens themselves.
            tokenized_prompts: ids int64 [n, L]; they say where each prompt ends. Not to be changed in place.
            shared: leading positions at which all n prompts are equal. They are read from the first prompt, which gets
                their whole gradient. None: as the ids say; of given `prompts`, 0.
            deep: seam 1, float [n, width] each; replaces the tokens 1 to n, behind the start of text.
            insert: `deep` starts as n tokens more, at those positions.
            linear: seam 2.

        Returns:
            float [..., n, embed_dim].

        Raises:
            ValueError: `deep` reaches beyond what is shared.
        """
        here = partial(self.encode_here, shared=shared, deep=deep, insert=insert, linear=linear)
        return each_its_part(here, prompts, tokenized_prompts)

    def encode_here(self, prompts, tokenized_prompts, shared, deep, insert, linear):
        """`forward` in this process."""
        length, lead = tokenized_prompts.shape[1], torch.Size() if prompts is None else prompts.shape[:-3]
        if prompts is not None:
            prompts, shared = prompts.reshape(-1, *prompts.shape[-3:]).flatten(1, 2), shared or 0
        plan = self.plan(tokenized_prompts, shared, lead.numel(), linear is not frozen)
        encode = partial(self.encode, deep=deep, insert=insert, linear=linear)
        if torch.is_grad_enabled() and (len(plan.packings) > 1 or plan.images < lead.numel()):
            encode = partial(checkpoint, encode, use_reentrant=False)
        features = []
        for packing in plan.packings:
            if prompts is None:
                x = self.token_embedding(tokenized_prompts.flatten()[packing.tokens])[None]
            else:
                x = prompts.index_select(1, packing.tokens)
            x = x + self.positional_embedding[packing.tokens % length]
            features.append(torch.cat([encode(part, packing) for part in x.split(plan.images)]))
        features = torch.cat(features, dim=1).index_select(1, plan.place)
        return features.reshape(*lead, *features.shape[1:])

    def encode(self, x: torch.Tensor, packing: Packing, **seams) -> torch.Tensor:
        """Features [N, classes, embed_dim] of packed embeddings float [N, T, width]."""
        before, blocks = x.shape[1], self.transformer.resblocks
        x = run_blocks(blocks, x, "text", causal=True, at=1, groups=packing.groups, **seams)
        x = x.index_select(1, packing.ends + x.shape[1] - before)  # behind what was inserted
        return layer_norm(self.ln_final, x) @ self.text_projection

    def plan(self, tokens: torch.Tensor, shared: int | None, images: int = 1, changed: bool = False) -> Plan:
        """Of the prompts with these ids [n, L]; made once, so that a step is computed as the step before."""
        plans = PLANS.setdefault(tokens, {})
        layers, width = len(self.transformer.resblocks), self.positional_embedding.shape[1]
        key = shared, images, changed, torch.is_grad_enabled(), self.at_once, layers, width
        if key not in plans:
            ids, n, device = tokens.cpu(), len(tokens), tokens.device
            packings, place = pack(ids, shared, 1, device)
            if self.at_once:
                parts, images = ceil(n / self.at_once), max(1, self.at_once // n)
            else:
                parts, images = split(n, images, len(packings[0].tokens), width, layers, changed, device)
            plans[key] = Plan(*(pack(ids, shared, parts, device) if parts > 1 else (packings, place)), images)
        return plans[key]
