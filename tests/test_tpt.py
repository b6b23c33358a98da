"""TPT by OpenAI's CLIP and torch's AdamW, image by image; its views; that nothing of an image is left for the next."""

import pytest
import torch
from PIL import Image
from prompt_tools import NAMES, bare, in_float64, plain_text, spoken, unit
from torchvision.transforms import functional as F

from dassl.utils import save_checkpoint, set_random_seed
from trainers.shared.views import OPERATIONS, AugMix, Views, confident

SETTINGS = ["OPTIM.NAME", "adamw", "OPTIM.LR", 0.005, "OPTIM.WEIGHT_DECAY", 0.01, "TRAINER.TPT.SELECTION_P", 0.3]
FAST = ["TRAINER.TPT.VIEWS", 4, "DATASET.SUBSAMPLE_CLASSES", "base"]


@pytest.fixture
def model(random_clip, monkeypatch):
    return lambda: in_float64(random_clip(), monkeypatch)


def by_hand(plain, views, ctx, steps, count):
    """Logits [n_cls] of the first of some views, by one image and PyTorch's own functions."""
    ctx = ctx.clone().requires_grad_()
    optimizer, chosen = torch.optim.AdamW([ctx], lr=0.005), None
    f = unit(plain.encode_image(views)).detach()

    def logits(f):
        prompts = spoken("a photo of a {}.")
        return plain.logit_scale.exp() * f @ plain_text(plain, prompts, ctx.expand(len(NAMES), -1, -1)).T

    for _ in range(steps):
        z = logits(f)
        if chosen is None:
            entropies = torch.distributions.Categorical(logits=z.detach()).entropy().tolist()
            chosen = sorted(range(len(views)), key=entropies.__getitem__)[:count]
        p = sum(z[k].softmax(dim=0) for k in chosen) / count
        optimizer.zero_grad()
        torch.distributions.Categorical(probs=p).entropy().backward()
        optimizer.step()
    return logits(f[:1])[0].detach()


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_each_image_of_a_batch_is_tuned_as_if_alone(model, noise, steps):
    trainer = bare("TPT", model(), *SETTINGS, "TRAINER.TPT.TTA_STEPS", steps)
    tuned, plain, views = trainer.model.eval(), model(), noise(3, 7, 3, 32, 32).double()
    ctx = tuned.prompt_learner.ctx.detach().clone()
    wanted = torch.stack([by_hand(plain, image, ctx, steps, 2) for image in views])
    with torch.no_grad():
        given = tuned(views)
    torch.testing.assert_close(given, wanted, atol=1e-8, rtol=0)
    start = torch.stack([by_hand(plain, image, ctx, 0, 2) for image in views])
    assert torch.allclose(given, start, atol=1e-6) == (steps == 0)
    with torch.inference_mode():
        alone = torch.cat([tuned(views[k : k + 1]) for k in (2, 0, 1)])
    torch.testing.assert_close(alone, wanted[[2, 0, 1]], atol=1e-8, rtol=0)
    assert torch.equal(tuned.prompt_learner.ctx, ctx), "nothing is left of an image"
    assert not any(p.requires_grad for p in tuned.parameters())


def test_without_steps_it_is_zero_shot_clip(make_trainer):
    zero = make_trainer(trainer="ZeroshotCLIP", out="zero")
    trainer = make_trainer("TRAINER.TPT.TTA_STEPS", 0, trainer="TPT")
    image = next(iter(zero.test_loader))["img"][:8]
    with torch.no_grad():
        torch.testing.assert_close(trainer.model.eval()(image), zero.model.eval()(image), atol=1e-4, rtol=0)


def test_an_image_without_views_is_its_own_view(model, noise):
    tuned, image = bare("TPT", model(), *SETTINGS).model.eval(), noise(2, 3, 32, 32).double()
    assert torch.equal(tuned(image), tuned(image.unsqueeze(1)))


@pytest.mark.parametrize("words, before", [("a_photo_of [CLS] at home", 3), ("[CLS] in a photo", 0), ("a photo", 2)])
def test_the_class_name_stands_where_the_words_say(model, words, before):
    tuned = bare("TPT", model(), "TRAINER.TPT.CTX_INIT", words).model
    filled = words.replace("_", " ").replace("[CLS]", "{}")
    form = f"{filled}." if "{}" in filled else f"{filled} {{}}."
    n = len(filled.replace("{}", "").split())
    assert tuned.prompt_learner.ctx.shape == (n, 64) and 0 <= before <= n
    torch.testing.assert_close(tuned.encode_text(), plain_text(model(), spoken(form)), atol=1e-10, rtol=0)


