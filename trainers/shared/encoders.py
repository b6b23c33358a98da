"""CLIP's two transformers (Radford et al. 2021): one forward pass for all methods, over CLIP's own blocks.

    x <- x + out(attention(q(h), k(h), v(h))),   h = LN(x)
    x <- x + c_proj(gelu(c_fc(h))),              h = LN(x)

The prompts of a class set start with the same tokens, and attention is causal. So the shared tokens are encoded once,
as a prefix P before the suffixes S_c of the classes c, in one sequence (packing.py). Linear maps and LayerNorms process
each token alone. Only attention depends on the prompt that a token belongs to:

    P:    softmax(q_P k_P^T) v_P                                                      causal
    S_c:  softmax([q_c k_P^T, q_c k_c^T]) [v_P; v_c]                                  attends to P, causal within S_c

The results are those of each prompt alone. k_P and v_P exist once, and autograd sums the gradients of all classes in
them. Prompts that do not fit into memory are encoded in parts, and recomputed in the backward pass (memory.py).

A method changes the encoders at three places, the `Seams`. Without them this is the frozen CLIP.

The encoders of other families (siglip.py) run through the same blocks. Where their text attends in both directions,
prompts are encoded one by one, each with its padding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil

import torch
from clip.model import QuickGELU
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakTensorKeyDictionary

from .memory import blocks_to_recompute, split
from .packing import EncodingPlan, Groups, Packing, pack
from .processes import encode_in_parts
from .siglip import AttentionPool, check_causal, family_of
from .tokens import tokenize

# block -> tokens float [n, width]; or [N, n, width] of images, [classes, n, width] of prompts
Deep = Mapping[int, torch.Tensor]
# token ids -> results of `TextEncoder.plan`; not an attribute of the module, which is copied and pickled
PLANS = WeakTensorKeyDictionary()


def frozen_linear(place: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Apply the linear map of the frozen CLIP."""
    return F.linear(x, weight, bias)


@dataclass(frozen=True)
class Seams:
    """The places where a method changes an encoder. The default is the frozen CLIP.

    Attributes:
        deep: {i: tokens}: before block i these tokens replace as many tokens of x (MaPLe, IVLP, PromptSRC). Tokens of
            the text that differ by class end the shared prefix: from that block on each class has its own copy of it
            (TCP). Float [n, width]; or [N, n, width] of images, [classes, n, width] of prompts.
        insert: whether the tokens of the first block in `deep` are inserted instead. Those of later blocks replace them
            (MMRL).
        weight: w: `deep` tokens enter as w tokens + (1 - w) replaced tokens (MMRL++).
        linear: linear(place, x, weight, bias) in place of F.linear for q, k, v, out, c_fc and c_proj of every block;
            place is <encoder>_<block>_<map>, for example image_0_q (OrthCR, LoRA, full fine-tuning).
        beside: beside(place, h), h = LN(x) of the block's input x, is added to the block's output; place is
            <encoder>_<block>, for example image_0. Before the blocks beside("text_input", h) is added to the token
            embeddings h, and beside("image_input", h) to the output h of ln_pre. None: nothing is added (MMA).
    """

    deep: Deep = field(default_factory=dict)
    insert: bool = False
    weight: float = 1.0
    linear: Callable = frozen_linear
    beside: Callable | None = None

    @property
    def change_maps(self) -> bool:
        """A bool: linear maps are changed."""
        return self.linear is not frozen_linear


