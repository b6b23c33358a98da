"""Text in, features out: tokenizing, encoding and prompt templates, once for all methods."""

import torch
from clip import clip
from torch import nn

from .templates import CUSTOM_TEMPLATES


def tokenize(prompts: list[str]) -> torch.Tensor:
    """Token ids int64 [n, L] with L up to the last end-of-text token of these prompts, not CLIP's fixed 77.

    Attention is causal and the feature is read at the end-of-text token, so what lies behind the last of them has
    no influence on any feature: cutting it off is exact, and is most of the work for short prompts.

    Raises:
        ValueError: a prompt has more than 77 tokens.
    """
    try:
        tokens = clip.tokenize(prompts)
    except RuntimeError as error:
        raise ValueError(f"{error}: shorten the class name or the template") from error
    return tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]


def fill_template(template: str, classnames: list[str]) -> list[str]:
    """One prompt a class; "_" in class names reads as a space, as in CoOp.

    Raises:
        ValueError: the template has no {}.
    """
    if "{}" not in template:
        raise ValueError(f'the template "{template}" has no {{}} where the class name goes')
    return [template.replace("{}", name.replace("_", " ")) for name in classnames]


def template_for(dataset: str, template: str = "") -> str:
    """`template` if given, else the hand-crafted one of the data set, else CLIP's default."""
    return template or CUSTOM_TEMPLATES.get(dataset, "a photo of a {}.")


class TextEncoder(nn.Module):
    """CLIP's text tower from token embeddings on, as a module of its own (Zhou et al. 2022, CoOp)."""

    def __init__(self, clip_model):
        super().__init__()
        self.token_embedding = clip_model.token_embedding
        self.transformer = clip_model.transformer
        mask = torch.full((len(clip_model.positional_embedding),) * 2, float("-inf")).triu_(1)
        self.register_buffer("mask", mask.to(clip_model.positional_embedding), persistent=False)
        self.positional_embedding = clip_model.positional_embedding
        self.ln_final = clip_model.ln_final
        self.text_projection = clip_model.text_projection

    def forward(self, prompts: torch.Tensor | None, tokenized_prompts: torch.Tensor) -> torch.Tensor:
        """Features at the end-of-text tokens, not normalised.

        Args:
            prompts: embeddings float [n, L, width], or None for those of the tokens themselves; L <= 77.
            tokenized_prompts: ids int64 [n, L]; they say where each prompt ends.

        Returns:
            float [n, embed_dim].
        """
        if prompts is None:
            prompts = self.token_embedding(tokenized_prompts)
        length = prompts.shape[1]
        x = (prompts + self.positional_embedding[:length]).permute(1, 0, 2)  # blocks want [L, n, width]
        for block in self.transformer.resblocks:  # not block(x): OpenAI's has the mask of 77 tokens, on the CPU
            y = block.ln_1(x)
            x = x + block.attn(y, y, y, need_weights=False, attn_mask=self.mask[:length, :length])[0]
            x = x + block.mlp(block.ln_2(x))
        x = x.permute(1, 0, 2)
        rows = torch.arange(x.shape[0], device=x.device)
        eot = tokenized_prompts.argmax(dim=-1)  # end-of-text has the highest id
        return self.ln_final(x[rows, eot]) @ self.text_projection
