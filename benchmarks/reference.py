"""The formulation of the original code bases, behind the interface of the trainers here, for comparison.

    with reference(trainer.model):
        trainer.forward_backward(batch)

- prompts are padded to CLIP's 77 tokens, and the prompts of a batch's images (CoCoOp) are encoded image by image;
- all classes are encoded in each step, and again for each test batch;
- both transformers are CLIP's own blocks (`nn.MultiheadAttention`, the mask of 77 x 77); TCP's tokens enter before one
  of them, MMA's adapters stand beside them;
- TPT adapts to one image after the other;
- a changed weight is formed and goes through autograd as a parameter of the encoder (`torch.func.functional_call`), R
  by one Cayley solve for each weight in a Python loop; in evaluation, too, for each batch.

Numerically it is the same model with the same tensors. Only the dropout of CLIPLoRA is missing, because a formed weight
cannot have it. MMA's original encodes its text in the first test batch alone; here it is encoded in each.
"""

from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from trainers.orthcr import OrthogonalCLIP
from trainers.shared.encoders import ImageEncoder, add_beside, frozen_linear, normalize
from trainers.shared.weights import TunedCLIP
from trainers.tpt import PromptTunedCLIP

LENGTH = 77


@contextmanager
def reference(model):
    """Make a `ClipClassifier` compute as the originals do, with the same tensors, in the context."""
    kinds = {model: Classifier, model.text_encoder: Text}
    if isinstance(model, TunedCLIP):
        kinds[model] = RotatedClassifier if isinstance(model, OrthogonalCLIP) else TunedClassifier
    if isinstance(model, PromptTunedCLIP):
        kinds[model] = AdaptingClassifier
    if isinstance(model.image_encoder, ImageEncoder):
        kinds[model.image_encoder] = Image
    classes = {module: module.__class__ for module in kinds}
    for module, kind in kinds.items():
        module.__class__ = type(f"Reference{classes[module].__name__}", (kind, classes[module]), {})
    try:
        yield model
    finally:
        for module, cls in classes.items():
            module.__class__ = cls


def run(
    blocks: nn.Sequential,
    x: torch.Tensor,
    encoder: str,
    deep: dict | None,
    at: int | None,
    insert: bool,
    beside: Callable | None,
) -> torch.Tensor:
    """Return x after CLIP's own blocks.

    Args:
        blocks: blocks of a transformer.
        x: float [N, L, width].
        encoder: "image" or "text".
        deep: see `trainers.shared.encoders`, as the following.
        at: position of the first token that `deep` replaces.
        insert: whether the first tokens are inserted.
        beside: what is added beside each block.
    """
    x = x.permute(1, 0, 2)  # OpenAI's blocks have the batch in the second dimension
    for i, block in enumerate(blocks):
        if deep and i in deep:
            tokens = (
                deep[i].to(x.dtype).expand(x.shape[1], -1, -1).permute(1, 0, 2)
            )  # [n, width] or one for each prompt
            n = len(tokens)
            start = len(x) - n if at is None else at
            inserts = insert and i <= min(deep)
            remaining_tokens = x[start:] if inserts else x[start + n :]
            x = torch.cat([x[:start], tokens, remaining_tokens])
        branch = beside(f"{encoder}_{i}", block.ln_1(x)) if beside else None
        x = block(x) if branch is None else block(x) + branch
    return x.permute(1, 0, 2)


# Mixins that override methods of the trainers' classes


class Image:
    """A mixin of `ImageEncoder`."""

    def tokens(self, image, context=None, deep=None, insert=False, weight=1.0, linear=frozen_linear, beside=None):
        if linear is not frozen_linear or weight != 1:  # OrthSR reads the attention; MMRL++ is not timed
            seams = {"deep": deep or {}, "insert": insert, "weight": weight, "linear": linear, "beside": beside}
            return super().tokens(image, context, **seams)
        x = self.conv1(image).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        if context is not None:
            x = torch.cat([x, context.to(x.dtype).expand(len(x), -1, -1)], dim=1)
        x = add_beside(beside, "image_input", self.ln_pre(x))
        return run(self.transformer.resblocks, x, "image", deep, 1 if insert else None, insert, beside)