def run_blocks(
    blocks: nn.Sequential,
    x: torch.Tensor,
    encoder: str,
    seams: Seams,
    causal: bool = False,
    at: int | None = None,
    groups: Groups = (),
    recompute: int = 0,
) -> torch.Tensor:
    """Run x float [N, L, width] through CLIP's residual blocks.

    Args:
        blocks: `transformer.resblocks` of either encoder.
        x: the tokens.
        encoder: "image" or "text", for the names of the places.
        seams: the changes.
        causal: whether a token attends only to itself and the tokens before it.
        at: position of the first token that `seams.deep` replaces; None: it replaces the last ones.
        groups: (n, s) for n suffixes of s tokens each, which do not attend to each other; only with `causal`.
        recompute: number of leading blocks that save only their input for the backward pass.

    Raises:
        ValueError: `deep` names a block that does not exist, or has more tokens than it may replace.
    """
    deep = seams.deep
    outside = sorted(set(deep) - set(range(len(blocks))))
    if outside:
        raise ValueError(f"no block {outside} in the {encoder} encoder, which has blocks 0 to {len(blocks) - 1}")
    first = min(deep) if deep and seams.insert else None
    for i, block in enumerate(blocks):
        if i in deep:
            n = 0 if i == first else deep[i].shape[-2]
            if groups and deep[i].dim() == 3:
                x, groups = separate(x, deep[i], n, groups, seams.weight)
            else:
                shared = x.shape[1] - sum(n * s for n, s in groups)
                front = replace_tokens(x[:, :shared], deep[i], at, n, bool(groups), seams.weight)
                x = torch.cat([front, x[:, shared:]], dim=1) if groups else front
        attend = partial(packed_attention, groups=groups) if groups else partial(sdpa, is_causal=causal)
        run = partial(run_block, block, place=f"{encoder}_{i}", attend=attend, seams=seams)
        x = checkpoint(run, x, use_reentrant=False) if i < recompute else run(x)
    return x


def run_block(block: nn.Module, x: torch.Tensor, place: str, attend: Callable, seams: Seams) -> torch.Tensor:
    """Run one residual block.

    Args:
        block: the block.
        x: float [N, L, width].
        place: its name, <encoder>_<block>.
        attend: attend(q, k, v) of float [N, heads, L, d], the attention with its mask.
        seams: the changes, of which `deep` is done.
    """
    h = layer_norm(block.ln_1, x)
    branch = seams.beside(place, h) if seams.beside else None
    x = x + attention(block.attn, h, attend, f"{place}_", seams)
    c_fc, c_proj = block.mlp.c_fc, block.mlp.c_proj
    h = seams.linear(f"{place}_c_fc", layer_norm(block.ln_2, x), c_fc.weight, c_fc.bias)
    x = x + seams.linear(f"{place}_c_proj", activation(block.mlp.gelu, h), c_proj.weight, c_proj.bias)
    return x if branch is None else x + branch


def add_beside(beside: Callable | None, place: str, x: torch.Tensor) -> torch.Tensor:
    """Return x plus what `beside` gives for it at a place before the blocks."""
    branch = beside(place, x) if beside else None
    return x if branch is None else x + branch


