"""2SFS: both stages against plain CLIP, when the second begins, its schedules, and selective inference."""

import shutil

import pytest
import torch
from clip.model import CLIP
from prompt_tools import NAMES, bare, close, cross_entropy, in_float64, plain_logits, plain_text, spoken, unit

from trainers.shared.encoders import ImageEncoder, TextEncoder
from trainers.two_stage_fs import trained_names

FORM = "a photo of a {}."
SMALL = ["OPTIM.MAX_EPOCH", 3, "OPTIM.LR", 0.01, "DATALOADER.TRAIN_X.BATCH_SIZE", 16, "TEST.NO_TEST", True]
SMALL += ["DATASET.SUBSAMPLE_CLASSES", "base"]


def moved(model, noise, *opts):
    """A trainer whose trained tensors have moved, and a plain CLIP with the same ones as parameters, by name."""
    trainer, plain = bare("TwoStageFS", model(), *opts), model()
    parameters = {}
    for encoder, prefix in (("image", "visual."), ("text", "")):
        for k, (name, p) in enumerate(trainer.model.stages.parameters_of(encoder).items()):
            p.data += 0.2 * noise(*p.shape, seed=k).double()
            target = plain.get_parameter(prefix + name)
            target.data.copy_(p.data)
            parameters[p] = target.requires_grad_()
    return trainer, plain, parameters


@pytest.fixture
def model(random_clip, monkeypatch):
    return lambda: in_float64(random_clip(), monkeypatch)


@pytest.mark.parametrize(
    "opts", [[], ["OUTER_NORMS", True], ["PEFT", "bitfit"], ["ENCODERS", "['image']"], ["LN_VISION_START", 1]], ids=str
)
def test_stage_1_is_clip_with_other_norms_or_biases(model, noise, opts):
    opts = [f"TRAINER.TWOSTAGEFS.{word}" if k % 2 == 0 else word for k, word in enumerate(opts)]
    trainer, plain, parameters = moved(model, noise, *opts)
    image, label = noise(5, 3, 32, 32).double(), torch.tensor([0, 1, 3, 2, 1])
    wanted = plain_logits(plain, image, plain_text(plain, spoken(FORM)))
    terms, z = trainer.losses(image, label)
    close(z, wanted)
    ours, theirs = list(parameters), list(parameters.values())
    given = torch.autograd.grad(terms["ce"], ours)
    for a, b in zip(given, torch.autograd.grad(cross_entropy(wanted), theirs), strict=True):
        close(a, b)
        assert b.abs().max() > 0
    with torch.no_grad():
        close(trainer.model.eval()(image), wanted.detach())


def test_stage_2_trains_the_classifier_alone_from_the_adapted_text(model, noise):
    trainer, plain, _ = moved(model, noise)
    image, label = noise(5, 3, 32, 32).double(), torch.tensor([0, 1, 3, 2, 1])
    trainer.model.begin_second()
    trainer.model.is_second_stage = True
    g = plain_text(plain, spoken(FORM)).detach()
    close(trainer.model.stages.classifier.data, g)
    w = (g + 0.3 * noise(4, 24, seed=2).double()).requires_grad_()
    trainer.model.stages.classifier.data.copy_(w.data)
    wanted = plain_logits(plain, image, unit(w))
    terms, z = trainer.losses(image, label)
    close(z, wanted)
    trainer.backward(terms)
    close(trainer.model.stages.classifier.grad, torch.autograd.grad(cross_entropy(wanted), w)[0])
    assert all(p.grad is None for name, p in trainer.model.stages.named_parameters() if name != "classifier")


