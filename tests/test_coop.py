"""CoOp: its prompts, its gradients and its checkpoints, against embeddings looked up by hand."""

import numpy as np
import pytest
import torch
from clip import clip

from trainers.coop import CustomCLIP

NAMES = ["cat", "dark_blue striped heart", "unhyphenatedword"]
POSITIONS = ["end", "middle", "front"]
RANDOM = ["TRAINER.COOP.CTX_INIT", ""]


def custom(model, n_ctx=4, **context):
    return CustomCLIP(model, NAMES, {"n_ctx": n_ctx, **context})


def plain_logits(model, image, prompts):
    """Logits of a plain CLIP by OpenAI's own methods, prompts with all 77 tokens."""
    with torch.no_grad():
        f, g = model.encode_image(image).double(), model.encode_text(clip.tokenize(prompts)).double()
    f, g = (x / x.norm(dim=-1, keepdim=True) for x in (f, g))
    return (model.logit_scale.double().exp() * f @ g.T).float()


# ------------------------------------------------------------------ prompts


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("n_ctx", [1, 4, 5])
def test_prompts_are_put_together_as_the_docstring_says(random_clip, position, csc, n_ctx):
    plain = random_clip()
    learner = custom(plain, n_ctx, position=position, csc=csc).prompt_learner
    assert learner.ctx.shape == ((3, n_ctx, 64) if csc else (n_ctx, 64))
    prompts, table = learner().detach(), plain.token_embedding.weight
    sot, dot, eot = 49406, 269, 49407
    assert clip._tokenizer.encode(".") == [dot]
    for c, name in enumerate(NAMES):
        ids = clip._tokenizer.encode(name.replace("_", " "))
        ctx = list(learner.ctx.detach()[c] if csc else learner.ctx.detach())
        before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
        row = [table[sot], *ctx[:before], *table[ids], *ctx[before:], table[dot], table[eot]]
        assert torch.equal(prompts[c, : len(row)], torch.stack(row))
        assert int(learner.tokens[c].argmax()) == len(row) - 1, "the feature is read at the end of text"