def test_the_confident_views_by_loops(noise):
    entropy = noise(3, 9).abs()
    for row, positions in zip(entropy.tolist(), confident(entropy, 0.4).tolist(), strict=True):
        assert positions == sorted(range(9), key=row.__getitem__)[:3]
    assert confident(entropy, 0.01).shape == (3, 1)


def test_a_context_of_coop_is_the_start(make_trainer, noise, tmp_path):
    ctx = noise(4, 64)
    save_checkpoint({"state_dict": {"ctx": ctx, "token_prefix": noise(3, 1, 64)}, "epoch": 1}, str(tmp_path / "coop"))
    path = tmp_path / "coop" / "model.pth.tar-1"
    trainer = make_trainer("MODEL.INIT_WEIGHTS", path, trainer="TPT")
    assert torch.equal(trainer.model.prompt_learner.ctx, ctx)


@pytest.mark.parametrize(
    "opts, reason",
    [
        (["TRAINER.TPT.CTX_INIT", "", "TRAINER.TPT.N_CTX", 0], "N_CTX is 0"),
        (["TRAINER.TPT.CTX_INIT", "[CLS]"], "beside the class name"),
        (["TRAINER.TPT.N_CTX", 7], "N_CTX"),
    ],
)
def test_settings_that_make_no_sense(make_trainer, one_line, opts, reason):
    with pytest.raises(ValueError, match=reason) as error:
        make_trainer(*opts, trainer="TPT")
    one_line(error)


# ------------------------------------------------------------------ views and runs


def test_views_are_the_test_image_and_random_ones(make_cfg, data_root):
    cfg = make_cfg(trainer="TPT")
    image = Image.effect_noise((40, 32), 90).convert("RGB")
    views = Views(cfg, 5, augmix=False)
    torch.manual_seed(0)
    first, second = views(image), views(image)
    assert first.shape == (5, 3, 32, 32) and torch.equal(first[0], second[0])
    assert len({float(v.sum()) for v in (*first, *second)}) == 9
    torch.manual_seed(0)
    assert torch.equal(views(image), first)
    torch.manual_seed(0)
    mixed = Views(cfg, 5, augmix=True)(image)
    assert torch.equal(mixed[0], first[0]) and not torch.allclose(mixed[1:], first[1:])


def test_augmix_is_a_mixture_of_slightly_changed_images():
    image = Image.effect_noise((32, 32), 90).convert("RGB")
    for operation in OPERATIONS:
        for x in (0.1, -0.1):
            assert operation(image, x).size == image.size
    assert all(F.to_tensor(op(image, 0.0)).sub(F.to_tensor(image)).abs().max() < 1e-6 for op in OPERATIONS[5:])
    mixed = torch.stack([AugMix()(image) for _ in range(20)])
    assert mixed.min() >= 0 and mixed.max() <= 1 + 1e-6
    assert 0.005 < (mixed - F.to_tensor(image)).abs().mean() < 0.2


@pytest.mark.parametrize("workers, batch", [(0, 7), (2, 20)])
def test_an_evaluation_does_not_depend_on_workers_or_batches(make_trainer, workers, batch):
    accuracy = []
    for opts in ([], ["DATALOADER.NUM_WORKERS", workers, "DATALOADER.TEST.BATCH_SIZE", batch]):
        trainer = make_trainer(*FAST, *opts, trainer="TPT")
        set_random_seed(1)
        trainer.test(split="val")
        accuracy.append((trainer.results, trainer.evaluator.y_pred.tolist()))
    assert accuracy[0] == accuracy[1]
    assert next(iter(trainer.val_loader))["img"].shape[:2] == (min(batch, 20), 4)


@pytest.mark.parametrize("augmix, dataset, mixed", [("auto", "Shapes", True), ("off", "Shapes", False)])
def test_augmix_is_for_other_data_sets_than_imagenet(make_trainer, augmix, dataset, mixed):
    trainer = make_trainer("TRAINER.TPT.AUGMIX", augmix, trainer="TPT", dataset=dataset)
    steps = trainer.test_loader.dataset.transform.random.transforms
    assert any(isinstance(step, AugMix) for step in steps) == mixed