class Text:
    """A mixin of `TextEncoder`."""

    def forward(
        self,
        prompts,
        tokenized_prompts,
        shared=None,
        deep=None,
        insert=False,
        weight=1.0,
        linear=frozen_linear,
        beside=None,
    ):
        if linear is not frozen_linear or weight != 1:
            seams = {"deep": deep or {}, "insert": insert, "weight": weight, "linear": linear, "beside": beside}
            return super().forward(prompts, tokenized_prompts, shared, **seams)
        n_inserted = deep[min(deep)].shape[-2] if deep and insert else 0
        tokens = F.pad(tokenized_prompts, (0, LENGTH - n_inserted - tokenized_prompts.shape[1]))
        padding = self.token_embedding(tokens)
        if prompts is None:
            prompts = padding
        if prompts.dim() == 4:
            return torch.stack([self(p, tokenized_prompts, None, deep, insert) for p in prompts])
        x = torch.cat([prompts, padding[:, prompts.shape[1] :]], dim=1)
        x = add_beside(beside, "text_input", x) + self.positional_embedding[: tokens.shape[1]]
        x = self.ln_final(run(self.transformer.resblocks, x, "text", deep, 1, insert, beside))
        return x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1) + n_inserted] @ self.text_projection


class Classifier:
    """A mixin of any `ClipClassifier`."""

    def compute_once(self, name, compute):
        return compute()


class AdaptingClassifier(Classifier):
    """A mixin of TPT's `PromptTunedCLIP`."""

    def forward(self, image):
        return torch.cat([super(AdaptingClassifier, self).forward(one) for one in image.split(1)])


class TunedClassifier(Classifier):
    """A mixin of `TunedCLIP`."""

    def linear(self, *encoders):
        return None  # the weights are changed, not the activations

    def encode_image(self, image, linear=None):
        return self.through_weights("image", image) if self.places_in(["image"]) else self.frozen_image(image)

    def encode_text(self, linear=None):
        return self.through_weights("text", None, self.tokens) if self.places_in(["text"]) else self.frozen_text

    def through_weights(self, encoder: str, *inputs) -> torch.Tensor:
        """Return unit-length features, float [n, d], of an encoder with its changed weights.

        Args:
            encoder: "image" or "text".
            *inputs: inputs of the encoder.
        """
        module, parts = self.encoders[encoder], defaultdict(dict)
        with torch.autocast(self.logit_scale.device.type, enabled=False):
            for name in self.places_in([encoder]):
                place = self.places[name]
                parts[place.parameter][place.rows.start] = self.changed(name)
        parameters = {}
        for parameter, rows in parts.items():
            weight, size = module.get_parameter(parameter), len(next(iter(rows.values())))
            parameters[parameter] = torch.cat([rows.get(k, weight[k : k + size]) for k in range(0, len(weight), size)])
        return normalize(functional_call(module, parameters, inputs))

    def changed(self, name: str) -> torch.Tensor:
        """Return the changed weight W' of a place, with its gradient."""
        return self.merge(self.compute_changes([name])[name], self.frozen_weight(name))


class RotatedClassifier(TunedClassifier):
    """A mixin of `OrthogonalCLIP`."""

    def changed(self, name):
        m, b = self.rotations.sizes[name]
        row, col = torch.triu_indices(b, b, offset=1)
        upper, weight = self.rotations.upper[name], self.frozen_weight(name)
        q = upper.new_zeros(m, b, b)
        q[:, row, col] = upper
        q = q - q.mT
        eye = torch.eye(b, dtype=q.dtype, device=q.device)
        r = torch.linalg.solve(eye + q, eye - q)
        return torch.einsum("omb,mbc->omc", weight.unflatten(1, (m, b)), r).flatten(1)
