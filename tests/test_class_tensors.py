"""Tensors that belong to classes: loaded by the names of the classes, or refused, never by position."""

import json

import pytest
import torch
from torch import nn

import trainers
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import save_checkpoint
from orthcr.run.declarations import discover
from trainers.base import ClipTrainer
from trainers.shared.classifier import ClipClassifier

discover(trainers)
BASE, NEW = (("DATASET.SUBSAMPLE_CLASSES", word) for word in ("base", "new"))


class Scaled(ClipClassifier):
    """A factor for each class; beside it a tensor of as many entries as there are base classes, by chance."""

    def __init__(self, clip_model, classnames, size):
        super().__init__(clip_model, classnames, ["a photo of a {}."])
        self.learner = nn.ParameterDict({"chance": torch.ones(size), "scale": torch.ones(len(classnames))})

    def forward(self, image):
        return super().forward(image) * self.learner["scale"] + 0 * self.learner["chance"].sum()


@pytest.fixture
def registered(monkeypatch):
    """registered(name, **attributes): registers a trainer of `Scaled` for this test."""
    make_map = dict(TRAINER_REGISTRY._obj_map)
    monkeypatch.setattr(TRAINER_REGISTRY, "_obj_map", make_map)

    def register(name, build=lambda self, clip_model, names: Scaled(clip_model, names, 20), **attributes):
        trainer = type(name, (ClipTrainer,), {"learner": "learner", "build_classifier": build, **attributes})
        return TRAINER_REGISTRY.register()(trainer)

    return register


def trained(make_trainer, name, noise, *opts):
    """A trainer on base classes with random factors, saved after its first epoch."""
    trainer = make_trainer(*BASE, *opts, trainer=name)
    with torch.no_grad():
        trainer.model.learner["scale"].copy_(noise(20).abs() + 0.5)
    trainer.save_model(0, trainer.output_dir)
    return trainer


def test_tensors_of_other_classes_are_refused(make_trainer, registered, noise, one_line):
    registered("Plain")
    trainer = trained(make_trainer, "Plain", noise)
    same = make_trainer(*BASE, trainer="Plain", out="same")
    same.load_model(trainer.output_dir)
    assert torch.equal(same.model.learner["scale"], trainer.model.learner["scale"])
    other = make_trainer(*NEW, trainer="Plain", out="other")
    assert len(other.dm.dataset.classnames) == len(trainer.dm.dataset.classnames), "the shapes say nothing"
    with pytest.raises(ValueError, match='other classes.*"scale".*Plain.per_class') as caught:
        other.load_model(trainer.output_dir)
    one_line(caught)
    assert torch.equal(other.model.learner["scale"], torch.ones(20))


def test_a_dimension_that_is_as_long_by_chance_is_none_of_classes(make_trainer, registered, noise):
    class Chance(Scaled):
        def __init__(self, clip_model, classnames):
            super().__init__(clip_model, classnames, 20)
            del self.learner["scale"]

    registered("Chance", lambda self, clip_model, names: Chance(clip_model, names))
    trainer = make_trainer(*BASE, trainer="Chance")
    with torch.no_grad():
        trainer.model.learner["chance"].copy_(noise(20))
    trainer.save_model(0, trainer.output_dir)
    other = make_trainer(*NEW, trainer="Chance", out="other")
    other.load_model(trainer.output_dir)
    assert torch.equal(other.model.learner["chance"], trainer.model.learner["chance"])


