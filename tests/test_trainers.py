"""What all trainers have in common, and the hooks of ClipTrainer."""

import numpy as np
import pytest
import torch
from torch import nn

import trainers
from dassl.engine import TRAINER_REGISTRY
from orthcr.run.declarations import discover
from trainers.base import ClipTrainer, node_of, nodes_of
from trainers.shared.classifier import ClipClassifier
from trainers.shared.encoders import normalize

discover(trainers)
METHODS = [name for name in TRAINER_REGISTRY.registered_names() if issubclass(TRAINER_REGISTRY.get(name), ClipTrainer)]


@pytest.mark.parametrize("dataset", ["Shapes", "Digits"])
@pytest.mark.parametrize("name", METHODS)
def test_every_trainer_runs_on_every_embedded_data_set(make_trainer, take_steps, name, dataset):
    trainer = make_trainer("DATALOADER.TRAIN_X.BATCH_SIZE", 8, trainer=name, dataset=dataset)
    if trainer.optim is not None:
        assert all(np.isfinite(value) for step in take_steps(trainer, 2) for value in step.values())
    if trainer.learner:
        assert list(trainer._models) == [trainer.registered or trainer.learner]
    clips = [p for n, p in trainer.model.named_parameters() if n.startswith(("image_encoder.", "text_encoder."))]
    assert len(clips) > 50 and not any(p.requires_grad for p in clips)
    accuracy = trainer.test(split="val")
    assert accuracy == trainer.results["accuracy"] and 0 <= accuracy <= 100
    assert not any(module.training for module in trainer.model.modules())


@pytest.mark.parametrize("name", [name for name in METHODS if TRAINER_REGISTRY.get(name).learner])
def test_the_frozen_clip_stays_in_eval_mode(make_trainer, name):
    trainer = make_trainer(trainer=name)
    trainer.set_model_mode("train")
    assert trainer.model.training and trainer.model.get_submodule(trainer.learner).training
    assert not any(m.training for m in (*trainer.model.image_encoder.modules(), *trainer.model.text_encoder.modules()))


@pytest.mark.parametrize("precision", ["amp", "bf16"])
@pytest.mark.parametrize("name", ["OrthCR", "CoOp"])
def test_on_the_cpu_every_precision_is_fp32(make_trainer, take_steps, capsys, name, precision):
    steps = {}
    for prec in ("fp32", precision):
        trainer = make_trainer(f"TRAINER.{name.upper()}.PREC", prec, "OPTIM.LR", 0.01, trainer=name, out=prec)
        assert trainer.autocast["enabled"] is False and not trainer.scaler.is_enabled()
        assert ("fp32 is used on the CPU" in capsys.readouterr().out) == (prec != "fp32")
        torch.manual_seed(0)
        steps[prec] = take_steps(trainer, 2)
    assert steps["fp32"] == steps[precision]


@pytest.mark.parametrize("name", METHODS)
def test_unknown_precision_is_refused(make_trainer, name):
    with pytest.raises(ValueError, match="fp64"):
        make_trainer(f"TRAINER.{node_of(TRAINER_REGISTRY.get(name))}.PREC", "fp64", trainer=name)


@pytest.mark.parametrize("name", ["OrthCR", "CoOp"])
def test_the_learning_rate_moves_at_the_end_of_an_epoch_only(make_trainer, name):
    trainer = make_trainer("OPTIM.LR", 0.01, "OPTIM.MAX_EPOCH", 4, trainer=name)
    trainer.set_model_mode("train")
    batch, rates = next(iter(trainer.train_loader_x)), []
    trainer.num_batches = 2
    for trainer.batch_idx in (0, 1, 0, 1):
        trainer.forward_backward(batch)
        rates.append(trainer.get_current_lr())
    cosine = [0.01 * (1 + np.cos(np.pi * epoch / 4)) / 2 for epoch in (0, 1, 1, 2)]
    assert rates == pytest.approx(cosine)


# ------------------------------------------------------------------ hooks


@pytest.fixture
def registered(monkeypatch):
    """registered(class): registers a trainer for this test only."""

    def register(trainer):
        TRAINER_REGISTRY.register(trainer, force=True)
        added.append(trainer.__name__)
        return trainer

    added = []
    yield register
    for name in added:
        del TRAINER_REGISTRY._obj_map[name]


