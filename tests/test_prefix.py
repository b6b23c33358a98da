"""Prompts packed into one sequence against each prompt alone, at all 77 tokens, by OpenAI's own blocks."""

import random
from functools import partial
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from clip import clip
from clip.model import CLIP, LayerNorm
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from tests.prompted import run
from trainers.shared import encoders, packing
from trainers.shared.encoders import QuickGELU, TextEncoder, activation
from trainers.shared.packing import common_start, group, pack
from trainers.shared.prompts import POSITIONS, PromptLearner, fill_template
from trainers.shared.tokens import tokenize

WORDS = "cat x-ray dark_blue striped unhyphenatedword big big_cat X grey-and-white of O'Neill's 1970 ..".split()
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}


def some_names(seed, n=6):
    """Class names of one to nine words; the first two begin alike, and two are equal."""
    draw = random.Random(seed)
    names = [" ".join(draw.choices(WORDS, k=draw.choice([1, 1, 2, 3, 9]))) for _ in range(n - 2)]
    return [names[0] + " cat", *names, names[-1]]


NAMES = [some_names(0), some_names(1), ["cat"], ["big cat"] * 3, ["X", "X X", "X X X cat", "cat X"]]
dtypes = pytest.mark.parametrize("dtype", LIMITS, ids=["fp64", "fp32"])
class_sets = pytest.mark.parametrize("names", NAMES, ids=["random", "others", "one", "equal", "placeholders"])


@pytest.fixture(scope="module")
def model():
    """A random CLIP with four heads and three blocks in its text encoder, every tensor random; fp32."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        clip_model = CLIP(24, 32, 1, 64, 16, 77, 49408, 64, 4, 3)
        for p in clip_model.parameters():
            p.data.add_(0.1 * torch.randn_like(p))
    return clip_model.eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def exact_layer_norm(monkeypatch):
    """OpenAI's LayerNorm computes in fp32 whatever it gets."""
    monkeypatch.setattr(LayerNorm, "forward", nn.LayerNorm.forward)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def alone(model, prompts, ids, deep=(), insert=False):
    """Features [n, d] of prompts float [n, L, width], one after the other."""
    features = []
    for prompt, end in zip(prompts, ids.argmax(dim=-1).tolist(), strict=True):

        def put(i, x):
            if i not in deep:
                return x
            kept = 0 if insert and i == min(deep) else len(deep[i])
            return torch.cat([x[:, :1], deep[i][None], x[:, 1 + kept :]], dim=1)

        x = run(model.transformer.resblocks, (prompt + model.positional_embedding[: len(prompt)])[None], put)
        end += x.shape[1] - len(prompt)
        features.append(model.ln_final(x[0, end]) @ model.text_projection)
    return torch.stack(features)


def check(given, wanted, trained, dtype):
    """Features and gradients of the trained tensors, of a random sum of the features."""
    limit, weights = LIMITS[dtype], noise(*wanted.shape, seed=99).to(dtype)
    assert given.dtype == dtype and given.shape == wanted.shape
    torch.testing.assert_close(given, wanted, atol=limit * float(wanted.detach().abs().max()), rtol=0)
    of_given, of_wanted = (torch.autograd.grad((f * weights).sum(), trained) for f in (given, wanted))
    largest = max(float(g.abs().max()) for g in of_wanted)
    for a, b in zip(of_given, of_wanted, strict=True):
        assert float(b.abs().max()) > 0
        torch.testing.assert_close(a, b, atol=limit * largest, rtol=0)


def all_77(learner):
    """The learner's prompts and ids with CLIP's padding, whose embedding is that of id 0."""
    prompts, ids = learner(), learner.tokens
    more = (0, 0, 0, 77 - ids.shape[1])
    return F.pad(prompts, more, value=0.5), F.pad(ids, more[2:])


# ------------------------------------------------------------------ what is shared


CONTEXTS = [{"position": p, "csc": csc, "n_ctx": 3} for p in POSITIONS for csc in (False, True)]
CONTEXTS += [{"words": "a photo of a", "n_ctx": 0, "position": p} for p in POSITIONS]
CONTEXTS += [{"words": "a photo of a grey-and-white", "n_ctx": 2}, {"n_ctx": 16}]


