"""MMRL++ against OpenAI's own blocks in fp64, MMRL as its limit, and which beta counts."""

from types import SimpleNamespace

import pytest
import torch
from prompted import (
    IMAGES,
    LABELS,
    NAMES,
    agree,
    embeddings,
    exact,
    plain_tokens,
    published,
    randomized,
    repeat,
    run,
    same_value_and_gradients,
    unit,
)
from torch.nn import functional as F

from tests.prompt_tools import bare
from trainers import mmrl
from trainers.mmrlpp import CROSS_DATASET_BETA, PUBLISHED, CustomCLIP, RepresentationLearner

NODE = "TRAINER.MMRLpp."


def node(**changes):
    ranks = {"RES_LORA_DIM": 2, "PROJ_LORA_DIM": 3}
    return SimpleNamespace(**{"ALPHA": 0.7, "N_REP_TOKENS": 3, "REP_LAYERS": [1, 2], "REP_DIM": 16, **ranks, **changes})


def custom(model, beta=0.6, fused=True, **changes):
    classifier = CustomCLIP(node(**changes), model, NAMES, "Shapes", fused)
    classifier.beta = beta
    return classifier


def mixed(layers, tokens, beta):
    """As `prompted.run` takes it: inserted before the first block, then mixed with what stands there."""
    prompts_by_block = {layer - 1: t for layer, t in zip(layers, tokens, strict=True)}

    def put(i, x):
        if i not in prompts_by_block:
            return x
        t = repeat(prompts_by_block[i], x)
        if i == layers[0] - 1:
            return torch.cat([x[:, :1], t, x[:, 1:]], dim=1)
        n = t.shape[1]
        return torch.cat([x[:, :1], beta * t + (1 - beta) * x[:, 1 : 1 + n], x[:, 1 + n :]], dim=1)

    return put


def features(model, learner, image, layers, beta):
    """f, f_r and g by the equations."""
    r, n, visual = learner.compound_rep_tokens, len(learner.compound_rep_tokens), model.visual
    v, t = (
        [r @ (maps.weight + own.A @ own.B).T + own.bias for own in maps.srra]
        for maps in (learner.srra_r2vproj, learner.srra_r2tproj)
    )
    x = run(visual.transformer.resblocks, visual.ln_pre(plain_tokens(visual, image)), mixed(layers, v, beta))
    f = unit(visual.ln_post(x[:, 0]) @ visual.proj)
    mean = sum(visual.ln_post(x[:, k]) for k in range(1, n + 1)) / n
    f_r = unit(mean @ visual.proj + mean @ learner.A @ learner.B)
    embedding, end = embeddings(model, "a photo of a", torch.zeros(0, 64).double())
    x = run(model.transformer.resblocks, embedding + model.positional_embedding, mixed(layers, t, beta))
    return f, f_r, unit(model.ln_final(x)[torch.arange(len(x)), end + n] @ model.text_projection)


@pytest.mark.parametrize("layers, beta", [([1, 2], 0.6), ([1, 2], 0.0), ([2], 0.6)])
def test_loss_and_gradients_by_the_equation(make_trainer, random_clip, noise, monkeypatch, layers, beta):
    trainer = make_trainer(NODE + "ALPHA", 0.6, NODE + "REG_WEIGHT", 3.0, trainer="MMRLpp")
    plain, image = exact(monkeypatch, random_clip()), noise(IMAGES, 3, 32, 32).double()
    trainer.model = custom(plain, beta, REP_LAYERS=layers, ALPHA=0.6).double().train()
    learner = randomized(trainer.model.representation_learner)
    terms, logits = trainer.losses(image, LABELS)
    f, f_r, g = features(plain, learner, image, layers, beta)
    z, z_r = 100 * f @ g.T, 100 * f_r @ g.T
    wanted = 0.6 * F.cross_entropy(z, LABELS) + 0.4 * F.cross_entropy(z_r, LABELS)
    wanted = wanted + 3 * (1 - (f * unit(plain.encode_image(image))).sum(dim=1).mean())
    wanted = wanted + 3 * (1 - (g * trainer.model.frozen_text).sum(dim=1).mean())
    agree(logits, 0.6 * z + 0.4 * z_r)
    if beta:
        same_value_and_gradients(sum(terms.values()), wanted, learner)
    else:  # the residuals of the second block have no gradient
        agree(sum(terms.values()), wanted)
    with torch.no_grad():
        trainer.model.eval()
        agree(trainer.model(image), 0.6 * z + 0.4 * z_r)


