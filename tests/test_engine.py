"""Trainers: models by name, what an epoch is, what a trainer is without a line of its own, SimpleNet."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, SimpleNet, SimpleTrainer, TrainerBase, TrainerX, TrainerXU, build_trainer
from dassl.optim import build_lr_scheduler, build_optimizer
from trainers.base import ClipTrainer


class Bare(TrainerBase):
    """Models with an optimizer and a scheduler each, and nothing else."""

    def __init__(self, *names):
        super().__init__()
        cfg = get_cfg_default().OPTIM
        for name in names:
            model = nn.Linear(2, 2)
            optim = build_optimizer(model, cfg)
            self.register_model(name, model, optim, build_lr_scheduler(optim, cfg))


def test_several_models_go_on_from_the_last_epoch_that_all_have(tmp_path, capsys):
    trainer = Bare("a", "b")
    trainer.save_model(0, tmp_path)
    kept = {name: model.weight.detach().clone() for name, model in trainer._models.items()}
    for model in trainer._models.values():
        nn.init.zeros_(model.weight)
    trainer.save_model(1, tmp_path)
    os.remove(tmp_path / "b" / "model.pth.tar-2")  # killed between the two

    other = Bare("a", "b")
    assert other.resume_model_if_exist(str(tmp_path)) == 1
    assert all(torch.equal(other._models[name].weight, weight) for name, weight in kept.items())
    assert Bare("c").resume_model_if_exist(str(tmp_path)) == 0
    assert "from scratch" in capsys.readouterr().out
    (tmp_path / "c").mkdir()
    with pytest.raises(FileNotFoundError, match=f'no checkpoints in "{tmp_path / "c"}"'):
        Bare("c").load_model(str(tmp_path))


def test_models_by_name():
    trainer = Bare("a", "b")
    assert trainer.get_model_names() == ["a", "b"] and trainer.get_model_names("b") == ["b"]
    with pytest.raises(ValueError, match=r"\['c'\].*\['a', 'b'\]"):
        trainer.get_model_names(["a", "c"])
    with pytest.raises(ValueError, match='"a"'):
        trainer.register_model("a", nn.Linear(1, 1))
    trainer.set_model_mode("eval", "a")
    assert [model.training for model in trainer._models.values()] == [False, True]
    trainer.load_model("")  # no directory: nothing is loaded
    trainer.write_scalar("loss", 1.0)  # nor written, while there is no writer
    trainer.epoch = trainer.batch_idx = 0
    with pytest.raises(FloatingPointError, match="OPTIM.LR"):
        trainer.model_backward_and_update(torch.tensor(float("nan"), requires_grad=True))


# ------------------------------------------------------------------ what an epoch is


def loader(name, length):
    return [
        {"img": torch.zeros(1, 2), "label": torch.zeros(1), "domain": torch.zeros(1), "name": f"{name}{i}"}
        for i in range(length)
    ]


class Fake:
    """Runs epochs over lists in place of loaders; notes the batches and steps the scheduler as plugins do."""

    def __init__(self, x, u=0, count="train_x"):
        TrainerBase.__init__(self)
        self.cfg = get_cfg_default()
        self.cfg.TRAIN.COUNT_ITER = count
        self.device = torch.device("cpu")
        self.train_loader_x, self.train_loader_u = loader("x", x), loader("u", u)
        self.seen = []
        model = nn.Linear(2, 2)
        self.optim = build_optimizer(model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("model", model, self.optim, self.sched)

    def forward_backward(self, *batches):
        self.seen.append("".join(batch["name"] for batch in batches))
        parsed = self.parse_batch_train(*batches)
        loss = sum(self._models["model"](img).sum() for img in (parsed[0], parsed[-1]) if img.dim() == 2)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

    def train(self, epochs):
        TrainerBase.train(self, 0, epochs)
        return self.seen


class FakeX(Fake, TrainerX):
    before_train = after_epoch = after_train = TrainerBase.before_train


class FakeXU(Fake, TrainerXU):
    before_train = after_epoch = after_train = TrainerBase.before_train


@pytest.mark.parametrize(
    "count, seen", [("train_x", "x0u0 x1u1"), ("train_u", "x0u0 x1u1 x0u2 x1u3 x0u4"), ("smaller_one", "x0u0 x1u1")]
)
def test_epochs_of_labelled_and_unlabelled_batches(count, seen):
    trainer = FakeXU(2, 5, count)
    assert trainer.train(3) == 3 * seen.split()
    assert trainer.sched.last_epoch == 3, "update_lr once an epoch"
    swapped = {"train_x": 5, "train_u": 2, "smaller_one": 2}[count]
    assert len(FakeXU(5, 2, count).train(1)) == swapped


def test_unknown_count_iter_is_named():
    with pytest.raises(ValueError, match="COUNT_ITER.*bigger.*smaller_one"):
        FakeXU(1, 1, "bigger").train(1)


def test_epochs_of_labelled_batches():
    trainer = FakeX(3)
    assert trainer.train(2) == ["x0", "x1", "x2"] * 2
    assert trainer.sched.last_epoch == 2


# ------------------------------------------------------------------ from the config alone


@pytest.fixture
def small(tmp_path, bare_cfg, monkeypatch):
    """small(trainer class, KEY, VALUE...): that trainer of a ResNet on noise, 8 train, 4 unlabelled, 4 test images."""
    noise = np.random.default_rng(0)
    items = [Datum(str(tmp_path / f"{i}.png"), i % 2, 0, f"class {i % 2}") for i in range(16)]
    for item in items:
        Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(item.impath)

    class Noise(DatasetBase):
        def __init__(self, cfg):
            tested = items[12:] if cfg.DATASET.NUM_SHOTS else None
            super().__init__(train_x=items[:8], train_u=items[8:12], test=tested)

    def build(trainer, *opts):
        monkeypatch.setitem(DATASET_REGISTRY._obj_map, "Noise", Noise)
        monkeypatch.setitem(TRAINER_REGISTRY._obj_map, trainer.__name__, trainer)
        opts = ["DATALOADER.TRAIN_X.BATCH_SIZE", 4, "OPTIM.MAX_EPOCH", 2, "TRAIN.PRINT_FREQ", 1, *opts]
        opts += ["MODEL.BACKBONE.NAME", "resnet18", "MODEL.BACKBONE.PRETRAINED", False]
        opts += ["TRAINER.NAME", trainer.__name__, "DATASET.NAME", "Noise", "OUTPUT_DIR", str(tmp_path / "out")]
        torch.manual_seed(0)
        return build_trainer(bare_cfg(*opts))

    return build


class Plain(TrainerX):
    """Dassl's Vanilla: a step is all that it says."""

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        loss = F.cross_entropy(self.model(image), label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


class PlainU(TrainerXU):
    """The same on labelled images, and as low an entropy as can be on unlabelled ones."""

    def forward_backward(self, batch_x, batch_u):
        image, label, image_u = self.parse_batch_train(batch_x, batch_u)
        p = self.model(image_u).softmax(1)
        loss = F.cross_entropy(self.model(image), label) - (p * p.log()).sum(1).mean()
        self.model_backward_and_update(loss)
        return {"loss": loss.item(), "unlabelled": len(image_u)}


def test_a_trainer_that_says_only_what_a_step_is(small, tmp_path, capsys):
    trainer = small(Plain)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    assert (trainer.num_classes, trainer.num_source_domains, trainer.get_current_lr()) == (2, 0, 0.0003)
    trainer.train()
    said = capsys.readouterr().out
    assert f"# params: {sum(p.numel() for p in trainer.model.parameters()):,}\n" in said
    for line in ("epoch [1/2] batch [1/2] time ", "epoch [2/2] batch [2/2] time ", "Finish training", "* accuracy: "):
        assert line in said
    assert trainer.results["split"] == "test" and 0 <= trainer.results["accuracy"] <= 100
    assert trainer.sched.last_epoch == 2 and len(list((tmp_path / "out" / "tensorboard").iterdir())) == 1
    after = trainer.model.state_dict()
    assert not any(torch.equal(before[name], after[name]) for name in ("backbone.conv1.weight", "classifier.weight"))

    weights = tmp_path / "out" / "model" / "model.pth.tar-2"
    for other in (small(Plain), small(Plain, "MODEL.INIT_WEIGHTS", str(weights))):
        same = torch.equal(other.model.classifier.weight, after["classifier.weight"])
        assert same == bool(other.cfg.MODEL.INIT_WEIGHTS)
        other.load_model(str(tmp_path / "out"))
        assert torch.equal(other.model.classifier.weight, after["classifier.weight"])
        assert other.test() == trainer.results["accuracy"]


def test_a_trainer_on_unlabelled_images_too(small, capsys):
    trainer = small(PlainU, "TEST.NO_TEST", True)
    trainer.train()
    said = capsys.readouterr().out
    assert "epoch [2/2] batch [2/2]" in said and "unlabelled 4.0000 (4.0000)" in said and "accuracy" not in said


def test_the_test_split_takes_the_place_of_a_missing_val_split(small, capsys, one_line):
    """As in Dassl; but for this project's trainers nothing is chosen on test images."""
    assert not ClipTrainer.test_replaces_val
    trainer = small(Plain, "TEST.SPLIT", "val")
    accuracy = trainer.test()
    said = capsys.readouterr().out
    assert "Noise has no val split: the test set takes its place\n" in said and "Evaluate on the *test* set" in said
    assert trainer.results["split"] == "test" and accuracy == trainer.test(split="test")
    trainer.test_replaces_val = False
    with pytest.raises(ValueError, match="Noise has no val split") as error:
        trainer.test()
    assert "TEST.SPLIT to test" in one_line(error)


def test_what_no_trainer_can_do(small, one_line):
    for opts, method, words in [
        (["OPTIM.MAX_EPOCH", 0], "train", "OPTIM.MAX_EPOCH is 0"),
        (["TEST.SPLIT", "train"], "test", '"train" is not available'),
        (["DATASET.NUM_SHOTS", 0], "test", "Noise has no test images"),
    ]:
        with pytest.raises(ValueError) as error:
            getattr(small(Plain, *opts), method)()
        assert words in one_line(error)
    trainer = small(PlainU)
    trainer.train_loader_u = None
    with pytest.raises(ValueError, match="Noise has no unlabelled images"):
        trainer.train()

    class Early(SimpleTrainer):
        def __init__(self):
            self.register_model("model", nn.Linear(1, 1))

    with pytest.raises(AttributeError, match="before super"):
        Early()


# ------------------------------------------------------------------ SimpleNet


@pytest.mark.parametrize(
    "head, classes, width, out",
    [
        ({}, 5, 512, 5),
        ({"NAME": "mlp", "HIDDEN_LAYERS": (64, 32)}, 5, 32, 5),
        ({"NAME": "mlp", "HIDDEN_LAYERS": (64,), "BN": False, "DROPOUT": 0.5, "ACTIVATION": "leaky_relu"}, 5, 64, 5),
        ({}, 0, 512, 512),
    ],
)
def test_simple_net(head, classes, width, out):
    cfg = get_cfg_default()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.PRETRAINED = "resnet18", False
    for key, value in head.items():
        cfg.MODEL.HEAD[key] = value
    net = SimpleNet(cfg, cfg.MODEL, classes)
    image = torch.randn(2, 3, 32, 32)
    assert net(image).shape == (2, out) and net.fdim == width
    if classes:
        logits, features = net(image, return_feature=True)
        assert logits.shape == (2, classes) and features.shape == (2, width)
        assert torch.equal(net.classifier(features), logits)


@pytest.mark.parametrize("name, said", [("resnet19", "resnet18"), ("alexnet", "not in this dassl")])
def test_simple_net_with_a_wrong_backbone(name, said):
    cfg = get_cfg_default()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.PRETRAINED = name, False
    with pytest.raises(ValueError, match=said):
        SimpleNet(cfg, cfg.MODEL, 2)