def activation(gelu: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Apply the activation of the block.

    QuickGELU, x sigmoid(1.702 x), is computed as silu(1.702 x) / 1.702: autograd then saves one tensor instead of two.
    """
    return F.silu(1.702 * x) / 1.702 if type(gelu) is QuickGELU else gelu(x)


def replace_tokens(
    x: torch.Tensor, tokens: torch.Tensor, at: int | None, n: int, shared: bool = False, weight: float = 1.0
) -> torch.Tensor:
    """Return x with `tokens` in place of the n tokens from position `at` on.

    Args:
        x: float [N, L, width].
        tokens: float [n, width] or [N, n, width].
        at: None: the last n tokens are replaced.
        n: number of tokens to replace; 0: `tokens` are inserted.
        shared: whether x is the shared part of prompts, without their end.
        weight: of `tokens`; the replaced tokens have the rest.

    Raises:
        ValueError: n is too large; the class token, or the start and the end of the text, cannot be replaced.
    """
    length = x.shape[1] + 1 if shared else x.shape[1]
    protected = 1 if at is None else 2
    if n + protected > length:
        kind = " that all prompts share" if shared else ""
        raise ValueError(f"{n} tokens are to be replaced, which are too many of {x.shape[1]}{kind}")
    at = length - n if at is None else at
    tokens = blend(tokens.to(x.dtype).expand(x.shape[0], -1, -1), x[:, at : at + n], weight)
    return torch.cat([x[:, :at], tokens, x[:, at + n :]], dim=1)


def blend(tokens: torch.Tensor, replaced: torch.Tensor, weight: float) -> torch.Tensor:
    """Return `tokens` [..., n, width] with a weight, and the tokens that they replace, if any, with the rest of it."""
    return tokens if weight == 1 or not replaced.shape[-2] else weight * tokens + (1 - weight) * replaced


def separate(
    x: torch.Tensor, tokens: torch.Tensor, n: int, groups: Groups, weight: float
) -> tuple[torch.Tensor, Groups]:
    """Put tokens of each class in place of the n tokens behind the start of text. Only the start stays shared.

    The rest of the shared tokens is copied to the front of each suffix.

    Args:
        x: packed tokens float [N, T, width].
        tokens: float [classes, m, width], in the order of the suffixes.
        n: number of tokens to replace; 0: `tokens` are inserted.
        groups: (n, s) for n suffixes of s tokens each.
        weight: see `replace_tokens`.

    Returns:
        The packed tokens, and their groups.
    """
    counts = [count for count, _ in groups]
    shared = x.shape[1] - sum(count * s for count, s in groups)
    sizes = [1, shared - 1, *(count * s for count, s in groups)]
    start, prefix, *suffixes = x.split(sizes, dim=1)
    out, lengths = [start], []
    for (count, s), suffix, front in zip(groups, suffixes, tokens.to(x.dtype).split(counts), strict=True):
        copies = prefix.unsqueeze(1).expand(-1, count, -1, -1)
        suffix = torch.cat([copies, suffix.unflatten(1, (count, s))], dim=2)
        front = blend(front.expand(len(x), -1, -1, -1), suffix[:, :, :n], weight)
        suffix = torch.cat([front, suffix[:, :, n:]], dim=2)
        out.append(suffix.flatten(1, 2))
        lengths.append(suffix.shape[2])
    return torch.cat(out, dim=1), list(zip(counts, lengths, strict=True))


def attention(attn: nn.MultiheadAttention, x: torch.Tensor, attend: Callable, place: str, seams: Seams) -> torch.Tensor:
    """Return the output of an attention layer for x float [N, L, width]; arguments as of `run_block`."""
    if not seams.change_maps:  # one product for q, k and v
        q, k, v = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    else:
        maps = zip("qkv", attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3), strict=True)
        q, k, v = (seams.linear(place + name, x, weight, bias) for name, weight, bias in maps)
    q, k, v = (t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in (q, k, v))  # [N, heads, L, d]
    x = attend(q, k, v).transpose(1, 2).flatten(2)
    return seams.linear(place + "out", x, attn.out_proj.weight, attn.out_proj.bias)


sdpa = F.scaled_dot_product_attention  # softmax(q k^T / sqrt(d)) v


def packed_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, groups: Groups) -> torch.Tensor:
    """Return the attention of a packed sequence.

    Each suffix has one softmax over its scores with the prefix and with itself. So no k or v is repeated per class.

    Args:
        q: queries float [N, heads, L, d], of a prefix followed by the suffixes.
        k: keys, of the same shape.
        v: values, of the same shape.
        groups: (n, s) for n suffixes of s tokens each.
    """
    sizes = [n * s for n, s in groups]
    sizes = [q.shape[2] - sum(sizes), *sizes]
    # contiguous, because otherwise each product saves copies, and each part keeps the whole tensor in memory
    (q_p, *q_s), (k_p, *k_s), (v_p, *v_s) = ([p.contiguous() for p in t.split(sizes, dim=2)] for t in (q, k, v))
    out = [sdpa(q_p, k_p, v_p, is_causal=True)] if sizes[0] else []
    for (n, s), q_c, k_c, v_c in zip(groups, q_s, k_s, v_s, strict=True):
        q_c = q_c * q.shape[-1] ** -0.5
        k_c, v_c = k_c.unflatten(2, (n, s)), v_c.unflatten(2, (n, s))  # [N, heads, n, s, d]
        later = torch.full((s, s), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
        scores = [(q_c @ k_p.mT).unflatten(2, (n, s)), q_c.unflatten(2, (n, s)) @ k_c.mT + later]
        to_prefix, to_suffix = torch.cat(scores, dim=-1).softmax(dim=-1).split([sizes[0], s], dim=-1)
        out.append(to_prefix.flatten(2, 3) @ v_p + (to_suffix @ v_c).flatten(2, 3))
    return torch.cat(out, dim=2)


def layer_norm(ln: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    """Apply a LayerNorm in fp32 even under autocast, like OpenAI's."""
    return F.layer_norm(wide(x), ln.normalized_shape, ln.weight, ln.bias, ln.eps).to(x.dtype)


def normalize(features: torch.Tensor) -> torch.Tensor:
    """Return the rows with unit length, in fp32."""
    return F.normalize(wide(features), dim=-1)


def wide(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor in fp32 if it is in half precision, else unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def attention_pool(pool: AttentionPool, x: torch.Tensor, seams: Seams) -> torch.Tensor:
    """Return the feature float [B, width] of tokens x float [B, L, width]; equation (1) of siglip.py.

    The maps of the pool have the places image_pool_q and so on.
    """
    weights, biases = pool.attn.in_proj_weight.chunk(3), pool.attn.in_proj_bias.chunk(3)
    inputs = pool.probe.to(x.dtype).expand(x.shape[0], -1, -1), x, x
    maps = zip("qkv", inputs, weights, biases, strict=True)
    q, k, v = (seams.linear(f"image_pool_{name}", h, weight, bias) for name, h, weight, bias in maps)
    q, k, v = (t.unflatten(-1, (pool.attn.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    out, c_fc, c_proj = pool.attn.out_proj, pool.mlp.c_fc, pool.mlp.c_proj
    x = seams.linear("image_pool_out", sdpa(q, k, v).transpose(1, 2).flatten(2), out.weight, out.bias)
    h = seams.linear("image_pool_c_fc", layer_norm(pool.ln, x), c_fc.weight, c_fc.bias)
    x = x + seams.linear("image_pool_c_proj", activation(pool.mlp.gelu, h), c_proj.weight, c_proj.bias)
    return x[:, 0]


class ImageEncoder(nn.Module):
    """CLIP's vision transformer. Its parameters have the names of `clip_model.visual`.

    Attributes:
        class_embedding, ln_pre, proj: None where the family has none.
        attn_pool: the attention pooling; None: the class token is the feature.
    """

    def __init__(self, visual):
        super().__init__()
        self.conv1, self.transformer = visual.conv1, visual.transformer
        self.positional_embedding, self.ln_post = visual.positional_embedding, visual.ln_post
        self.class_embedding, self.ln_pre = getattr(visual, "class_embedding", None), getattr(visual, "ln_pre", None)
        self.proj, self.attn_pool = getattr(visual, "proj", None), getattr(visual, "attn_pool", None)
        # decisions of the first step, for all steps: (shape, changed maps) -> number of recomputed blocks
        self.recomputed: dict[tuple, int] = {}

    def forward(self, image: torch.Tensor, context: torch.Tensor | None = None, **seams) -> torch.Tensor:
        """Return the features float [B, embed_dim], not normalised; arguments as of `tokens`."""
        x = self.tokens(image, context, **seams)
        if self.attn_pool is not None:
            return attention_pool(self.attn_pool, layer_norm(self.ln_post, x), Seams(**seams))
        return layer_norm(self.ln_post, x[:, 0]) @ self.proj

    def tokens(self, image: torch.Tensor, context: torch.Tensor | None = None, **seams) -> torch.Tensor:
        """Return all tokens after the last block and before ln_post: float [B, L, width], a class token first.

        Args:
            image: float [B, 3, H, W].
            context: prompts float [n, width] or [B, n, width] behind the patches, without a positional embedding.
            **seams: fields of `Seams`. `deep` replaces the last n tokens; with `insert` it is inserted at the positions
                1 to n, behind the class token.
        """
        seams = Seams(**seams)
        x = wide(self.conv1(image)).flatten(2).mT  # [B, patches, width]; the residual stream is fp32, as in the text
        if self.class_embedding is not None:
            x = torch.cat([self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
        x = x + self.positional_embedding.to(x.dtype)
        if context is not None:
            x = torch.cat([x, context.to(x.dtype).expand(x.shape[0], -1, -1)], dim=1)
        x = add_beside(seams.beside, "image_input", x if self.ln_pre is None else layer_norm(self.ln_pre, x))
        blocks, at = self.transformer.resblocks, 1 if seams.insert else None
        recompute = 0
        if torch.is_grad_enabled():  # an evaluation saves nothing, and ONNX would fix the shape if it were read
            key = x.shape, seams.change_maps
            if key not in self.recomputed:
                self.recomputed[key] = blocks_to_recompute(x, len(blocks), seams.change_maps)
            recompute = self.recomputed[key]
        return run_blocks(blocks, x, "image", seams, at=at, recompute=recompute)


class TextEncoder(nn.Module):
    """CLIP's text transformer, which starts from token embeddings. Its parameters have the names of CLIP.

    The class has the name that CoOp's code uses.

    Attributes:
        at_once: number of prompts that are encoded at once; 0: as many as fit into memory.
    """

    at_once = 0

    def __init__(self, clip_model):
        super().__init__()
        self.token_embedding, self.transformer = clip_model.token_embedding, clip_model.transformer
        self.positional_embedding, self.ln_final = clip_model.positional_embedding, clip_model.ln_final
        self.text_projection = clip_model.text_projection
        self.text_projection_bias = getattr(clip_model, "text_projection_bias", None)
        self.context_length = len(self.positional_embedding)  # 77, OpenAI's
        self.family, self.tokenizer = family_of(clip_model), getattr(clip_model, "tokenizer", None) or tokenize

    def tokenize(self, prompts: list[str], cut: bool = False) -> torch.Tensor:
        """Return the token ids int64 [n, L] of prompts; `cut` and the error as of `tokens.tokenize`."""
        return self.tokenizer(prompts, self.context_length, cut)

    def forward(
        self, prompts: torch.Tensor | None, tokenized_prompts: torch.Tensor, shared: int | None = None, **seams
    ) -> torch.Tensor:
        """Return the features of the end-of-text tokens, not normalised.

        In a training with several processes each of them encodes some of the classes.

        Args:
            prompts: embeddings float [..., n, L, width], L <= context_length; None: the embeddings of the tokens.
            tokenized_prompts: ids int64 [n, L], which mark the end of each prompt. They must not be changed in place.
            shared: number of leading positions at which all n prompts are equal. These positions are read from the
                first prompt, which gets their whole gradient. None: found from the ids, or 0 with `prompts`.
            **seams: fields of `Seams`. `deep` replaces the tokens 1 to n, behind the start of text; with `insert` it is
                inserted there.

        Returns:
            float [..., n, embed_dim].

        Raises:
            ValueError: `deep` reaches beyond the shared positions.
        """
        seams = Seams(**seams)
        encode = partial(self.encode_here, shared=shared, seams=seams)
        return encode_in_parts(encode, prompts, tokenized_prompts, seams.deep)

    def encode_here(self, prompts, tokenized_prompts, deep, part, shared, seams: Seams) -> torch.Tensor:
        """Return the result of `forward` for a part of the classes, to which `deep` belongs; see `encode_in_parts`."""
        if not self.family.causal:
            if prompts is not None or deep:
                check_causal(self.family, "a method with prompts in the text encoder")
            return self.encode_all_positions(tokenized_prompts, part, seams)
        length, lead = tokenized_prompts.shape[1], torch.Size() if prompts is None else prompts.shape[:-3]
        if prompts is not None:
            prompts, shared = prompts.reshape(-1, *prompts.shape[-3:]).flatten(1, 2), shared or 0
        separate_at = min((i for i, tokens in deep.items() if tokens.dim() == 3), default=None)
        plan = self.plan(tokenized_prompts, shared, lead.numel(), seams.change_maps, separate_at, part)
        if part:
            tokenized_prompts = tokenized_prompts[slice(*part)]
        features = []
        for packing in plan.packings:
            if prompts is None:
                x = self.token_embedding(tokenized_prompts.flatten()[packing.tokens])[None]
            else:
                x = prompts.index_select(1, packing.tokens)
            x = add_beside(seams.beside, "text_input", x) + self.positional_embedding[packing.tokens % length]
            tokens = deep
            if separate_at is not None:
                classes = packing.tokens[packing.ends] // length  # in the order of the suffixes
                tokens = {i: t if t.dim() == 2 else t.index_select(0, classes) for i, t in deep.items()}
            encode = partial(self.encode, seams=replace(seams, deep=tokens))
            if torch.is_grad_enabled() and (len(plan.packings) > 1 or plan.images < lead.numel()):
                encode = partial(checkpoint, encode, use_reentrant=False)
            features.append(torch.cat([encode(images, packing) for images in x.split(plan.images)]))
        features = torch.cat(features, dim=1).index_select(1, plan.place)
        return features.reshape(*lead, *features.shape[1:])

    def encode_all_positions(self, tokens: torch.Tensor, part: tuple[int, int] | None, seams: Seams) -> torch.Tensor:
        """Return features float [n, embed_dim] of ids int64 [n, L] by attention in both directions, padding included.

        Args:
            tokens: the ids.
            part: start and end of the prompts to encode; None: all of them.
            seams: the changes, without `deep`.
        """
        plans, layers = PLANS.setdefault(tokens, {}), len(self.transformer.resblocks)
        key = part, seams.change_maps, torch.is_grad_enabled(), self.at_once, layers
        tokens = tokens[slice(*part)] if part else tokens
        if key not in plans:  # decided once for all steps, as in `plan`
            width = self.positional_embedding.shape[1]
            parts, _ = split(len(tokens), 1, tokens.numel(), width, layers, seams.change_maps, tokens.device)
            plans[key] = self.at_once or ceil(len(tokens) / parts)
        at_once = plans[key]

        def encode(ids: torch.Tensor) -> torch.Tensor:
            x = add_beside(seams.beside, "text_input", self.token_embedding(ids)) + self.positional_embedding
            x = run_blocks(self.transformer.resblocks, x, "text", seams)
            return layer_norm(self.ln_final, x[:, -1]) @ self.text_projection + self.text_projection_bias

        if torch.is_grad_enabled() and at_once < len(tokens):
            encode = partial(checkpoint, encode, use_reentrant=False)
        return torch.cat([encode(ids) for ids in tokens.split(at_once)])

    def encode(self, x: torch.Tensor, packing: Packing, seams: Seams) -> torch.Tensor:
        """Return the features [N, classes, embed_dim] of packed embeddings float [N, T, width]."""
        deep = seams.deep
        inserted = deep[min(deep)].shape[-2] if deep and seams.insert else 0
        shared = x.shape[1] - sum(n * s for n, s in packing.groups)
        replaced = max((tokens.shape[1] for tokens in deep.values() if tokens.dim() == 3), default=0)
        if replaced and replaced >= shared + inserted:
            problem = f"{replaced} tokens of each class are to be replaced"
            raise ValueError(f"{problem}, which are too many of {shared} that all prompts share")
        x = run_blocks(self.transformer.resblocks, x, "text", seams, causal=True, at=1, groups=packing.groups)
        ends = packing.ends + inserted
        if replaced:  # each suffix before has grown by a copy of the shared tokens behind the start
            ends = ends + (shared + inserted - 1) * torch.arange(len(ends), device=ends.device)
        return layer_norm(self.ln_final, x.index_select(1, ends)) @ self.text_projection

    def plan(
        self,
        tokens: torch.Tensor,
        shared: int | None,
        images: int = 1,
        changed: bool = False,
        separate_at: int | None = None,
        part: tuple[int, int] | None = None,
    ) -> EncodingPlan:
        """Return the plan for prompts with these ids [n, L]. It is cached, so that all steps use the same one.

        Args:
            tokens: the ids.
            shared: see `forward`.
            images: number of images that have prompts of their own.
            changed: whether linear maps are changed.
            separate_at: block from which each class has its own copy of the shared tokens; None: there is none.
            part: start and end of the prompts to encode; None: all of them.
        """
        plans = PLANS.setdefault(tokens, {})
        layers, width = len(self.transformer.resblocks), self.positional_embedding.shape[1]
        key = shared, images, changed, separate_at, part, torch.is_grad_enabled(), self.at_once, layers, width
        if key not in plans:
            ids = tokens[slice(*part)] if part else tokens
            ids, n, device = ids.cpu(), len(ids), tokens.device
            packings, place = pack(ids, shared, 1, device)
            if self.at_once:
                parts, images = ceil(n / self.at_once), max(1, self.at_once // n)
            else:
                count = len(packings[0].tokens)
                if separate_at is not None:  # the mean over the blocks
                    copies = (n - 1) * (count - sum(n * s for n, s in packings[0].groups) - 1)
                    count += ceil(copies * (layers - separate_at) / layers)
                parts, images = split(n, images, count, width, layers, changed, device)
            plans[key] = EncodingPlan(*(pack(ids, shared, parts, device) if parts > 1 else (packings, place)), images)
        return plans[key]