def test_with_beta_one_it_is_mmrl_with_these_maps(random_clip, noise):
    plain, image = random_clip().double(), noise(IMAGES, 3, 32, 32).double()
    model = custom(plain, 1.0).double().eval()
    learner = randomized(model.representation_learner)
    limit = mmrl.CustomCLIP(node(), plain, NAMES, "Shapes", True).double().eval()
    with torch.no_grad():
        limit.representation_learner.compound_rep_tokens.copy_(learner.compound_rep_tokens)
        limit.representation_learner.proj_rep.copy_(plain.visual.proj + learner.A @ learner.B)
        for side in "vt":
            maps = learner.get_submodule(f"srra_r2{side}proj")
            linear = limit.representation_learner.get_submodule(f"compound_rep_tokens_r2{side}proj")
            for residual, one in zip(maps.srra, linear, strict=True):
                one.weight.copy_(maps.weight + residual.A @ residual.B)
                one.bias.copy_(residual.bias)
        agree(model(image), limit(image))
        model.beta = 0.9
        assert (model.train().eval()(image) - limit(image)).abs().max() > 1e-3


def test_as_many_parameters_as_published():
    sizes = {"N_REP_TOKENS": 5, "REP_LAYERS": range(6, 13), "REP_DIM": 512, "RES_LORA_DIM": 4, "PROJ_LORA_DIM": 64}
    learner = RepresentationLearner(node(**sizes), (768, 512, 512), NAMES)
    assert sum(p.numel() for p in learner.parameters()) == 813_312


def test_the_second_classifier_starts_in_clips_space_and_maps_start_equal(random_clip):
    model = custom(random_clip())
    assert torch.equal(model.rep_projection(), model.image_encoder.proj)
    first, second = model.representation_learner.vision().values()
    assert torch.equal(first, second)


# ------------------------------------------------------------------ beta


@pytest.mark.parametrize(
    "dataset, opts, beta",
    [
        ("EuroSAT", [], 0.2),
        ("Other", [], 0.9),
        ("EuroSAT", [NODE + "BETA", 0.35], 0.35),
        ("EuroSAT", ["TASK", "CD"], 0.3),
        ("ImageNetSketch", ["TASK", "CD"], 0.7),
        ("EuroSAT", ["TASK", "CD", NODE + "BETA", 0.9], 0.9),
    ],
)
def test_beta_is_the_authors_unless_it_is_given(random_clip, dataset, opts, beta):
    layers = [NODE + "REP_LAYERS", [1, 2], "DATASET.NAME", dataset]
    assert bare("MMRLpp", random_clip(), *layers, *opts).model.weight == beta


def test_an_evaluation_has_the_beta_of_the_training(make_trainer, take_steps):
    trainer = make_trainer(NODE + "BETA", 0.4, trainer="MMRLpp")
    take_steps(trainer)
    trainer.save_model(0, trainer.output_dir)
    for opts, beta in (([], 0.4), ([NODE + "BETA", 0.7], 0.7)):
        other = make_trainer(*opts, trainer="MMRLpp", out="other")
        assert other.model.weight == (beta if opts else 0.9)
        other.load_model(trainer.output_dir)
        assert other.model.weight == beta


def test_a_start_from_other_weights_has_its_own_beta(make_trainer, take_steps):
    trainer = make_trainer(NODE + "BETA", 0.4, trainer="MMRLpp")
    trainer.save_model(0, trainer.output_dir)
    path = f"{trainer.output_dir}/MultiModalRepresentationLearner/model.pth.tar-1"
    other = make_trainer("MODEL.INIT_WEIGHTS", path, trainer="MMRLpp", out="other")
    other.fit()
    assert other.model.weight == 0.9


def test_the_tables_of_the_authors():
    betas = {0.9: 4, 0.7: 2, 0.6: 1, 0.5: 1, 0.4: 1, 0.2: 1, 0.1: 1}
    assert {b: [beta for beta, _ in PUBLISHED.values()].count(b) for b in betas} == betas and len(PUBLISHED) == 11
    assert len(CROSS_DATASET_BETA) == 15


@pytest.mark.parametrize("task, weight", [("", 0.2), ("B2N", 0.2), ("CD", 0.1)])
def test_the_regularizer_of_imagenet_is_by_task(make_trainer, task, weight):
    trainer = make_trainer("TASK", task, trainer="MMRLpp")
    assert trainer.reg_weights["ImageNet"] == weight and trainer.reg_weights["StanfordCars"] == 6.0


def test_checkpoint_of_the_original(make_trainer, tmp_path, noise):
    trainer = make_trainer(trainer="MMRLpp")
    learner = trainer.model.representation_learner
    theirs = {name: noise(*p.shape, seed=k) for k, (name, p) in enumerate(learner.named_parameters())}
    named = {(f"image_encoder.{n}" if n in "AB" else f"representation_learner.{n}"): t for n, t in theirs.items()}
    trainer.load_model(published(tmp_path / "theirs", "MultiModalRepresentationLearner", named), epoch=5)
    for name, p in learner.named_parameters():
        assert torch.equal(p.detach(), theirs[name].half().float()), name
    assert learner.trained_beta == 0.9 and not learner.trained_on_these
