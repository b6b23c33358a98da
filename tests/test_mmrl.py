"""MMRL: both classifiers against OpenAI's own blocks in fp64, which of them is used, and the original's checkpoints."""

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

from trainers.mmrl import CustomCLIP, MultiModalRepresentationLearner

NODE = "TRAINER.MMRL."


def node(**changes):
    return SimpleNamespace(**{"ALPHA": 0.7, "N_REP_TOKENS": 3, "REP_LAYERS": [1, 2], "REP_DIM": 16, **changes})


def custom(model, fused=True, names=NAMES, dataset="Shapes", **changes):
    return CustomCLIP(node(**changes), model, names, dataset, fused)


def inserted(layers, tokens):
    """As `prompted.run` takes it: put between position 0 and the rest before the first block, then replaced."""
    prompts_by_block = {layer - 1: t for layer, t in zip(layers, tokens, strict=True)}

    def put(i, x):
        if i not in prompts_by_block:
            return x
        n = 0 if i == layers[0] - 1 else len(prompts_by_block[i])
        return torch.cat([x[:, :1], repeat(prompts_by_block[i], x), x[:, 1 + n :]], dim=1)

    return put


def features(model, learner, image, layers):
    """f, f_r and g by the equations."""
    r, n = learner.compound_rep_tokens, len(learner.compound_rep_tokens)
    v, t = (
        [r @ f.weight.T + f.bias for f in maps]
        for maps in (learner.compound_rep_tokens_r2vproj, learner.compound_rep_tokens_r2tproj)
    )
    visual = model.visual
    x = run(visual.transformer.resblocks, visual.ln_pre(plain_tokens(visual, image)), inserted(layers, v))
    f = unit(visual.ln_post(x[:, 0]) @ visual.proj)
    f_r = unit(sum(visual.ln_post(x[:, k]) for k in range(1, n + 1)) / n @ learner.proj_rep)
    embedding, end = embeddings(model, "a photo of a", torch.zeros(0, 64).double())
    x = run(model.transformer.resblocks, embedding + model.positional_embedding, inserted(layers, t))
    return f, f_r, unit(model.ln_final(x)[torch.arange(len(x)), end + n] @ model.text_projection)


@pytest.mark.parametrize("layers", [[1, 2], [2], [1]])
def test_both_classifiers_by_openais_blocks(random_clip, noise, monkeypatch, layers):
    plain, image = exact(monkeypatch, random_clip()), noise(IMAGES, 3, 32, 32).double()
    model = custom(plain, REP_LAYERS=layers).double().eval()
    learner = randomized(model.representation_learner)
    f, f_r, g = (x.detach() for x in features(plain, learner, image, layers))
    with torch.no_grad():
        agree(model(image), 0.7 * 100 * f @ g.T + 0.3 * 100 * f_r @ g.T)
        model.fused = False
        agree(model(image), 100 * f @ g.T)


@pytest.mark.parametrize("layers", [[1, 2], [2]])
def test_loss_and_gradients_by_the_equation(make_trainer, random_clip, noise, monkeypatch, layers):
    opts = [NODE + "ALPHA", 0.6, NODE + "REG_WEIGHT", 3.0, NODE + "N_REP_TOKENS", 3, NODE + "REP_DIM", 16]
    trainer = make_trainer(*opts, trainer="MMRL")
    plain, image = exact(monkeypatch, random_clip()), noise(IMAGES, 3, 32, 32).double()
    trainer.model = custom(plain, REP_LAYERS=layers, ALPHA=0.6).double().train()
    learner = randomized(trainer.model.representation_learner)
    terms, logits = trainer.losses(image, LABELS)
    f, f_r, g = features(plain, learner, image, layers)
    embedding, end = embeddings(plain, "a photo of a", torch.zeros(0, 64).double())
    x = run(plain.transformer.resblocks, embedding + plain.positional_embedding, lambda i, x: x)
    g_0 = unit(plain.ln_final(x)[torch.arange(3), end] @ plain.text_projection)
    wanted = {
        "ce": 0.6 * F.cross_entropy(100 * f @ g.T, LABELS),
        "ce_rep": 0.4 * F.cross_entropy(100 * f_r @ g.T, LABELS),
        "cos_image": 3.0 * (1 - F.cosine_similarity(f, unit(plain.encode_image(image))).mean()),
        "cos_text": 3.0 * (1 - F.cosine_similarity(g, g_0).mean()),
    }
    assert terms.keys() == wanted.keys()
    for name, term in wanted.items():
        agree(terms[name], term)
    agree(logits, 60 * f @ g.T + 40 * f_r @ g.T)
    same_value_and_gradients(sum(terms.values()), sum(wanted.values()), learner)


