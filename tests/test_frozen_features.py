"""Frozen image features are kept where no random transform is on; there is one CLIP in memory, whatever the trainer."""

import gc

import pytest
import torch
from torchvision import transforms as T

import trainers
from dassl.config import get_cfg_default
from dassl.config.defaults import TRANSFORMS
from dassl.data.transforms import build_transform, is_fixed
from dassl.engine import TRAINER_REGISTRY
from orthcr.run.declarations import discover
from trainers import coop
from trainers.base import ClipTrainer
from trainers.shared.backbones import load_clip
from trainers.shared.encoders import normalize

discover(trainers)
METHODS = [name for name in TRAINER_REGISTRY.registered_names() if issubclass(TRAINER_REGISTRY.get(name), ClipTrainer)]
FIXED = ["INPUT.TRANSFORMS", "['normalize']", "OPTIM.NAME", "sgd", "OPTIM.LR", 0.01, "OPTIM.MAX_EPOCH", 3]
FROZEN = ["CoOp", "ProGrad", "CoCoOp", "DePT", "CLIP_Adapter"]  # the image encoder is frozen
BOTH = ["OrthCR", "PromptSRC", "MMRL"]  # tuned and frozen


@pytest.mark.parametrize("name", TRANSFORMS)
def test_which_transforms_are_fixed(name):
    cfg = get_cfg_default()
    cfg.INPUT.TRANSFORMS = [name]
    assert is_fixed(build_transform(cfg)) == (name in ("center_crop", "normalize", "instance_norm"))


def test_what_is_not_known_counts_as_random():
    class Mine(T.Resize):
        pass

    assert is_fixed(T.Compose([T.Resize(8), T.ToTensor()]))
    for transform in (None, lambda image: image, T.Compose([Mine(8)]), [T.Compose([])], T.RandomCrop(3)):
        assert not is_fixed(transform)


@pytest.fixture
def encoded(monkeypatch):
    """encoded(trainer): a list that grows by the number of images at each run of the frozen or tuned image encoder."""

    def attach(trainer):
        sizes, encoder = [], trainer.model.image_encoder
        tokens = encoder.tokens
        monkeypatch.setattr(encoder, "tokens", lambda x, *a, **k: sizes.append(len(x)) or tokens(x, *a, **k))
        return sizes

    return attach


@pytest.mark.parametrize("name", FROZEN + BOTH)
def test_training_with_kept_features_is_that_without(make_trainer, take_steps, encoded, monkeypatch, name):
    trained, sizes = {}, {}
    for kept in (True, False):
        trainer = make_trainer(*FIXED, trainer=name, out=str(kept))
        monkeypatch.setattr(trainer, "images_repeat", lambda kept=kept: kept)
        sizes[kept] = encoded(trainer)
        torch.manual_seed(0)
        losses = [step["loss"] for step in take_steps(trainer, 4)]
        learner = trainer.model.get_submodule(trainer.learner)
        trained[kept] = losses, torch.cat([p.detach().flatten() for p in learner.parameters()])
    assert trained[True][0] == pytest.approx(trained[False][0], rel=1e-5)
    torch.testing.assert_close(trained[True][1], trained[False][1], atol=1e-6, rtol=1e-5)

    n, batch = len(trainer.dm.dataset.train_x), trainer.train_loader_x.batch_size
    runs = 1 if name in FROZEN else 2
    assert sum(sizes[False]) == 4 * batch * runs
    assert sum(sizes[True]) == 4 * batch * (runs - 1) + n, "the frozen side once for each image"


def test_kept_features_belong_to_their_images(make_trainer, take_steps):
    trainer = make_trainer(*FIXED, trainer="CoOp")
    take_steps(trainer)
    dataset = trainer.train_loader_x.dataset
    order = torch.randperm(len(dataset))[:3]
    images = torch.stack([dataset[int(k)]["img"] for k in order])
    assert trainer.frozen_input(images) is images, "no step is being made"
    trainer.step_rows = order
    torch.testing.assert_close(
        trainer.model.frozen_image(trainer.frozen_input(images)),
        normalize(trainer.model.image_encoder(images)),
        atol=1e-6,
        rtol=1e-5,
    )
    trainer.model.double()
    assert not trainer.model._frozen_cache, "of other weights"