def settings_of(cfg, parent, name):
    """The node of `parent` as KEY VALUE pairs for that of `name`, without keys in place of which another decides."""
    old, new = (node_of(TRAINER_REGISTRY.get(trainer)) for trainer in (parent, name))
    node, decides = cfg.TRAINER[old], TRAINER_REGISTRY.get(parent).deciding_keys
    decided = {key for name, of in decides.items() if node[name] for key in of.keys}
    return [word for key, value in node.items() if key not in decided for word in (f"TRAINER.{new}.{key}", value)]


@pytest.mark.parametrize("parent", [name for name in METHODS if TRAINER_REGISTRY.get(name).learner])
def test_a_subclass_of_three_lines_trains_and_evaluates(make_cfg, make_trainer, registered, parent):
    registered(type("Sub", (TRAINER_REGISTRY.get(parent),), {"__doc__": "A variant with a node of its own."}))
    opts = ["OPTIM.MAX_EPOCH", 1, "OPTIM.LR", 0.05, "DATALOADER.TRAIN_X.BATCH_SIZE", 16]
    opts += ["DATASET.SUBSAMPLE_CLASSES", "base"]
    own = settings_of(make_cfg(trainer=parent), parent, "Sub")
    trainer = make_trainer(*opts, *own, trainer="Sub")
    assert list(trainer.cfg.TRAINER) == ["NAME", *nodes_of(TRAINER_REGISTRY.get("Sub"))]
    trainer.train()
    original = make_trainer(*opts, trainer=parent, out="original")
    original.train()
    assert trainer.results == original.results
    again = make_trainer(*opts, *own, trainer="Sub", out="again")
    again.load_model(trainer.output_dir)
    assert again.test() == trainer.results["accuracy"]


@pytest.mark.parametrize(
    "parent, key, value",
    [("OrthCR", "TAU", 0.0), ("OrthCR", "LAYERS", "[9]"), ("CoOp", "CLASS_TOKEN_POSITION", "here")],
)
def test_a_subclass_names_its_own_keys_in_messages(make_trainer, registered, parent, key, value):
    registered(type("Sub", (TRAINER_REGISTRY.get(parent),), {}))
    with pytest.raises(ValueError, match=r"TRAINER\.SUB"):
        make_trainer(f"TRAINER.SUB.{key}", value, trainer="Sub")


class Cache(ClipClassifier):
    """Nothing is trained: class means of image features, beside the text."""

    def __init__(self, clip_model, classnames):
        super().__init__(clip_model, classnames, ["a photo of a {}."])
        self.cache = nn.Module()
        self.cache.register_buffer("means", torch.zeros(len(classnames), clip_model.visual.proj.shape[1]))

    def encode_text(self):
        return normalize(self.frozen_text + self.cache.means)


def make_cached(registered):
    class Cached(ClipTrainer):
        learner, fits = "cache", 0

        def build_classifier(self, clip_model, classnames):
            return Cache(clip_model, classnames)

        def fit(self):
            type(self).fits += 1
            features, labels = self.features(self.dm.dataset.train_x)
            for c in range(self.num_classes):
                self.model.cache.means[c] = normalize(features[labels == c]).mean(0)

    return registered(Cached)


def test_a_training_free_cache_is_filled_once_and_kept(make_trainer, registered, tmp_path):
    cached = make_cached(registered)
    trainer = make_trainer("OPTIM.MAX_EPOCH", 7, trainer="Cached")
    trainer.train()
    assert cached.fits == 1 and trainer.model.cache.means.abs().amax(dim=-1).min() > 0
    zero = make_trainer(trainer="ZeroshotCLIP", out="zero")
    assert trainer.results["accuracy"] != zero.test(), "the cache has an effect"
    assert sorted(p.name for p in (tmp_path / "out" / "cache").iterdir()) == ["checkpoint", "model.pth.tar-1"]
    again = make_trainer("OPTIM.MAX_EPOCH", 7, trainer="Cached")
    again.train()  # goes on from the checkpoint
    assert cached.fits == 1 and again.results == trainer.results
    loaded = make_trainer(trainer="Cached", out="loaded")
    loaded.load_model(trainer.output_dir)
    assert loaded.test() == trainer.results["accuracy"]