def test_as_many_parameters_as_published():
    learner = MultiModalRepresentationLearner(
        node(N_REP_TOKENS=5, REP_LAYERS=range(6, 13), REP_DIM=512), (768, 512, 512), NAMES
    )
    assert sum(p.numel() for p in learner.parameters()) == 4_992_256


def test_maps_of_an_encoder_start_equal(random_clip):
    learner = custom(random_clip()).representation_learner
    for maps in (learner.compound_rep_tokens_r2vproj, learner.compound_rep_tokens_r2tproj):
        assert torch.equal(maps[0].weight, maps[1].weight) and maps[0].weight is not maps[1].weight
    assert 0.9 < learner.proj_rep.std() * 128**0.5 < 1.1


def test_tokens_start_from_a_normal_of_two_hundredths(random_clip):
    tokens = custom(random_clip(), N_REP_TOKENS=200, REP_DIM=64).representation_learner.compound_rep_tokens.detach()
    assert 0.0195 < tokens.std() < 0.0205 and tokens.mean().abs() < 1e-3 and tokens.abs().max() > 0.06


@pytest.mark.parametrize("name, weight", [("StanfordCars", 7.0), ("EuroSAT", 0.01), ("Shapes", 1.0)])
def test_the_regularizer_has_the_data_sets_own_weight(make_trainer, noise, name, weight):
    image, label = noise(2, 3, 32, 32), torch.tensor([0, 1])
    terms = {}
    for value in (None, 1.0):
        trainer = make_trainer(NODE + "REG_WEIGHT", value, trainer="MMRL", out=str(value))
        trainer.cfg.defrost()
        trainer.cfg.DATASET.NAME = name
        terms[value] = trainer.losses(image, label)[0]
    for term in ("cos_image", "cos_text"):
        torch.testing.assert_close(terms[None][term], weight * terms[1.0][term])
    assert torch.equal(terms[None]["ce"], terms[1.0]["ce"])


@pytest.mark.parametrize(
    "name, given, told", [("StanfordCars", 1.0, True), ("StanfordCars", 7.0, False), ("X", 1.0, False)]
)
def test_a_weight_that_the_original_would_ignore_is_told(make_trainer, capsys, name, given, told):
    trainer = make_trainer(NODE + "REG_WEIGHT", given, trainer="MMRL")
    trainer.cfg.defrost()
    trainer.cfg.DATASET.NAME = name
    trainer.fit()
    assert ("the authors uses 7 for StanfordCars" in capsys.readouterr().out) is told


# ------------------------------------------------------------------ which classifier

TASKS = [  # as the original decides
    ("B2N", "base", "Caltech101", True),
    ("B2N", "new", "Caltech101", False),
    ("B2N", "all", "Caltech101", False),
    ("FS", "all", "Caltech101", True),
    ("CD", "all", "ImageNet", True),
    ("CD", "all", "Caltech101", False),
    ("CD", "all", "ImageNetV2", False),
    ("", "base", "Caltech101", None),
]


def test_the_task_decides_as_in_the_original(make_trainer):
    trainer = make_trainer(trainer="MMRL")
    trainer.cfg.defrost()
    for trainer.cfg.TASK, trainer.cfg.DATASET.SUBSAMPLE_CLASSES, trainer.cfg.DATASET.NAME, fused in TASKS:  # noqa: B020
        assert trainer.evaluates_fused() is fused


