"""CoOp (Zhou et al. 2022, "Learning to Prompt for Vision-Language Models", IJCV).

The words of a prompt become M trained vectors v_1 ... v_M, the same for all classes or (CSC) each class its own:

    t_c = [v_1] ... [v_M] [c].                         CLASS_TOKEN_POSITION end
    t_c = [v_1] ... [v_M/2] [c] [v_M/2+1] ... [v_M].   middle
    t_c = [c] [v_1] ... [v_M].                         front
    L   = CE(s f(x) g(t)^T, y)
"""

import hashlib

import torch
from clip import clip
from torch import nn

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import check_availability

from .base import ClipTrainer
from .shared.classifier import ClipClassifier, normalize
from .shared.text import TextEncoder, tokenize

POSITIONS = ["end", "middle", "front"]


class PromptLearner(nn.Module):
    """The context vectors `ctx` float [n_ctx, width], with CSC [n_cls, n_ctx, width], and the prompts around them."""

    def __init__(self, node, classnames: list[str], text_encoder: TextEncoder):
        super().__init__()
        words = node.CTX_INIT.replace("_", " ").strip()
        embed = text_encoder.token_embedding
        if words:
            ids = tokenize([words]).to(embed.weight.device)[0, 1:-1]  # without start and end of text
            ctx = embed(ids).detach().clone()
        else:
            ctx = 0.02 * torch.randn(node.N_CTX, embed.embedding_dim, device=embed.weight.device)
        if node.CSC:
            ctx = (
                ctx.repeat(len(classnames), 1, 1)
                if words
                else 0.02 * ctx.new_empty(len(classnames), *ctx.shape).normal_()
            )
        self.ctx = nn.Parameter(ctx)
        if node.CSC:  # kept with the context: as many other classes would take it without a word
            digest = hashlib.sha256("\n".join(classnames).encode()).digest()
            self.register_buffer("classes", torch.frombuffer(bytearray(digest), dtype=torch.uint8).clone())
        n_ctx = ctx.shape[-2]

        # placeholders keep the room of the context: "X X X X name."
        names = [name.replace("_", " ") for name in classnames]
        tokens = tokenize([" ".join(["X"] * n_ctx) + f" {name}." for name in names]).to(embed.weight.device)
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("embedding", embed(tokens).detach(), persistent=False)
        self.register_buffer("order", self.places(node.CLASS_TOKEN_POSITION, n_ctx, names), persistent=False)

    def places(self, position: str, n_ctx: int, names: list[str]) -> torch.Tensor:
        """int64 [n_cls, L, 1]: which token of "<start> context name . <end>" stands at each place of the prompt."""
        order = torch.arange(self.tokens.shape[1]).repeat(len(names), 1)
        before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]  # context vectors in front of the name
        for row, name in zip(order, names, strict=True):
            length = len(clip._tokenizer.encode(name))
            context, word = row[1 : 1 + n_ctx].clone(), row[1 + n_ctx : 1 + n_ctx + length].clone()
            row[1 : 1 + n_ctx + length] = torch.cat([context[:before], word, context[before:]])
        return order.unsqueeze(-1).to(self.tokens.device)

    def forward(self) -> torch.Tensor:
        """Prompt embeddings float [n_cls, L, width]."""
        n_cls, _, width = self.embedding.shape
        ctx = self.ctx if self.ctx.dim() == 3 else self.ctx.expand(n_cls, -1, -1)
        prompts = torch.cat([self.embedding[:, :1], ctx, self.embedding[:, 1 + ctx.shape[1] :]], dim=1)
        return prompts.gather(1, self.order.expand(-1, -1, width))

    def load_state_dict(self, state_dict, *args, **kwargs):
        # CoOp's own checkpoints also hold the fixed tokens of the classes trained on
        kept = {k: v for k, v in state_dict.items() if k not in ("token_prefix", "token_suffix")}
        if self.ctx.dim() == 3 and not torch.equal(kept.setdefault("classes", self.classes).cpu(), self.classes.cpu()):
            raise ValueError("a class-specific context (TRAINER.COOP.CSC) fits only the classes that it was trained on")
        return super().load_state_dict(kept, *args, **kwargs)


class CustomCLIP(ClipClassifier):
    def __init__(self, node, clip_model, classnames: list[str]):
        super().__init__(clip_model)
        self.prompt_learner = PromptLearner(node, classnames, self.text_encoder)

    def encode_text(self) -> torch.Tensor:
        return normalize(self.text_encoder(self.prompt_learner(), self.prompt_learner.tokens))


@TRAINER_REGISTRY.register()
class CoOp(ClipTrainer):
    """Context Optimization."""

    defaults = {
        "N_CTX": 16,  # M, number of context vectors; ignored with CTX_INIT
        "CSC": False,  # class-specific context; cannot be evaluated on other classes
        "CTX_INIT": "",  # words that the context starts from, e.g. "a photo of a"; "" = random
        "CLASS_TOKEN_POSITION": "end",  # end, middle or front
        "PREC": "amp",
    }
    learner = "prompt_learner"

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        check_availability(cfg.TRAINER.COOP.CLASS_TOKEN_POSITION, POSITIONS)
        if cfg.TRAINER.COOP.N_CTX < 1 and not cfg.TRAINER.COOP.CTX_INIT.strip():
            raise ValueError(f"TRAINER.COOP.N_CTX is {cfg.TRAINER.COOP.N_CTX}: give 1 or more, or words as CTX_INIT")

    def build_classifier(self, clip_model, classnames):
        return CustomCLIP(self.node, clip_model, classnames)
