"""Prompts: tokens, templates and learned contexts, for all methods."""

import hashlib
from collections.abc import Mapping

import torch
from clip import clip
from torch import nn

from .encoders import TextEncoder, normalize, wide
from .packing import common_start
from .siglip import check_causal, family_of
from .templates import CUSTOM_TEMPLATES, IMAGENET_TEMPLATES_SELECT
from .tokens import tokenize

POSITIONS = ["end", "middle", "front"]


def replace_underscores(classnames: list[str]) -> list[str]:
    """Return the class names with "_" replaced by a space, as in CoOp's prompts."""
    return [name.replace("_", " ") for name in classnames]


def fill_template(template: str, classnames: list[str]) -> list[str]:
    """Return one prompt for each class.

    Raises:
        ValueError: the template has no {}.
    """
    if "{}" not in template:
        raise ValueError(f'the template "{template}" has no {{}} where the class name goes')
    return [template.replace("{}", name) for name in replace_underscores(classnames)]


def template_for(dataset: str, template: str = "", published: Mapping[str, str] = CUSTOM_TEMPLATES) -> str:
    """Return `template` if it is not empty, else the data set's hand-crafted template, else CLIP's default.

    Args:
        dataset: registered name of the data set.
        template: the template of the config.
        published: {data set: template}, for methods that were published with other templates than CoOp's.
    """
    return template or published.get(dataset) or CUSTOM_TEMPLATES.get(dataset, "a photo of a {}.")


def templates_for(dataset: str, template: str = "") -> list[str]:
    """Return `template` if it is not empty, else seven of CLIP's for ImageNet and its variants, else the data set's.

    Args:
        dataset: registered name of the data set.
        template: the template of the config.
    """
    if dataset.startswith("ImageNet") and not template:
        return list(IMAGENET_TEMPLATES_SELECT)
    return [template_for(dataset, template)]


def template_features(
    text_encoder: TextEncoder, classnames: list[str], templates: list[str], unit: bool = True
) -> torch.Tensor:
    """Return the class features, a mean over templates, with unit length; float32 [n_cls, embed_dim].

    Args:
        text_encoder: CLIP's text encoder.
        classnames: names of the n_cls classes.
        templates: prompts with {} for the class name.
        unit: whether each template's feature is made unit length before the mean (CLIP's ensembling) or not
            (PromptSRC's).
    """
    device, total = text_encoder.token_embedding.weight.device, 0
    unit = unit and len(templates) > 1  # a single one is normalised at the end
    for template in templates:  # one at a time, because 80 x 1,000 prompts at once would not fit into memory
        features = text_encoder(None, text_encoder.tokenize(fill_template(template, classnames)).to(device))
        total = total + (normalize(features) if unit else wide(features))
    return normalize(total)


def sentence_features(text_encoder: TextEncoder, sentences: list[list[str]], unit: bool = True) -> torch.Tensor:
    """Return the class features, a mean over the sentences of each class, with unit length; float32 [n_cls, embed_dim].

    If each class has the prompts of `template_features` as its sentences, the result is the same to the bit.

    Args:
        text_encoder: CLIP's text encoder.
        sentences: sentences of each class, one or more. Those that are too long are cut.
        unit: see `template_features`.
    """
    device, total = text_encoder.token_embedding.weight.device, 0
    max_sentences = max(map(len, sentences))
    unit = unit and max_sentences > 1
    for k in range(max_sentences):  # the k-th sentence of every class
        classes = [c for c, texts in enumerate(sentences) if k < len(texts)]
        tokens = text_encoder.tokenize([sentences[c][k] for c in classes], cut=True)
        features = text_encoder(None, tokens.to(device))
        features = normalize(features) if unit else wide(features)
        if len(classes) < len(sentences):
            place = torch.tensor(classes, device=device)
            features = features.new_zeros(len(sentences), features.shape[1]).index_copy(0, place, features)
        total = total + features
    return normalize(total)


def agrees_with_words(key: str, value: object, words: object) -> bool:
    """Return whether N_CTX or CSC at a value agrees with the initial words CTX_INIT; see `DecidingKey.agrees`.

    N_CTX agrees at 0 and at the number of words, CSC at False.

    Args:
        key: "N_CTX" or "CSC".
        value: its value.
        words: value of CTX_INIT; True: "a photo of a".
    """
    if key == "CSC" or not value:
        return not value
    words = "a photo of a" if words is True else str(words)
    return value == len(words.replace("_", " ").split())


