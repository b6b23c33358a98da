"""The one forward pass of CLIP against OpenAI's own, and its three seams against loops written by hand."""

import copy

import pytest
import torch
from clip import clip
from clip.model import CLIP, LayerNorm
from torch import nn
from torch.nn import functional as F

from trainers.shared.encoders import ImageEncoder, Seams, TextEncoder, frozen_linear, layer_norm, run_blocks
from trainers.shared.tokens import tokenize

PROMPTS = ["x", "a photo of a cat.", "a photo of a very long-haired, grey-and-white striped cat on a mat."]
# embed_dim, side, layers, width, patch, text width, heads, layers of the text
SIZES = [(24, 32, 2, 128, 16, 64, 1, 3), (40, 48, 3, 192, 8, 128, 4, 1), (16, 28, 1, 64, 7, 96, 3, 2)]


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: "x".join(map(str, size)))
def clip64(request):
    """A random CLIP in fp64, every tensor random."""
    dim, side, layers, width, patch, *text = request.param
    with torch.random.fork_rng():
        torch.manual_seed(sum(request.param))
        model = CLIP(dim, side, layers, width, patch, 77, 49408, *text).double()
        for p in model.parameters():
            p.data.add_(0.1 * torch.randn_like(p))
    return model.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def exact_layer_norm(monkeypatch):
    """OpenAI's LayerNorm computes in fp32 whatever it gets."""
    monkeypatch.setattr(LayerNorm, "forward", nn.LayerNorm.forward)