@pytest.mark.parametrize("name", ["CoOp", "OrthCR"])
def test_fit_comes_before_the_first_step_of_a_fresh_start_only(make_trainer, registered, name):
    calls = []
    fit = {"fit": lambda self: calls.append((self.epoch, self.start_epoch))}
    registered(type("Fitted", (TRAINER_REGISTRY.get(name),), fit))
    make_trainer("OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True, trainer="Fitted").train()
    assert calls == [(0, 0)]
    make_trainer("OPTIM.MAX_EPOCH", 2, "TEST.NO_TEST", True, trainer="Fitted").train()
    assert calls == [(0, 0)]


def test_features_are_the_frozen_clips_of_the_images_in_order(make_trainer, tiny):
    trainer = make_trainer("DATALOADER.TEST.BATCH_SIZE", 7)
    items = trainer.dm.dataset.test[:20]
    features, labels = trainer.features(items)
    images = torch.stack([trainer.test_loader.dataset[k]["img"] for k in range(20)])
    torch.testing.assert_close(features, tiny.encode_image(images), atol=1e-5, rtol=1e-5)
    assert labels.tolist() == [item.label for item in items] and not features.requires_grad
    augmented = [trainer.features(items, train=True)[0] for _ in range(2)]
    assert not torch.equal(*augmented) and not torch.equal(augmented[0], features)


def test_backward_decides_over_the_gradients(make_trainer, registered, take_steps):
    """As ProGrad needs it: of two terms only the gradient of one is used."""
    orthcr = TRAINER_REGISTRY.get("OrthCR")
    registered(type("OnlyCE", (orthcr,), {"backward": lambda self, terms: terms["ce"].backward()}))
    trained = []
    for name, opts in (("OnlyCE", []), ("OrthCR", ["TRAINER.ORTHCR.LAMBDA", 0.0])):  # both: no gradient of the KL
        trainer = make_trainer(*opts, "OPTIM.NAME", "sgd", "OPTIM.LR", 0.05, trainer=name, out=name)
        torch.manual_seed(0)
        steps = take_steps(trainer, 3)
        assert set(steps[0]) == {"loss", "ce", "cross_kl", "acc"}
        trained.append(torch.cat([p.detach().flatten() for p in trainer.model.rotations.parameters()]))
    assert trained[0].abs().max() > 1e-4
    torch.testing.assert_close(*trained, atol=1e-6, rtol=1e-3)


def test_a_schedule_of_batches(make_trainer, registered):
    registered(type("PerBatch", (TRAINER_REGISTRY.get("CoOp"),), {"lr_per_batch": True}))
    opts = ["OPTIM.LR", 0.01, "OPTIM.MAX_EPOCH", 3, "DATALOADER.TRAIN_X.BATCH_SIZE", 16, "OPTIM.WARMUP_EPOCH", 1]
    trainer, rates = make_trainer(*opts, trainer="PerBatch"), []
    trainer.set_model_mode("train")
    trainer.num_batches = len(trainer.train_loader_x)
    for _ in range(3):
        for trainer.batch_idx, batch in enumerate(trainer.train_loader_x):  # noqa: B020
            rates.append(trainer.get_current_lr())
            trainer.forward_backward(batch)
    n = trainer.num_batches
    assert n > 3 and len(rates) == 3 * n
    cosine = [0.01 * (1 + np.cos(np.pi * step / (3 * n))) / 2 for step in range(2 * n)]
    assert rates == pytest.approx([trainer.cfg.OPTIM.WARMUP_CONS_LR] * n + cosine)


def test_a_schedule_of_batches_needs_no_batches_to_predict(make_trainer, registered):
    registered(type("PerBatch", (TRAINER_REGISTRY.get("CoOp"),), {"lr_per_batch": True}))
    trainer = make_trainer(trainer="PerBatch")
    trainer.train_loader_x = None  # as orthcr.deploy.predictor leaves it
    assert trainer.optim_cfg().MAX_EPOCH == trainer.cfg.OPTIM.MAX_EPOCH


def test_the_seconds_of_training_include_fit(make_trainer, registered, monkeypatch):
    def fit(self):
        monkeypatch.setattr("dassl.engine.trainer.time.time", lambda: 2e9)  # later than any clock of today

    registered(type("Fits", (TRAINER_REGISTRY.get("CoOp"),), {"fit": fit}))
    trainer = make_trainer("OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True, trainer="Fits")
    trainer.train()
    assert trainer.train_seconds > 1e8


def test_features_kept_follow_a_change_of_type_and_serve_training(make_trainer, take_steps):
    model = make_trainer(trainer="OrthCR").model.eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        fp32 = model(image)
        model.frozen_text  # noqa: B018
    model.double()
    with torch.no_grad():
        fp64 = model(image.double())
    assert model.frozen_text.dtype == torch.float64  # `wide` lifts half precision only
    torch.testing.assert_close(fp64.float(), fp32.clone(), atol=1e-4, rtol=1e-4)
    sum(z.sum() for z in model.train().all_logits(image.double())).backward()