def test_before_its_first_step_it_is_zero_shot(make_trainer):
    zero, trainer = make_trainer(trainer="ZeroshotCLIP", out="zero"), make_trainer(trainer="TwoStageFS")
    image = next(iter(zero.test_loader))["img"][:8]
    with torch.no_grad():
        torch.testing.assert_close(trainer.model.eval()(image), zero.model.eval()(image), atol=1e-4, rtol=0)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_classes_keep_their_rows_by_name_and_others_are_encoded(make_trainer, modality):
    opts = [*SMALL, "TRAINER.TWOSTAGEFS.ENCODERS", f"['{modality}']"]
    trainer = make_trainer(*opts, trainer="TwoStageFS")
    trainer.train()
    everything = make_trainer(*opts, "DATASET.SUBSAMPLE_CLASSES", "all", trainer="TwoStageFS", out="all")
    everything.load_model(trainer.output_dir)
    names = everything.dm.dataset.classnames
    places = [names.index(name) for name in trainer.dm.dataset.classnames]
    others = [k for k in range(len(names)) if k not in places]
    assert everything.model.stages.trained.nonzero().flatten().tolist() == sorted(places)
    everything.set_model_mode("eval")
    with torch.no_grad():
        g, adapted = everything.model.encode_text(), everything.model.adapted_text()
    rows = unit(trainer.model.stages.classifier.detach())
    torch.testing.assert_close(g[places], rows)
    assert torch.equal(g[others], adapted[others]) and not torch.allclose(g[places], adapted[places], atol=1e-3)


# ------------------------------------------------------------------ steps


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_the_second_stage_begins_at_its_step_with_a_schedule_of_its_own(make_trainer, monkeypatch, fraction):
    trainer = make_trainer(*SMALL, "TRAINER.TWOSTAGEFS.N_ITERS_FRAC", fraction, trainer="TwoStageFS")
    steps = 3 * len(trainer.train_loader_x)
    first, seen, step = int(fraction * steps), [], trainer.forward_backward
    assert trainer.first_steps == first

    def noted(batch):
        rate = trainer.get_current_lr()
        out = step(batch)
        seen.append((trainer.model.is_second_stage, rate))
        return out

    monkeypatch.setattr(trainer, "forward_backward", noted)
    trainer.train()
    half = torch.arange(max(first, 1)), torch.arange(max(steps - first, 1))
    a, b = (1e-6 + (0.01 - 1e-6) * (1 + torch.cos(torch.pi * t / len(t))) / 2 for t in half)
    assert [second for second, _ in seen] == [False] * first + [True] * (steps - first)
    wanted = a.tolist()[:first] + b.tolist()[: steps - first]
    assert [rate for _, rate in seen] == pytest.approx(wanted, rel=1e-5)
    stages = trainer.model.stages
    assert stages.trained.all() == (fraction < 1)
    assert (stages.classifier.grad is None) == (fraction == 1)


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_gone_on_with_ends_as_an_undisturbed_one(make_trainer, tmp_path, epoch):
    """From the middle of each stage."""
    opts = [*SMALL, "TRAIN.CHECKPOINT_FREQ", 1, "TRAINER.TWOSTAGEFS.N_ITERS_FRAC", 0.5]
    whole = make_trainer(*opts, trainer="TwoStageFS", out="whole")
    whole.train()
    (tmp_path / "rest" / "stages").mkdir(parents=True)
    shutil.copy(tmp_path / f"whole/stages/model.pth.tar-{epoch}", tmp_path / "rest/stages")
    rest = make_trainer(*opts, trainer="TwoStageFS", out="rest")
    rest.train()
    assert rest.start_epoch == epoch
    for name, tensor in whole.model.stages.state_dict().items():
        assert torch.equal(rest.model.stages.state_dict()[name], tensor), name


@pytest.mark.parametrize("key, value", [("LN_TEXT_START", 1), ("OUTER_NORMS", True)])
def test_settings_that_contradict_each_other(make_trainer, one_line, key, value):
    opts = ["TRAINER.TWOSTAGEFS.PEFT", "bitfit", f"TRAINER.TWOSTAGEFS.{key}", value]
    with pytest.raises(ValueError, match="bitfit") as error:
        make_trainer(*opts, trainer="TwoStageFS")
    one_line(error)
    with pytest.raises(ValueError, match="no warm-up") as error:
        make_trainer("OPTIM.WARMUP_EPOCH", 1, trainer="TwoStageFS")
    one_line(error)


def test_trained_numbers_at_vit_b16():
    with torch.device("meta"):
        clip = CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
    sizes = {}
    for outer in (False, True):
        encoders = ImageEncoder(clip.visual), TextEncoder(clip)
        sizes[outer] = sum(e.get_parameter(n).numel() for e in encoders for n in trained_names(e, "ln", 0, outer))
    assert sizes == {False: 61_440, True: 65_536} and len(NAMES) == 4