OTHERS = ["zebra", *NAMES[1:]]


@pytest.mark.parametrize(
    "names, dataset, fused",
    [(NAMES, "Shapes", True), (NAMES[:2], "Shapes", True), (OTHERS, "Shapes", False), (NAMES, "ShapesFog", False)],
)
def test_without_a_task_it_is_both_on_what_was_trained_on(random_clip, noise, names, dataset, fused):
    plain, image = random_clip(), noise(2, 3, 32, 32)
    state = custom(plain).representation_learner.state_dict()
    model, wanted, other = (custom(plain, f, names, dataset).eval() for f in (None, fused, not fused))
    with torch.no_grad():
        for m in (model, wanted, other):
            m.representation_learner.load_state_dict(state)
        assert torch.equal(model(image), wanted(image)) and not torch.allclose(model(image), other(image))


def test_a_checkpoint_that_does_not_say_its_classes_has_the_class_token_alone(random_clip):
    learner = custom(random_clip(), None).representation_learner
    assert learner.trained_on_these, "before anything is loaded"
    learner.load_state_dict({name: p for name, p in learner.state_dict().items() if name != "classes"})
    assert not learner.trained_on_these


def test_base_and_new_classes_of_a_run(make_trainer, take_steps):
    opts = ["DATASET.SUBSAMPLE_CLASSES"]
    trainer = make_trainer(*opts, "base", trainer="MMRL")
    take_steps(trainer, 2)
    trainer.save_model(0, trainer.output_dir)
    for classes, same in (("base", True), ("new", False), ("base", True)):
        other = make_trainer(*opts, classes, trainer="MMRL", out="other")
        other.load_model(trainer.output_dir)
        assert other.model.representation_learner.trained_on_these is same


def test_evaluations_never_mix_old_and_new_tokens(make_trainer, take_steps):
    """The original keeps the text features of its first evaluation for good."""
    trainer = make_trainer("OPTIM.LR", 0.01, trainer="MMRL")
    image = next(iter(trainer.test_loader))["img"]
    trainer.test()
    take_steps(trainer, 3)
    trainer.save_model(0, trainer.output_dir)
    trainer.test()
    fresh = make_trainer(trainer="MMRL", out="fresh")
    fresh.load_model(trainer.output_dir)
    fresh.set_model_mode("eval")
    with torch.no_grad():
        torch.testing.assert_close(trainer.model_inference(image), fresh.model_inference(image))


# ------------------------------------------------------------------ checkpoints and settings


def test_checkpoint_of_the_original(make_trainer, tmp_path, noise):
    trainer = make_trainer(trainer="MMRL")
    learner = trainer.model.representation_learner
    theirs = {name: noise(*p.shape, seed=k) for k, (name, p) in enumerate(learner.named_parameters())}
    renamed = {f"representation_learner.{name}": tensor for name, tensor in theirs.items()}
    renamed["image_encoder.proj_rep"] = renamed.pop("representation_learner.proj_rep")
    trainer.load_model(published(tmp_path / "theirs", "MultiModalRepresentationLearner", renamed), epoch=5)
    for name, p in learner.named_parameters():
        assert torch.equal(p.detach(), theirs[name].half().float()), name


@pytest.mark.parametrize(
    "key, value, reason",
    [
        (NODE + "REP_LAYERS", "[2, 4]", "reaches block 4, but the text encoder of tiny has 3"),
        (NODE + "REP_LAYERS", "[3, 2]", "ascending"),
        (NODE + "REP_LAYERS", "[]", "one or more"),
        (NODE + "REP_LAYERS", "[0, 1]", "REP_LAYERS is"),
        (NODE + "ALPHA", 1.5, "ALPHA is 1.5"),
        (NODE + "REG_WEIGHT", -1.0, "REG_WEIGHT is -1.0"),
        ("TASK", "B2M", "B2N"),
    ],
)
def test_settings_that_cannot_be_are_refused(make_trainer, one_line, key, value, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        make_trainer(key, value, trainer="MMRL")
    one_line(caught)
