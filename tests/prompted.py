"""For the tests of methods with prompts inside the encoders: CLIP with them, by OpenAI's own blocks and 77 tokens."""

from types import SimpleNamespace

import torch
from clip import clip
from clip.model import LayerNorm
from torch import nn

NAMES = ["cat", "dark_blue striped heart", "unhyphenatedword"]
IMAGES, LABELS = 4, torch.tensor([0, 2, 1, 1])


def exact(monkeypatch, model):
    """In fp64, LayerNorm too, which OpenAI's computes in fp32."""
    monkeypatch.setattr(LayerNorm, "forward", nn.LayerNorm.forward)
    return model.double()


def run(blocks, x, put):
    """`put(i, x)` gives what enters block i; x [N, L, width], blocks of OpenAI's class as they are."""
    for i, block in enumerate(blocks):
        x = put(i, x)
        if block.attn_mask is not None:
            block.attn_mask = torch.full((x.shape[1],) * 2, -torch.inf, dtype=x.dtype).triu(1)
        x = block(x.transpose(0, 1)).transpose(0, 1)
    return x


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def repeat(tokens, x):
    return tokens.repeat(len(x), 1, 1)


def plain_tokens(visual, image):
    """What enters ln_pre."""
    patches = visual.conv1(image).flatten(2).transpose(1, 2)
    return torch.cat([repeat(visual.class_embedding[None], patches), patches], dim=1) + visual.positional_embedding


def image_features(visual, image, prompts):
    """`prompts`: {block: [n, width]}, behind the patches."""
    x = plain_tokens(visual, image)
    if 0 in prompts:
        x = torch.cat([x, repeat(prompts[0], x)], dim=1)

    def put(i, x):
        return torch.cat([x[:, : -len(prompts[i])], repeat(prompts[i], x)], dim=1) if i and i in prompts else x

    x = run(visual.transformer.resblocks, visual.ln_pre(x), put)
    return unit(visual.ln_post(x[:, 0]) @ visual.proj)


def embeddings(model, words, ctx, names=NAMES):
    """Those of "<words> name." with `ctx` in place of the first words; and the places of the ends of text."""
    ids = clip.tokenize([f"{words} {name.replace('_', ' ')}." for name in names])
    x = model.token_embedding(ids)
    return torch.cat([x[:, :1], repeat(ctx, x), x[:, 1 + len(ctx) :]], dim=1), ids.argmax(dim=-1)


def text_features(model, embedding, end, prompts):
    """`prompts`: {block >= 1: [n, width]}, behind the start of text."""

    def put(i, x):
        return torch.cat([x[:, :1], repeat(prompts[i], x), x[:, 1 + len(prompts[i]) :]], 1) if i in prompts else x

    x = run(model.transformer.resblocks, embedding + model.positional_embedding, put)
    return unit(model.ln_final(x)[torch.arange(len(x)), end] @ model.text_projection)


def randomized(module, scale=0.1, seed=5):
    """Random values for every parameter of a learner, which would else be small."""
    gen = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data.copy_(scale * torch.randn(p.shape, generator=gen))
    return module


def agree(given, wanted, tolerance=1e-10):
    torch.testing.assert_close(given, wanted, atol=tolerance * float(wanted.detach().abs().max()), rtol=0)


def same_value_and_gradients(loss, wanted, learner):
    """Of two losses in fp64, for every parameter of `learner`."""
    agree(loss, wanted)
    names, parameters = zip(*learner.named_parameters(), strict=True)
    for name, a, b in zip(
        names, torch.autograd.grad(loss, parameters), torch.autograd.grad(wanted, parameters), strict=True
    ):
        assert b.abs().max() > 0, name
        agree(a, b)


def wide_text_encoder(width=512):
    """Of a ViT-B's CLIP, as far as a learner looks at it."""
    return SimpleNamespace(token_embedding=nn.Embedding(49408, width), context_length=77)


def published(folder, registered, tensors, epoch=5):
    """A checkpoint as the originals write it: the tensors in half precision among those of the whole CLIP."""
    whole = {
        "image_encoder.conv1.weight": torch.zeros(2, 3, 4, 4),
        "image_encoder.transformer.resblocks.0.attn.in_proj_weight": torch.zeros(6, 2),
        "text_encoder.transformer.resblocks.1.ln_1.weight": torch.zeros(2),
        "prompt_learner.token_prefix": torch.zeros(7, 1, 64),
        "prompt_learner.token_suffix": torch.zeros(7, 60, 64),
        "prompt_learner.ZS_image_encoder.class_embedding": torch.zeros(3),
        "logit_scale": torch.tensor(4.6),
        "prompt_embeddings": torch.zeros(7, 77, 64),
    }
    (folder / registered).mkdir(parents=True)
    state = whole | {name: tensor.half() for name, tensor in tensors.items()}
    torch.save({"state_dict": state, "epoch": epoch}, folder / registered / f"model.pth.tar-{epoch}")
    return str(folder)