@pytest.mark.parametrize("views", ["cut", "both"])
def test_cut_images_have_features_of_their_own(make_trainer, take_steps, encoded, views):
    opts = [f"TRAINER.ORTHSR.{key}" for key in ("VIEWS", "REG")]
    trainer = make_trainer(*FIXED, opts[0], views, opts[1], "cross_kl", trainer="OrthSR")
    sizes, batch = encoded(trainer), trainer.train_loader_x.batch_size
    take_steps(trainer, 2)
    assert sizes == [batch, *[batch if views == "cut" else 2 * batch] * 2] * 2, "attention, tuned, frozen"


def test_classifiers_that_read_the_image_get_it(make_trainer, take_steps, monkeypatch):
    """Of a method of another file: a classifier that defines `forward` or `encode_image`, with our loss and caches."""

    class Forward(coop.CustomCLIP):
        def forward(self, image):
            return self.logits(normalize(self.image_encoder(image[:, :3])), self.encode_text())

    class Encode(coop.CustomCLIP):
        def encode_image(self, image):
            return normalize(self.image_encoder(image[:, :3]))

    steps = []
    for classifier in (coop.CustomCLIP, Forward, Encode):
        monkeypatch.setattr(coop.CoOp, "classifier", classifier)
        trainer = make_trainer(*FIXED, trainer="CoOp", out=classifier.__name__)
        torch.manual_seed(0)
        steps.append(take_steps(trainer, 2)[-1]["loss"])
    assert steps[1] == steps[2] == pytest.approx(steps[0], rel=1e-5)


@pytest.mark.parametrize("opts", [["INPUT.TRANSFORMS", "['random_flip','normalize']"], ["OPTIM.MAX_EPOCH", 1]], ids=str)
def test_nothing_is_kept_of_images_that_differ_or_come_once(make_trainer, take_steps, opts):
    trainer = make_trainer(*FIXED, *opts, trainer="CoOp")
    take_steps(trainer)
    assert not trainer.model._frozen_cache


def test_no_more_is_kept_than_allowed(make_trainer, monkeypatch):
    trainer = make_trainer(*FIXED, trainer="CoOp")
    needed = 4 * trainer.model.text_encoder.text_projection.shape[1] * len(trainer.dm.dataset.train_x)
    for allowed in (needed, needed - 1):
        monkeypatch.setattr("trainers.base.FEATURES", allowed)
        assert trainer.images_repeat() == (allowed == needed)


@pytest.mark.parametrize("name, key", [("LinearProbe", "ADAPTER.PASSES"), ("TipAdapter", "TIPADAPTER.AUGMENT_EPOCH")])
@pytest.mark.parametrize("transforms, different", [("['normalize']", 1), ("['random_flip','normalize']", 3)])
def test_passes_that_are_the_same_are_made_once(make_trainer, encoded, name, key, transforms, different):
    trainer = make_trainer("INPUT.TRANSFORMS", transforms, f"TRAINER.{key}", 3, trainer=name)
    sizes = encoded(trainer)
    passes = trainer.features_of_passes(3)
    assert len(passes) == 3 and sum(sizes) == different * len(trainer.dm.dataset.train_x)
    assert torch.equal(passes[0][0], passes[2][0]) == (different == 1)


def test_there_is_one_clip_in_memory(make_trainer, take_steps):
    """By all tensors alive of the shape of CLIP's largest one, and of its patch embedding; of each method in turn."""
    plain = load_clip("tiny")
    shapes = [plain.token_embedding.weight.shape, plain.visual.conv1.weight.shape]
    gc.collect()
    gc.freeze()  # what is there is neither collected nor found
    try:
        for name in METHODS:
            trainer = make_trainer(trainer=name, out=name)
            if trainer.optim is not None:
                take_steps(trainer)
            trainer.model.eval()
            with torch.no_grad():
                trainer.model_inference(trainer.parse_batch_test(next(iter(trainer.test_loader)))[0])
            alive = {t.untyped_storage().data_ptr(): t.shape for t in tensors(shapes)}
            if sorted(alive.values()) != sorted(shapes):  # collecting takes long
                gc.collect()
                alive = {t.untyped_storage().data_ptr(): t.shape for t in tensors(shapes)}
            assert sorted(alive.values()) == sorted(shapes), name
            del trainer
            gc.collect()
    finally:
        gc.unfreeze()


def tensors(shapes):
    kinds = torch.Tensor, torch.nn.Parameter, torch.nn.Buffer  # not what other tests left of fake tensors
    return [t for t in gc.get_objects() if type(t) in kinds and t.shape in shapes]
