"""Prompt methods by hand: OpenAI's own modules, all 77 tokens, one trainer without a data set."""

import torch
from clip import clip

import trainers
from dassl.config import merge_config
from dassl.engine import TRAINER_REGISTRY
from orthcr.run.declarations import default_cfg, discover

NAMES = ["cat", "dark_blue striped heart", "unhyphenatedword", "x-ray"]
LABEL = torch.tensor([0, 1, 3, 2, 1])
discover(trainers)  # whichever test runs first


def in_float64(model, monkeypatch):
    """The CLIP in float64, LayerNorms too."""
    monkeypatch.setattr("clip.model.LayerNorm.forward", torch.nn.LayerNorm.forward)
    return model.double()


def bare(name, model, *opts, classnames=NAMES):
    """A trainer with its classifier around `model`, in training mode; no data set, no optimizer."""
    cls = TRAINER_REGISTRY.get(name)
    trainer, cfg = cls.__new__(cls), default_cfg(name)
    merge_config(cfg, ["DATASET.NAME", "none", "TRAINER.NAME", name, *opts])
    trainer.cfg, trainer.device = cfg, torch.device("cpu")
    trainer.check_cfg(cfg)
    trainer.model = trainer.build_classifier(model, classnames).to(model.dtype).train()
    trainer.set_precision("fp32")
    return trainer


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def plain_text(model, prompts, ctx=None):
    """Unit-length features [n, d] of a plain CLIP; ctx [n, m, width] takes the places 1 to m of the prompts."""
    tokens = clip.tokenize(prompts)
    x = model.token_embedding(tokens)
    if ctx is not None:
        x = torch.cat([x[:, :1], ctx, x[:, 1 + ctx.shape[1] :]], dim=1)
    x = model.transformer((x + model.positional_embedding).transpose(0, 1)).transpose(0, 1)
    return unit(model.ln_final(x)[torch.arange(len(x)), tokens.argmax(dim=-1)] @ model.text_projection)


def spoken(form, classnames=NAMES):
    return [form.format(name.replace("_", " ")) for name in classnames]


def plain_logits(model, image, g):
    return model.logit_scale.exp() * unit(model.encode_image(image)) @ g.mT


def cross_entropy(z, label=LABEL):
    return -(z.gather(1, label[:, None])[:, 0] - z.exp().sum(dim=1).log()).mean()


def gradients(loss, module):
    """Flat, of all parameters."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)])


def close(given, wanted):
    torch.testing.assert_close(given, wanted, atol=1e-11, rtol=1e-10)