@dtypes
@class_sets
@pytest.mark.parametrize("context", CONTEXTS, ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()))
def test_learned_contexts(model, names, context, dtype):
    clip_model = model.to(dtype)
    encoder = TextEncoder(clip_model)
    learner = PromptLearner(encoder, names, **context).to(dtype)
    learner.ctx.data.copy_(noise(*learner.ctx.shape))
    check(encoder(learner(), learner.tokens, learner.n_shared), alone(model, *all_77(learner)), [learner.ctx], dtype)


@class_sets
@pytest.mark.parametrize("context", CONTEXTS, ids=lambda c: "-".join(f"{k}={v}" for k, v in c.items()))
def test_a_learner_says_how_far_its_prompts_are_equal(model, names, context):
    """At all of these positions, and where it matters not at the next."""
    learner = PromptLearner(TextEncoder(model.double()), names, **context).double()
    learner.ctx.data.copy_(noise(*learner.ctx.shape))
    prompts, p = learner(), learner.n_shared
    assert torch.equal(prompts[:, :p], prompts[:1, :p].expand(len(names), -1, -1))
    end = int(learner.tokens.argmax(dim=-1).min())
    if not context.get("csc") and p < end:
        assert not torch.equal(prompts[:, p], prompts[:1, p].expand(len(names), -1))
    if context.get("position", "end") == "end" and len(set(names)) > 1:
        assert p >= 1 + (0 if context.get("csc") else learner.ctx.shape[-2])


@dtypes
@class_sets
@pytest.mark.parametrize("template", ["{}", "a photo of a {}.", "{} in the {}"])
def test_plain_tokens(model, names, template, dtype):
    clip_model = model.to(dtype)
    prompts = fill_template(template, names)
    given = TextEncoder(clip_model)(None, tokenize(prompts))
    wanted = alone(clip_model, clip_model.token_embedding(clip.tokenize(prompts)), clip.tokenize(prompts))
    torch.testing.assert_close(given, wanted, atol=LIMITS[dtype] * float(wanted.abs().max()), rtol=0)


@dtypes
@pytest.mark.parametrize("at_once", [0, 1, 2, 4])
@pytest.mark.parametrize("insert", [False, True], ids=["replaced", "inserted"])
def test_deep_prompts(model, insert, at_once, dtype):
    """In chunks too; the first inserted ones of block 1 stand where block 2 puts others."""
    encoder = TextEncoder(model.to(dtype))
    encoder.at_once = at_once
    learner = PromptLearner(encoder, NAMES[0], n_ctx=3).to(dtype)
    learner.ctx.data.copy_(noise(*learner.ctx.shape))
    deep = {i: noise(3, 64, seed=i).to(dtype).requires_grad_() for i in (1, 2)}
    given = encoder(learner(), learner.tokens, learner.n_shared, deep=deep, insert=insert)
    trained = [learner.ctx, *list(deep.values())[0 if insert else 1 :]]
    check(given, alone(model, *all_77(learner), deep, insert), [*trained, deep[1]], dtype)


def test_inserted_tokens_need_nothing_shared_but_the_start(model):
    encoder, names = TextEncoder(model.double()), ["cat", "striped big cat"]
    deep = {0: noise(2, 64).requires_grad_(), 2: noise(2, 64, seed=1).requires_grad_()}
    ids = clip.tokenize(names)
    wanted = alone(model, model.token_embedding(ids)[:, :70], ids, deep, insert=True)
    check(encoder(None, tokenize(names), deep=deep, insert=True), wanted, list(deep.values()), torch.float64)


def test_deep_prompts_beyond_what_is_shared_are_refused(model):
    encoder, ids = TextEncoder(model.double()), tokenize(["a cat.", "a dog."])
    encoder(None, ids, deep={1: noise(1, 64)})
    with pytest.raises(ValueError, match="2 tokens are to be replaced, which are too many of 2 that all prompts share"):
        encoder(None, ids, deep={1: noise(2, 64)})
    with pytest.raises(ValueError, match="1 tokens are to be replaced, which are too many of 0"):
        encoder(encoder.token_embedding(ids), ids, deep={1: noise(1, 64)})  # of which nobody says what is shared


