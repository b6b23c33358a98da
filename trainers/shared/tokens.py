"""The tokenizers of the text encoders: that of CLIP, and those of transformers for other families."""

import string
from collections.abc import Callable

import torch
from clip import clip
from clip.simple_tokenizer import basic_clean


def tokenize(prompts: list[str], room: int = 77, cut: bool = False) -> torch.Tensor:
    """Return CLIP's token ids int64 [n, L], where L is the length of the longest prompt instead of CLIP's fixed 77.

    Attention is causal, and the feature is read at the end-of-text token. So positions behind it have no influence on
    any feature, and leaving them out is exact. For short prompts they would be most of the work.

    Args:
        prompts: the n prompts.
        room: number of positions of the text encoder, `TextEncoder.context_length`.
        cut: whether a prompt with more tokens ends early, as by clip's `truncate`, instead of being an error.

    Raises:
        ValueError: a prompt has more tokens.
    """
    start, end = (clip._tokenizer.encoder[f"<|{name}oftext|>"] for name in ("start", "end"))
    last = room - 2 if cut else None
    ids = [[start, *clip._tokenizer.encode(prompt)[:last], end] for prompt in prompts]
    check_length(prompts, ids, room)
    longest = max(map(len, ids))
    return torch.tensor([row + [0] * (longest - len(row)) for row in ids])


def check_length(prompts: list[str], ids: list[list[int]], room: int) -> None:
    """Raise ValueError if the ids of a prompt are more than `room`."""
    longest = max(ids, key=len)
    if len(longest) > room:
        raise ValueError(
            f'the prompt "{prompts[ids.index(longest)]}" is too long, {len(longest)} tokens of at most {room}: '
            f"shorten the class name or the template"
        )


class LibraryTokenizer:
    """A tokenizer of transformers, for text encoders that see the padding, too.

    The ids are those of the library that the model is from. open_clip makes the text of SigLIP `canonical`.
    transformers leaves this to the tokenizer, and that of SigLIP 2 keeps punctuation.

    Args:
        tokenizer: a tokenizer of transformers, which adds the end of text and the padding.
        clean: function from a text to the text that the tokenizer gets.
    """

    def __init__(self, tokenizer, clean: Callable[[str], str] = str.lower):
        self.tokenizer, self.clean = tokenizer, clean

    def __call__(self, prompts: list[str], room: int, cut: bool = False) -> torch.Tensor:
        """Return token ids int64 [n, room], padded; arguments and errors as of `tokenize`."""
        texts = [self.clean(prompt) for prompt in prompts]
        ids = self.tokenizer(texts, padding="max_length", max_length=room, truncation=cut).input_ids
        check_length(prompts, ids, room)
        return torch.tensor(ids)


def canonical(text: str) -> str:
    """Return a text in lower case, without HTML entities and punctuation, with single spaces."""
    text = basic_clean(text)
    return " ".join(text.replace("_", " ").translate(str.maketrans("", "", string.punctuation)).lower().split())