class PromptLearner(nn.Module):
    """Learned context vectors in prompts "<start> context name . <end>" (Zhou et al. 2022, CoOp).

    Args:
        text_encoder: CLIP's text encoder.
        classnames: names of the n_cls classes.
        n_ctx: number n of context vectors; 0: the number of tokens in `words`. If `words` has more tokens than n, the
            rest stays fixed behind the context ("a photo" learned, "of a" fixed), as in CoOp and MaPLe.
        words: initial words of the context; "": random vectors from N(0, 0.02^2).
        csc: whether each class has its own context; ignored with `words`, as in CoOp.
        position: position of the class name in the prompt: end, middle, front, or the number of tokens before it.
        template: the whole prompt with {} for the class name, of which the context replaces the first n tokens; "":
            the context, the class name and a full stop.

    Attributes:
        ctx: the trained tensor, float [n, width], with `csc` [n_cls, n, width].
        tokens: ids int64 [n_cls, L].
        n_shared: number of leading positions at which all prompts are equal, for any context.
        dead: names of tensors in the original's checkpoints that are not loaded, up to the first dot.

    Raises:
        ValueError: n_ctx is more than `words` has tokens, or a prompt has more tokens than the encoder has positions.
    """

    dead = ("token_prefix", "token_suffix")  # the fixed tokens of the classes of the training

    def __init__(
        self,
        text_encoder: TextEncoder,
        classnames: list[str],
        n_ctx: int,
        words: str = "",
        csc: bool = False,
        position: str | int = "end",
        template: str = "",
    ):
        check_causal(family_of(text_encoder), "a method with learned prompts")
        super().__init__()
        embed = text_encoder.token_embedding
        device, n_cls, words = embed.weight.device, len(classnames), " ".join(words.replace("_", " ").split())
        ids = clip._tokenizer.encode(words) if words else [0] * n_ctx
        if words and not ids:
            raise ValueError(f"the context {ascii(words)} has no token: give words that CLIP can read")
        n_ctx, csc = n_ctx or len(words.split()), csc and not words
        if n_ctx > len(ids):
            raise ValueError(f'{n_ctx} context vectors do not fit the {len(ids)} tokens of "{words}": take fewer')
        if words:
            ctx = embed(torch.tensor(ids[:n_ctx], device=device)).detach().clone()
        else:
            shape = (n_cls, n_ctx) if csc else (n_ctx,)
            ctx = 0.02 * torch.randn(*shape, embed.embedding_dim, device=device)
        self.ctx = nn.Parameter(ctx)
        if csc:  # saved with the context, which would also fit the same number of other classes
            digest = hashlib.sha256("\n".join(classnames).encode()).digest()
            self.register_buffer("classes", torch.frombuffer(bytearray(digest), dtype=torch.uint8).clone())

        names = replace_underscores(classnames)
        words_before = words or " ".join(["X"] * n_ctx)  # placeholders stand for the vectors of a random context
        prompts = fill_template(template or f"{words_before} {{}}.", classnames)
        tokenizer = getattr(text_encoder, "tokenizer", tokenize)
        tokens = tokenizer(prompts, text_encoder.context_length).to(device)
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("embedding", embed(tokens).detach(), persistent=False)
        order = self.places(position, n_ctx, len(ids), names)
        self.register_buffer("order", order, persistent=False)
        # a learned vector equals only itself, so its position in the context stands for its id
        is_learned = (order > 0) & (order <= n_ctx)
        comparable_ids = torch.where(is_learned, -order, tokens.unsqueeze(-1).gather(1, order)).squeeze(-1)
        self.n_shared = 1 if csc else common_start(comparable_ids)

    def places(self, position: str | int, n_ctx: int, n_words: int, names: list[str]) -> torch.Tensor:
        """Return the order of the tokens of "<start> context name . <end>" in each prompt, int64 [n_cls, L, 1].

        Args:
            position: position of the class name: end, middle, front or a number.
            n_ctx: number of learned tokens, the first ones of the context.
            n_words: number of tokens of the context.
            names: the class names.
        """
        order = torch.arange(self.tokens.shape[1]).repeat(len(names), 1)
        # number of context tokens in front of the name
        n_before = {"end": n_words, "middle": n_ctx // 2, "front": 0}.get(position, position)
        if n_before < n_words:
            for row, name in zip(order, names, strict=True):
                length = len(clip._tokenizer.encode(name))
                context, word = row[1 : 1 + n_words].clone(), row[1 + n_words : 1 + n_words + length].clone()
                row[1 : 1 + n_words + length] = torch.cat([context[:n_before], word, context[n_before:]])
        return order.unsqueeze(-1).to(self.tokens.device)

    def forward(self, ctx: torch.Tensor | None = None) -> torch.Tensor:
        """Return the prompt embeddings, float [n_cls, L, width], or [B, n_cls, L, width] for contexts of B images.

        Args:
            ctx: float [n, width]; with `csc` [n_cls, n, width], else [B, n, width] (CoCoOp); None: the learned one.
        """
        ctx = self.ctx if ctx is None else ctx
        n_cls, _, width = self.embedding.shape
        if self.ctx.dim() == 2:
            ctx = ctx.unsqueeze(-3)  # all classes share it
        ctx = ctx.expand(*ctx.shape[:-3], n_cls, -1, -1)  # [n_cls, n, width] or [B, n_cls, n, width]
        embedding = self.embedding.expand(*ctx.shape[:-3], -1, -1, -1)
        prompts = torch.cat([embedding[..., :1, :], ctx, embedding[..., 1 + ctx.shape[-2] :, :]], dim=-2)
        return prompts.gather(-2, self.order.expand(*ctx.shape[:-3], -1, -1, width))

    def load_state_dict(self, state_dict, *args, **kwargs):
        state = {name: value for name, value in state_dict.items() if name.split(".")[0] not in self.dead}
        if self.ctx.dim() == 3:
            classes = state.setdefault("classes", self.classes)  # the original does not save them
            if not torch.equal(classes.cpu(), self.classes.cpu()):
                raise ValueError("a class-specific context (CSC) fits only the classes that it was trained on")
        return super().load_state_dict(state, *args, **kwargs)