@dtypes
@pytest.mark.parametrize("at_once", [0, 1, 4, 13, 100])  # of 3 x 6
def test_a_prefix_for_each_image(model, at_once, dtype):
    encoder = TextEncoder(model.to(dtype))
    encoder.at_once = at_once
    learner = PromptLearner(encoder, NAMES[1], n_ctx=4).to(dtype)
    ctx = noise(3, 4, 64).to(dtype).requires_grad_()
    given = encoder(learner(ctx), learner.tokens, learner.n_shared)
    wanted = [alone(model, learner(one[None])[0], learner.tokens) for one in ctx]
    check(given, torch.stack(wanted), [ctx], dtype)


@dtypes
@pytest.mark.parametrize("at_once", [0, 4])
@pytest.mark.parametrize("shared", [None, 3, 0])
def test_changed_maps(model, shared, at_once, dtype):
    """Gradients of all weights of all blocks, as full fine-tuning has them; less may be shared than could be."""
    clip_model, ids = model.to(dtype), clip.tokenize(fill_template("a photo of a {}.", NAMES[0]))
    encoder = TextEncoder(clip_model)
    encoder.at_once, trained = at_once, {}
    for i in range(len(clip_model.transformer.resblocks)):
        for name in ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"):
            full = f"transformer.resblocks.{i}.{name}"
            weight = clip_model.get_parameter(full).detach()
            trained[full] = (1.1 * weight).requires_grad_()

    def changed(place, x, weight, bias):
        _, i, name = place.split("_", 2)
        if name in "qkv":
            rows = trained[f"transformer.resblocks.{i}.attn.in_proj_weight"].chunk(3)["qkv".index(name)]
            return F.linear(x, rows, bias)
        path = "attn.out_proj" if name == "out" else f"mlp.{name}"
        return F.linear(x, trained[f"transformer.resblocks.{i}.{path}.weight"], bias)

    given = encoder(None, ids, shared, linear=changed)
    for block in clip_model.transformer.resblocks:  # `run` has set others
        block.attn_mask = clip_model.build_attention_mask()
    text = nn.Module()  # whose forward is OpenAI's encode_text, for functional_call
    text.clip, text.forward = clip_model, clip_model.encode_text
    wanted = functional_call(text, {f"clip.{name}": p for name, p in trained.items()}, (ids,))
    check(given, wanted, list(trained.values()), dtype)


def test_two_backward_passes_through_chunks(model):
    """As ProGrad makes them."""
    grads = []
    for at_once in (0, 2):
        encoder = TextEncoder(model.double())
        encoder.at_once = at_once
        learner = PromptLearner(encoder, NAMES[0], n_ctx=3).double()
        learner.ctx.data.copy_(noise(*learner.ctx.shape))
        g = encoder(learner(), learner.tokens, learner.n_shared)
        first = torch.autograd.grad(g.square().sum(), [learner.ctx], retain_graph=True)[0]
        g.sum().backward()
        grads.append(torch.stack([first, learner.ctx.grad]))
    torch.testing.assert_close(*grads, atol=1e-10 * float(grads[0].abs().max()), rtol=0)


@pytest.mark.parametrize("at_once", [0, 3])
def test_dropout_is_drawn_for_each_class(model, monkeypatch, at_once):
    """With nothing shared; in chunks, the backward pass has the masks of the forward pass."""
    encoder, ids, bias = TextEncoder(model.double()), tokenize(["a cat."] * 4), noise(64).requires_grad_()
    encoder.at_once = at_once

    def dropped(place, x, weight, b):
        return F.linear(F.dropout(x + bias if x.shape[-1] == 64 else x, 0.5), weight, b)

    results = []
    for checkpoint in (encoders.checkpoint, lambda run, *args, use_reentrant: run(*args)):
        monkeypatch.setattr(encoders, "checkpoint", checkpoint)
        torch.manual_seed(0)
        g = encoder(None, ids, 0, linear=dropped)
        results.append((g, torch.autograd.grad(g.sum(), bias)[0]))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    assert min(float((a - b).abs().max()) for a, b in combinations(results[0][0].detach(), 2)) > 1e-3


# ------------------------------------------------------------------ how much is encoded


