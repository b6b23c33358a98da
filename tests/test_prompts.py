"""Tokens, templates and learned contexts."""

import pytest
import torch
from clip import clip

from trainers.shared.encoders import TextEncoder, normalize
from trainers.shared.prompts import PromptLearner, fill_template, template_features, template_for
from trainers.shared.templates import (
    CUSTOM_TEMPLATES,
    IMAGENET_TEMPLATES,
    IMAGENET_TEMPLATES_SELECT,
    KGCOOP_TEMPLATES,
    PROGRAD_TEMPLATES,
)
from trainers.shared.tokens import tokenize


def one_line(error):
    return "\n" not in str(error.value) and str(error.value)


PROMPTS = [
    "x",
    "a photo of a cat.",
    "a photo of a very long-haired, grey-and-white striped cat on a mat, looking up.",
    "itap of my " + "very " * 60 + "old dog.",
]


@pytest.mark.parametrize("which", ["tiny", "vit", "resnet"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_text_cut_behind_its_end_is_the_whole_encoding(request, random_clip, which, count):
    model = request.getfixturevalue("tiny") if which == "tiny" else random_clip(which)
    prompts = PROMPTS[:count]
    tokens, whole = tokenize(prompts), clip.tokenize(prompts)
    longest = max(len(clip._tokenizer.encode(prompt)) for prompt in prompts) + 2
    assert tokens.shape == (count, longest) and longest < 77
    assert torch.equal(tokens, whole[:, :longest]) and not whole[:, longest:].any()
    with torch.no_grad():
        wanted, encoder = model.encode_text(whole), TextEncoder(model)
        torch.testing.assert_close(encoder(None, tokens), wanted, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(encoder(encoder.token_embedding(tokens), tokens), wanted, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(encoder(None, whole), wanted, atol=2e-6, rtol=1e-5)


def test_prompt_of_77_tokens_fits_and_of_78_does_not():
    assert tokenize(["cat " * 75]).shape == (1, 77)
    with pytest.raises(ValueError, match="too long.*shorten") as error:
        tokenize(["short", "cat " * 76])
    assert one_line(error)


def test_templates():
    assert fill_template("a {} of {}.", ["big_cat", "dog"]) == ["a big cat of big cat.", "a dog of dog."]
    with pytest.raises(ValueError, match="has no {}") as error:
        fill_template("a photo of a dog.", ["cat"])
    assert one_line(error)
    assert template_for("OxfordPets") == "a photo of a {}, a type of pet."
    assert template_for("OxfordPets", "my {}.") == "my {}." and template_for("Unknown") == "a photo of a {}."
    assert template_for("OxfordPets", "", PROGRAD_TEMPLATES) == "a type of pet, a photo of a {}."
    assert template_for("UCF101", "", PROGRAD_TEMPLATES) == "a photo of a person doing {}."
    assert template_for("OxfordPets", "my {}.", PROGRAD_TEMPLATES) == "my {}."
    assert PROGRAD_TEMPLATES.keys() | KGCOOP_TEMPLATES.keys() <= CUSTOM_TEMPLATES.keys()
    assert len(IMAGENET_TEMPLATES_SELECT) == 7 and {*IMAGENET_TEMPLATES_SELECT} < {*IMAGENET_TEMPLATES}
    assert len(IMAGENET_TEMPLATES) == len(set(IMAGENET_TEMPLATES)) == 80
    assert all(t.count("{}") == 1 for t in [*IMAGENET_TEMPLATES, *CUSTOM_TEMPLATES.values()])
    assert all(t == t.strip() and t.endswith(".") for t in IMAGENET_TEMPLATES)


def test_template_without_a_place_for_the_class(make_trainer):
    for name in ("OrthCR", "ZeroshotCLIP"):
        with pytest.raises(ValueError, match="must be a string, with one {}"):
            make_trainer(f"TRAINER.{name.upper()}.TEMPLATE", "a photo", trainer=name)


def test_a_context_that_clip_cannot_read(tiny, one_line):
    with pytest.raises(ValueError, match="has no token") as error:
        PromptLearner(TextEncoder(tiny), ["cat"], 0, "\x1b[31m")
    one_line(error)


def test_text_with_openais_own_attention(tiny, monkeypatch):
    """OpenAI's block adds its mask of all 77 tokens, whatever the length: a CoOp clone's clip/ does."""
    prompts = ["a photo of a red circle.", "one"]

    def attention(self, x):
        return self.attn(x, x, x, need_weights=False, attn_mask=self.attn_mask)[0]

    with torch.no_grad():
        want = tiny.encode_text(clip.tokenize(prompts))
        monkeypatch.setattr("clip.model.ResidualAttentionBlock.attention", attention)
        torch.testing.assert_close(TextEncoder(tiny)(None, tokenize(prompts)), want)


# ------------------------------------------------------------------ learned contexts

NAMES = ["cat", "dark_blue striped heart", "unhyphenatedword"]


def by_hand(table, words_before, ctx, words_between, name):
    """Embeddings of "<start> words_before ctx words_between name . <end>"."""
    ids = [clip._tokenizer.encode(w) if w else [] for w in (words_before, words_between, name.replace("_", " "))]
    dot = clip._tokenizer.encode(".")
    return torch.stack([table[49406], *table[ids[0]], *ctx, *table[ids[1]], *table[ids[2]], *table[dot], table[49407]])


@pytest.mark.parametrize(
    "n_ctx, words, learned, rest",
    [
        (1, "a_photo of a", "a", "photo of a"),
        (2, "a_photo of a", "a photo", "of a"),
        (0, " a  photo of_a ", "a photo of a", ""),
        (0, "an x-ray of", "an x -", "ray of"),  # three words, of five tokens
    ],
)
def test_of_more_tokens_than_context_vectors_the_rest_stays_fixed(random_clip, n_ctx, words, learned, rest):
    encoder = TextEncoder(random_clip())
    table, learner = encoder.token_embedding.weight, PromptLearner(encoder, NAMES, n_ctx, words, csc=True)
    assert torch.equal(learner.ctx, table[clip._tokenizer.encode(learned)]), "one for all classes, csc or not"
    with torch.no_grad():
        torch.testing.assert_close(  # as it starts, it is the whole of the words
            encoder(learner(), learner.tokens),
            encoder(None, tokenize(fill_template(" ".join(words.replace("_", " ").split()) + " {}.", NAMES))),
        )
        learner.ctx += torch.randn_like(learner.ctx)
    for c, (prompt, name) in enumerate(zip(learner().detach(), NAMES, strict=True)):
        row = by_hand(table, "", learner.ctx.detach(), rest, name)
        assert torch.equal(prompt[: len(row)], row)
        assert int(learner.tokens[c].argmax()) == len(row) - 1


@pytest.mark.parametrize("position, form", [("middle", "an {} x-ray of."), ("front", "{} an x-ray of.")])
def test_the_name_moves_as_a_whole_before_fixed_words(random_clip, position, form):
    encoder = TextEncoder(random_clip())
    learner = PromptLearner(encoder, NAMES, 0, "an x-ray of", position=position)
    assert len(learner.ctx) == 3
    torch.testing.assert_close(encoder(learner(), learner.tokens), encoder(None, tokenize(fill_template(form, NAMES))))


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("batch", [1, 4])
def test_contexts_of_images_give_prompts_for_each_image(random_clip, noise, position, batch):
    encoder = TextEncoder(random_clip())
    learner = PromptLearner(encoder, NAMES, 3, position=position)
    contexts = noise(batch, 3, 64)
    given = learner(contexts)
    assert given.shape == (batch, 3, *learner().shape[1:])
    for prompts, ctx in zip(given, contexts, strict=True):
        assert torch.equal(prompts, learner(ctx))
    assert torch.equal(learner(learner.ctx), learner())


def test_contexts_of_classes_can_be_given(random_clip, noise):
    learner = PromptLearner(TextEncoder(random_clip()), NAMES, 3, csc=True)
    ctx = noise(3, 3, 64)
    with torch.no_grad():
        given = learner(ctx)
        learner.ctx.copy_(ctx)
    assert torch.equal(given, learner())


def test_more_context_vectors_than_words(random_clip):
    with pytest.raises(ValueError, match='the 4 tokens of "a photo of a"') as error:
        PromptLearner(TextEncoder(random_clip()), NAMES, 5, "a photo of a")
    assert one_line(error)


@pytest.mark.parametrize("unit", [True, False])
def test_mean_over_templates(random_clip, unit):
    plain = random_clip()
    templates = ["a photo of a {}.", "itap of my {}.", "{}"]
    given = template_features(TextEncoder(plain), NAMES, templates, unit)
    each = [plain.encode_text(clip.tokenize(fill_template(template, NAMES))) for template in templates]
    mean = sum(normalize(features) if unit else features for features in each) / 3
    torch.testing.assert_close(given, normalize(mean))
    other = sum(features if unit else normalize(features) for features in each)
    assert (given - normalize(other)).abs().max() > 1e-4, "the order matters"