@pytest.mark.parametrize("seed", [1, 2])
def test_named_tensors_are_loaded_by_the_names_of_the_classes(make_trainer, registered, noise, seed, capsys):
    registered("Named", per_class=("scale",))
    trainer = trained(make_trainer, "Named", noise)
    names, new = trainer.dm.dataset.classnames, make_trainer(*NEW, trainer="Named", out="new")
    new.load_model(trainer.output_dir)
    assert torch.equal(new.model.learner["scale"], torch.ones(20)) and "0 of these 20" in capsys.readouterr().out

    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed)).tolist()
    mixed = [names[k] for k in order[:7]] + new.dm.dataset.classnames[:13]
    new.dm.dataset._classnames = mixed
    new.load_model(trainer.output_dir)
    scale = trainer.model.learner["scale"]
    assert torch.equal(new.model.learner["scale"], torch.cat([scale[order[:7]], torch.ones(13)]))

    everything = make_trainer(trainer="Named", out="all")  # other classes, and more of them
    everything.load_model(trainer.output_dir)
    places = [everything.dm.dataset.classnames.index(name) for name in names]
    assert torch.equal(everything.model.learner["scale"][places], scale)
    assert everything.model.learner["scale"].ne(1).sum() == 20


def test_a_checkpoint_of_before_has_its_classes_beside_it(make_trainer, registered, noise, tmp_path):
    registered("Plain")
    trainer = trained(make_trainer, "Plain", noise)
    (tmp_path / "before").mkdir()
    state = {"state_dict": trainer.model.learner.state_dict(), "epoch": 1}
    save_checkpoint(state, str(tmp_path / "before" / "learner"))
    new = make_trainer(*NEW, trainer="Plain", out="new")
    new.load_model(str(tmp_path / "before"))  # nothing says of which classes it is
    (tmp_path / "before" / "classes.json").write_text(json.dumps(trainer.dm.dataset.classnames))
    with pytest.raises(ValueError, match='"scale"'):
        new.load_model(str(tmp_path / "before"))


@pytest.mark.parametrize("per_class", [(), ("scale",)])
def test_a_start_from_other_classes(make_trainer, registered, noise, per_class, tmp_path):
    registered("Named", per_class=per_class)
    trainer = trained(make_trainer, "Named", noise)
    path = f"{trainer.output_dir}/learner/model.pth.tar-1"
    resumed = make_trainer(*NEW, "RESUME", trainer.output_dir, trainer="Named", out="resumed")
    with pytest.raises(ValueError, match="MODEL.INIT_WEIGHTS"):
        resumed.before_train()
    resumed.close_writer()
    opts = [*NEW, "MODEL.INIT_WEIGHTS", path]
    if not per_class:
        with pytest.raises(ValueError, match='"scale"'):
            make_trainer(*opts, trainer="Named", out="init")
        return
    assert torch.equal(make_trainer(*opts, trainer="Named", out="init").model.learner["scale"], torch.ones(20))
    everything = make_trainer("MODEL.INIT_WEIGHTS", path, trainer="Named", out="all")
    places = [everything.dm.dataset.classnames.index(name) for name in trainer.dm.dataset.classnames]
    assert torch.equal(everything.model.learner["scale"][places], trainer.model.learner["scale"])


def test_a_name_that_the_learner_has_not(make_trainer, registered):
    registered("Named", per_class=("scales",))
    with pytest.raises(ValueError, match='"scales", but the learner has chance, scale'):
        make_trainer(trainer="Named")


@pytest.mark.parametrize(
    "name, opts", [("LinearProbe", []), ("CoOp", ["TRAINER.COOP.CSC", True, "TRAINER.COOP.CTX_INIT", ""]), ("CoOp", [])]
)
def test_training_never_goes_on_from_other_classes(make_trainer, name, opts):
    """The optimizer's state is by position, too; a learner without such tensors may."""
    trainer = make_trainer(*BASE, *opts, trainer=name)
    trainer.save_model(0, trainer.output_dir)
    resumed = make_trainer(*NEW, *opts, "RESUME", trainer.output_dir, trainer=name, out="resumed")
    if name == "CoOp" and not opts:
        assert resumed.resume_model_if_exist(trainer.output_dir) == 1
        return
    with pytest.raises(ValueError, match="other.*MODEL.INIT_WEIGHTS"):
        resumed.resume_model_if_exist(trainer.output_dir)