def noise64(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images_for(model, n=3):
    return noise64(n, 3, model.visual.input_resolution, model.visual.input_resolution)


def close(given, wanted, atol=1e-12):
    torch.testing.assert_close(given, wanted, atol=atol * float(wanted.abs().max()), rtol=0)


# ------------------------------------------------------------------ OpenAI's own


def test_image_features_are_openais(clip64):
    image = images_for(clip64)
    close(ImageEncoder(clip64.visual)(image), clip64.encode_image(image))


def test_text_features_are_openais(clip64):
    encoder, tokens = TextEncoder(clip64), tokenize(PROMPTS)
    wanted = clip64.encode_text(clip.tokenize(PROMPTS))
    close(encoder(None, tokens), wanted)
    close(encoder(None, clip.tokenize(PROMPTS)), wanted)
    close(encoder(encoder.token_embedding(tokens), tokens), wanted)


def test_prompts_of_several_images_are_as_many_single_ones(clip64):
    encoder, tokens = TextEncoder(clip64), tokenize(PROMPTS)
    prompts = encoder.token_embedding(tokens) + 0.1 * noise64(5, *tokens.shape, encoder.token_embedding.embedding_dim)
    given = encoder(prompts, tokens)
    assert given.shape == (5, 3, clip64.text_projection.shape[1])
    for one, single in zip(given, prompts, strict=True):
        close(one, encoder(single, tokens))


def test_parameters_keep_their_names_and_are_not_copied(clip64):
    own = dict(ImageEncoder(clip64.visual).named_parameters())
    theirs = dict(clip64.visual.named_parameters())
    assert own.keys() == theirs.keys() and all(own[name] is theirs[name] for name in own)
    own, theirs = dict(TextEncoder(clip64).named_parameters()), dict(clip64.named_parameters())
    assert own.keys() == {name for name in theirs if not name.startswith("visual.") and name != "logit_scale"}
    assert all(own[name] is theirs[name] for name in own)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_layer_norm_is_fp32_in_half_precision(noise, dtype):
    ln, x = nn.LayerNorm(32), noise(4, 32).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = layer_norm(ln, x)
    assert given.dtype == dtype
    assert torch.equal(given, F.layer_norm(x.float(), (32,), ln.weight, ln.bias).to(dtype))


# ------------------------------------------------------------------ seam 1: deep prompts


def block_by_hand(block, x, mask=None):
    """OpenAI's block on [N, L, width], its attention head by head."""
    attn, width = block.attn, x.shape[-1]
    d = width // attn.num_heads
    q, k, v = (block.ln_1(x) @ attn.in_proj_weight.T + attn.in_proj_bias).split(width, dim=-1)
    heads = []
    for h in range(attn.num_heads):
        a, b, c = (t[..., h * d : (h + 1) * d] for t in (q, k, v))
        scores = a @ b.mT / d**0.5
        heads.append((scores if mask is None else scores + mask).softmax(dim=-1) @ c)
    x = x + torch.cat(heads, dim=-1) @ attn.out_proj.weight.T + attn.out_proj.bias
    return x + block.mlp(block.ln_2(x))


def image_by_hand(visual, image, context=None, deep=()):
    patches = visual.conv1(image)
    x = patches.reshape(*patches.shape[:2], -1).permute(0, 2, 1)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    if context is not None:
        x = torch.cat([x, context.expand(len(x), -1, -1)], dim=1)
    x = visual.ln_pre(x)
    for i, block in enumerate(visual.transformer.resblocks):
        if i in deep:
            n = deep[i].shape[-2]
            x = torch.cat([x[:, :-n], deep[i].expand(len(x), -1, -1)], dim=1)
        x = block_by_hand(block, x)
    return visual.ln_post(x[:, 0]) @ visual.proj


def text_by_hand(model, tokens, deep=()):
    x = model.token_embedding(tokens) + model.positional_embedding[: tokens.shape[1]]
    mask = torch.full((x.shape[1],) * 2, -torch.inf, dtype=x.dtype).triu(1)
    for i, block in enumerate(model.transformer.resblocks):
        if i in deep:
            n = deep[i].shape[-2]
            x = torch.cat([x[:, :1], deep[i].expand(len(x), -1, -1), x[:, 1 + n :]], dim=1)
        x = block_by_hand(block, x, mask)
    rows = [model.ln_final(x[k, int(ids.argmax())]) @ model.text_projection for k, ids in enumerate(tokens)]
    return torch.stack(rows)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("n", [1, 4])
def test_deep_prompts_of_the_image_side(clip64, n, per_image):
    visual, image = clip64.visual, images_for(clip64)
    shape = (*[len(image)] * per_image, n, visual.conv1.out_channels)
    context = noise64(*shape, seed=1)
    deep = {i: noise64(*shape, seed=2 + i) for i in range(1, len(visual.transformer.resblocks))}
    encoder = ImageEncoder(visual)
    for given in ({}, deep, dict(list(deep.items())[-1:])):
        close(encoder(image, context, deep=given), image_by_hand(visual, image, context, given))
    changed = (encoder(image, context) - encoder(image)).abs().max()
    assert changed > 1e-3, "the context has an effect"


@pytest.mark.parametrize("n", [1, 3])
def test_deep_prompts_of_the_text_side(clip64, n):
    encoder, tokens = TextEncoder(clip64), tokenize(PROMPTS[1:])
    width = encoder.token_embedding.embedding_dim
    deep = {i: noise64(n, width, seed=i) for i in range(len(encoder.transformer.resblocks))}
    close(encoder(None, tokens, deep=deep), text_by_hand(clip64, tokens, deep))
    close(encoder(None, tokens), text_by_hand(clip64, tokens))


@pytest.mark.parametrize("n", [1, 3])
def test_inserted_tokens_stand_behind_the_first_and_stay(clip64, n):
    """Putting them in by hand and replacing them from then on is the same; without blocks it changes nothing."""
    blocks = clip64.transformer.resblocks
    x = noise64(2, 7, blocks[0].attn.embed_dim)
    for first in range(len(blocks)):
        deep = {i: noise64(n, x.shape[-1], seed=i) for i in range(first, len(blocks), 2)}
        before = run_blocks(blocks[:first], x, "text", Seams(), causal=True)
        room = torch.cat([before[:, :1], before[:, :n], before[:, 1:]], dim=1)  # any n tokens
        rest = {i - first: tokens for i, tokens in deep.items()}
        wanted = run_blocks(blocks[first:], room, "text", Seams(rest), causal=True, at=1)
        given = run_blocks(blocks, x, "text", Seams(deep, insert=True), causal=True, at=1)
        assert given.shape == (2, 7 + n, x.shape[-1])
        close(given, wanted)
    assert torch.equal(run_blocks(blocks, x, "text", Seams(insert=True)), run_blocks(blocks, x, "text", Seams()))


def test_text_with_inserted_tokens_is_read_at_its_end(clip64):
    """At the last block nothing but the end of text matters, and it sees the inserted tokens as it sees its own."""
    encoder, tokens = TextEncoder(clip64), tokenize(PROMPTS)
    last = len(encoder.transformer.resblocks) - 1
    deep = {last: noise64(2, encoder.token_embedding.embedding_dim)}
    given = encoder(None, tokens, deep=deep, insert=True)
    for row, ids in zip(given, tokens, strict=True):
        x = clip64.token_embedding(ids[None]) + clip64.positional_embedding[: len(ids)]
        x = run_blocks(encoder.transformer.resblocks[:last], x, "text", Seams(), causal=True)
        end = int(ids.argmax())
        seen = torch.cat([x[:, :1], deep[last][None], x[:, 1 : end + 1]], dim=1)  # the last of which is the end of text
        x = block_by_hand(encoder.transformer.resblocks[last], seen)[0, -1]
        close(row, clip64.ln_final(x) @ clip64.text_projection)


def test_gradients_reach_deep_prompts(clip64):
    width = clip64.visual.conv1.out_channels
    context, deep = noise64(2, width).requires_grad_(), {0: noise64(2, width, seed=1).requires_grad_()}
    ImageEncoder(clip64.visual)(images_for(clip64), context, deep=deep).sum().backward()
    assert bool(deep[0].grad.any()) and not context.grad.any(), "what is replaced has no influence"


# ------------------------------------------------------------------ seam 2: the linear maps


@pytest.mark.parametrize("encoder", ["image", "text"])
def test_every_linear_map_goes_through_the_seam(clip64, encoder):
    """A map that changes nothing sees every weight once; one that uses other weights is a CLIP that has them."""
    image, tokens, seen = images_for(clip64), tokenize(PROMPTS), {}

    def features(model, **seam):
        if encoder == "image":
            return ImageEncoder(model.visual)(image, **seam)
        return TextEncoder(model)(None, tokens, **seam)

    def watched(place, x, weight, bias):
        assert place not in seen and x.shape[-1] == weight.shape[1] and len(bias) == len(weight)
        seen[place] = weight
        return F.linear(x, weight, bias)

    close(features(clip64, linear=watched), features(clip64))
    blocks = (clip64.visual if encoder == "image" else clip64).transformer.resblocks
    for i, block in enumerate(blocks):
        q, k, v = block.attn.in_proj_weight.chunk(3)
        maps = {"q": q, "k": k, "v": v, "out": block.attn.out_proj.weight}
        maps |= {"c_fc": block.mlp.c_fc.weight, "c_proj": block.mlp.c_proj.weight}
        for name, weight in maps.items():
            assert torch.equal(seen.pop(f"{encoder}_{i}_{name}"), weight)
    assert not seen

    changed = copy.deepcopy(clip64)
    for block in (changed.visual if encoder == "image" else changed).transformer.resblocks:
        for p in (block.attn.in_proj_weight, block.attn.out_proj.weight, block.mlp.c_fc.weight, block.mlp.c_proj.bias):
            p.mul_(1.1)

    def other(place, x, weight, bias):
        weight = weight if place.endswith("c_proj") else 1.1 * weight
        return F.linear(x, weight, 1.1 * bias if place.endswith("c_proj") else bias)

    close(features(clip64, linear=other), features(changed))


def test_blocks_without_a_seam_are_frozen(clip64):
    blocks = clip64.visual.transformer.resblocks
    x = noise64(2, 5, blocks[0].attn.embed_dim)
    given = run_blocks(blocks, x, "image", Seams(linear=lambda *map: frozen_linear(*map)))
    close(given, run_blocks(blocks, x, "image", Seams()))
    close(given, clip64.visual.transformer(x.transpose(0, 1)).transpose(0, 1))


@pytest.mark.parametrize("encoder", ["image", "text"])
def test_deep_prompts_that_do_not_fit_are_refused(clip64, encoder):
    length, width = 6, {"image": clip64.visual, "text": clip64}[encoder].transformer.width
    blocks = {"image": clip64.visual, "text": clip64}[encoder].transformer.resblocks
    x, at = torch.randn(2, length, width, dtype=torch.float64), {"image": None, "text": 1}[encoder]
    most = {"image": length - 1, "text": length - 2}[encoder]
    for n in (most, most + 1):
        deep = {0: torch.randn(n, width, dtype=torch.float64)}
        if n == most:
            assert run_blocks(blocks, x, encoder, Seams(deep), at=at).shape == x.shape
        else:
            with pytest.raises(ValueError, match=f"{n} tokens are to be replaced"):
                run_blocks(blocks, x, encoder, Seams(deep), at=at)
    with pytest.raises(ValueError, match=rf"no block \[99\] in the {encoder} encoder"):
        run_blocks(blocks, x, encoder, Seams({99: x[0]}), at=at)