def rows_of(encoder, *args, **seams):
    """Shapes of what enters the first map."""
    seen = []

    def watched(place, x, weight, bias):
        if place == "text_0_c_fc":
            seen.append(tuple(x.shape[:2]))
        return F.linear(x, weight, bias)

    encoder(*args, linear=watched, **seams)
    return seen


def test_every_shared_token_is_encoded_once_and_no_padding(model, monkeypatch):
    monkeypatch.setattr(packing, "CPU_GROUP", 0)
    encoder = TextEncoder(model.double())
    names = ["cat", "big cat", "grey cat", "big grey cat", "cat " * 60]  # one long name does not pad the others
    learner = PromptLearner(encoder, names, n_ctx=8).double()
    own = [2 + len(clip._tokenizer.encode(name)) for name in names]  # with "." and the end of text
    prompts = learner()
    assert learner.n_shared == 9
    assert rows_of(encoder, prompts, learner.tokens, 9) == [(1, 9 + sum(own))]
    assert rows_of(encoder, prompts.expand(3, -1, -1, -1), learner.tokens, 9) == [(3, 9 + sum(own))]
    encoder.at_once = 3
    rows = rows_of(encoder, prompts, learner.tokens, 9)
    assert len(rows) == 2 and sum(n for _, n in rows) == 2 * 9 + sum(own)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("cost", [0, 3, 20, 1000])
def test_groups_have_the_fewest_tokens(seed, cost):
    draw = random.Random(seed)
    lengths = sorted(draw.choices([1, 2, 3, 5, 8, 30], k=8))
    cuts = (c for r in range(8) for c in combinations(range(1, 8), r))
    best = min(sum((b - a) * lengths[b - 1] + cost for a, b in zip((0, *c), (*c, 8), strict=True)) for c in cuts)
    groups = group(lengths, cost)
    assert sum(n * s + cost for n, s in groups) == best and sum(n for n, _ in groups) == 8
    if not cost:
        assert sum(n * s for n, s in groups) == sum(lengths)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_packing_has_every_token_up_to_each_end(parts, device):
    """On a GPU with fewer groups, and then with padding."""
    ids, to = tokenize(NAMES[0]), SimpleNamespace(type=device)
    tensor = partial(torch.Tensor.to)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", lambda t, where: t if where is to else tensor(t, where))
        packings, place = pack(ids, None, parts, to)
    length, shared, ends = ids.shape[1], common_start(ids), []
    for tokens, end, groups in packings:
        prefix = len(tokens) - sum(n * s for n, s in groups)
        assert prefix == shared and len(tokens[:prefix].div(length, rounding_mode="floor").unique()) == 1
        assert torch.equal(tokens[:prefix] % length, torch.arange(shared))
        k = prefix
        for n, s in groups:
            for row in tokens[k : k + n * s].view(n, s):
                assert (
                    torch.equal(row % length, torch.arange(shared, shared + s)) and len((row // length).unique()) == 1
                )
            k += n * s
        assert len(groups) == 1 or device == "cpu"
        ends += tokens[end].tolist()
    assert [ends[k] for k in place] == [k * length + int(row.argmax()) for k, row in enumerate(ids)]


def test_a_class_set_is_planned_once(model, monkeypatch):
    encoder, ids, calls = TextEncoder(model.double()), tokenize(NAMES[0]), []
    monkeypatch.setattr(encoders, "pack", lambda *args: calls.append(args) or pack(*args))
    for _ in range(3):
        encoder(None, ids)
    assert len(calls) == 1
    encoder(None, ids, 0)
    encoder(None, ids.clone())
    assert len(calls) == 3
    with torch.no_grad():
        encoder(None, ids)
    assert len(calls) == 4, "without gradients more may fit"


# ------------------------------------------------------------------ the activation


@pytest.mark.parametrize("gelu", [QuickGELU(), nn.GELU()], ids=repr)
def test_activation_is_the_blocks_own_and_keeps_one_tensor(gelu):
    x, saved = (5 * noise(1000)).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = activation(gelu, x)
    assert len(saved) == 1
    wanted = gelu(x)
    torch.testing.assert_close(y, wanted, atol=1e-14, rtol=1e-14)
    a, b = (torch.autograd.grad(v.square().sum(), x, retain_graph=True)[0] for v in (y, wanted))
    torch.testing.assert_close(a, b, atol=1e-13, rtol=1e-13)