@pytest.mark.parametrize("position", POSITIONS)
def test_features_are_clips_own_of_the_same_words(random_clip, noise, position):
    plain, image = random_clip(), noise(4, 3, 32, 32)
    model = custom(plain, 0, words="a photo of a", position=position).eval()
    form = {"end": "a photo of a {}.", "middle": "a photo {} of a.", "front": "{} a photo of a."}[position]
    with torch.no_grad():
        given = model(image)
    torch.testing.assert_close(
        given, plain_logits(plain, image, [form.format(n.replace("_", " ")) for n in NAMES]), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("words", ["a photo of a", "a_photo_of_a", " a photo of a "])
def test_start_from_words_is_zero_shot(make_trainer, tiny, words):
    trainer = make_trainer("TRAINER.COOP.CTX_INIT", words, "TRAINER.COOP.CSC", False, trainer="CoOp")
    assert trainer.model.prompt_learner.ctx.dim() == 2
    zero = make_trainer("TRAINER.ZEROSHOTCLIP.TEMPLATE", "a photo of a {}.", trainer="ZeroshotCLIP", out="zero")
    image = next(iter(trainer.test_loader))["img"][:16]
    for t in (trainer, zero):
        t.set_model_mode("eval")
    with torch.no_grad():
        torch.testing.assert_close(trainer.model_inference(image), zero.model_inference(image), atol=1e-5, rtol=1e-6)
    names = [name.replace("_", " ") for name in trainer.dm.dataset.classnames]
    wanted = plain_logits(tiny, image, [f"a photo of a {name}." for name in names])
    torch.testing.assert_close(zero.model(image), wanted, atol=2e-4, rtol=1e-5)


def test_random_start_is_small_and_differs_between_classes_with_csc(random_clip):
    torch.manual_seed(0)
    ctx = custom(random_clip(), 16, csc=True).prompt_learner.ctx.detach()
    assert 0.018 < ctx.std() < 0.022 and abs(ctx.mean()) < 2e-3
    assert not torch.equal(ctx[0], ctx[1])
    ctx = custom(random_clip(), 16).prompt_learner.ctx.detach()
    assert ctx.shape == (16, 64) and 0.017 < ctx.std() < 0.023


def test_prompt_that_is_too_long_is_refused(random_clip):
    with pytest.raises(ValueError, match="too long") as error:
        custom(random_clip(), 76)
    assert "\n" not in str(error.value)


def test_unknown_position_is_refused(make_trainer):
    with pytest.raises(ValueError, match="middle"):
        make_trainer("TRAINER.COOP.CLASS_TOKEN_POSITION", "midle", trainer="CoOp")


# ------------------------------------------------------------------ training


@pytest.mark.parametrize("position", POSITIONS)
def test_class_specific_contexts_are_independent(random_clip, noise, position):
    model = custom(random_clip(), csc=True, position=position).train()
    logits = model(noise(2, 3, 32, 32))
    for c in range(len(NAMES)):
        (grad,) = torch.autograd.grad(logits[:, c].sum(), [model.prompt_learner.ctx], retain_graph=True)
        touched = grad.abs().amax(dim=(1, 2)) > 0
        assert touched.tolist() == [k == c for k in range(len(NAMES))]


@pytest.mark.parametrize("csc", [False, True])
def test_gradients_reach_the_context_and_nothing_else(make_trainer, take_steps, csc):
    trainer = make_trainer(*RANDOM, "TRAINER.COOP.CSC", csc, "OPTIM.LR", 0.1, trainer="CoOp")
    ctx = trainer.model.prompt_learner.ctx
    assert [id(p) for group in trainer.optim.param_groups for p in group["params"]] == [id(ctx)]
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    first = take_steps(trainer, 2)[0]
    assert ctx.grad is not None and bool((ctx.grad.abs().amax(dim=-1) > 0).all()), "every vector is trained"
    for name, p in trainer.model.named_parameters():
        if p is ctx:
            assert not torch.equal(p, before[name])
        else:
            assert not p.requires_grad and p.grad is None and torch.equal(p, before[name]), name
    assert set(first) == {"loss", "acc"}


def test_loss_is_the_mean_cross_entropy(make_trainer):
    trainer = make_trainer(trainer="CoOp")
    trainer.set_model_mode("train")
    batch = next(iter(trainer.train_loader_x))
    z = trainer.model(batch["img"]).detach().double().numpy()
    z -= z.max(axis=1, keepdims=True)
    wanted = np.mean([np.log(np.exp(row).sum()) - row[k] for row, k in zip(z, batch["label"].tolist(), strict=True)])
    trainer.batch_idx, trainer.num_batches = 0, 2
    step = trainer.forward_backward(batch)
    assert step["loss"] == pytest.approx(wanted, rel=1e-5)
    assert step["acc"] == pytest.approx(100 * np.mean(z.argmax(axis=1) == batch["label"].numpy()))


def test_sgd_step_by_hand(make_trainer):
    """The first step of SGD with momentum: ctx - lr (gradient + weight decay ctx)."""
    trainer = make_trainer("OPTIM.LR", 0.1, "OPTIM.WEIGHT_DECAY", 0.01, trainer="CoOp")
    trainer.set_model_mode("train")
    ctx, batch = trainer.model.prompt_learner.ctx, next(iter(trainer.train_loader_x))
    loss = torch.nn.functional.cross_entropy(trainer.model(batch["img"]), batch["label"])
    (grad,) = torch.autograd.grad(loss, [ctx])
    wanted = ctx.detach() - 0.1 * (grad + 0.01 * ctx.detach())
    trainer.batch_idx, trainer.num_batches = 0, 2
    trainer.forward_backward(batch)
    torch.testing.assert_close(ctx.detach(), wanted, atol=1e-6, rtol=1e-5)


def test_evaluation_encodes_the_prompts_once_and_never_stale(make_trainer, take_steps):
    trainer, calls = make_trainer("DATALOADER.TEST.BATCH_SIZE", 20, "OPTIM.LR", 0.5, trainer="CoOp"), []
    trainer.model.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    image, seen = next(iter(trainer.test_loader))["img"], []
    for _ in range(2):
        calls.clear()
        trainer.test()
        assert len(calls) == 1
        with torch.no_grad():
            seen.append(trainer.model_inference(image))
        take_steps(trainer)
    assert (seen[1] - seen[0]).abs().max() > 1e-2


# ------------------------------------------------------------------ checkpoints


def coop_checkpoint(folder, ctx, epoch=50, **others):
    """As CoOp's own code writes it: the fixed tokens of the classes trained on lie beside the context."""
    (folder / "prompt_learner").mkdir(parents=True)
    n_cls, width = 7, ctx.shape[-1]
    fixed = {"token_prefix": torch.zeros(n_cls, 1, width), "token_suffix": torch.zeros(n_cls, 60, width)}
    state = {"ctx": ctx, **fixed, **others}
    torch.save(
        {"state_dict": state, "epoch": epoch, "optimizer": None, "scheduler": None, "val_result": None},
        folder / "prompt_learner" / f"model.pth.tar-{epoch}",
    )


def test_checkpoint_of_coops_own_code(make_trainer, tmp_path, noise):
    trainer = make_trainer(*RANDOM, "TRAINER.COOP.N_CTX", 6, trainer="CoOp")
    ctx = noise(6, 64)
    coop_checkpoint(tmp_path / "theirs", ctx)
    trainer.load_model(str(tmp_path / "theirs"), epoch=50)
    assert torch.equal(trainer.model.prompt_learner.ctx.detach(), ctx)


def test_own_checkpoint_holds_the_context_alone(make_trainer, take_steps):
    trainer = make_trainer("OPTIM.LR", 0.1, trainer="CoOp")
    take_steps(trainer)
    trainer.save_model(0, trainer.output_dir)
    base = make_trainer("DATASET.SUBSAMPLE_CLASSES", "new", trainer="CoOp", out="new")  # fewer, other classes
    base.load_model(trainer.output_dir)
    assert list(trainer.model.prompt_learner.state_dict()) == ["ctx"]
    assert torch.equal(base.model.prompt_learner.ctx, trainer.model.prompt_learner.ctx)


@pytest.mark.parametrize("settings", [[*RANDOM, "TRAINER.COOP.N_CTX", 5], [*RANDOM, "TRAINER.COOP.CSC", True]], ids=str)
def test_context_of_another_shape_is_refused(make_trainer, tmp_path, noise, settings):
    coop_checkpoint(tmp_path / "theirs", noise(4, 64))
    with pytest.raises(ValueError, match="does not fit") as error:
        make_trainer(*settings, trainer="CoOp").load_model(str(tmp_path / "theirs"))
    assert "\n" not in str(error.value)


def test_checkpoint_with_an_unknown_tensor_is_refused(make_trainer, tmp_path, noise):
    coop_checkpoint(tmp_path / "theirs", noise(4, 64), meta_net=torch.zeros(3))
    with pytest.raises(ValueError, match="meta_net") as error:
        make_trainer(trainer="CoOp").load_model(str(tmp_path / "theirs"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("trained, other", [("all", "base"), ("base", "all"), ("base", "new")])
def test_class_specific_context_on_other_classes_is_refused(make_trainer, trained, other):
    opts = [*RANDOM, "TRAINER.COOP.CSC", True, "DATASET.SUBSAMPLE_CLASSES"]
    trainer = make_trainer(*opts, trained, trainer="CoOp")
    trainer.save_model(0, trainer.output_dir)
    with pytest.raises(ValueError) as error:
        make_trainer(*opts, other, trainer="CoOp", out="other").load_model(trainer.output_dir)
    assert str(error.value).endswith("fits only the classes that it was trained on")
