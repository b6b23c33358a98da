"""TPT: test-time prompt tuning. There is no training: the context is tuned for each test image and then discarded.

Shu et al. 2022, "Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models", NeurIPS.

An image x has n views: x itself and n - 1 random ones, f_v their features. ctx is the context "a photo of a":

    z_v  = s f_v g(ctx)^T
    p    = mean of softmax(z_v) over the int(SELECTION_P n) views of least entropy
    L    = - sum_c p_c log p_c
    ctx' = ctx after TTA_STEPS steps of a fresh AdamW on L
    z    = s f_0 g(ctx')^T

The images of a batch are tuned at once, each with its own context. The result is the same as one after the other.
"""

import torch

from dassl.engine import TRAINER_REGISTRY
from dassl.optim import build_optimizer
from dassl.utils import load_pretrained_weights

from .base import ClipTrainer
from .shared.classifier import ClipClassifier
from .shared.encoders import normalize, wide
from .shared.keys import DecidingKey, Key
from .shared.prompts import PromptLearner, agrees_with_words
from .shared.views import Views, confident, entropy_of, mean_log_probability

GRADIENT_SCALE = 1000  # of the loss, against the underflow of half precision
CLASS = "[CLS]"  # place of the class name among the words


class PromptTunedCLIP(ClipClassifier):
    """CLIP with a context that `forward` tunes.

    Args:
        node, optim: the nodes TRAINER.TPT and OPTIM.
        clip_model, classnames: see `ClipClassifier`.
    """

    def __init__(self, node, optim, clip_model, classnames: list[str]):
        super().__init__(clip_model, classnames)
        words = node.CTX_INIT.replace("_", " ").strip()
        words_before, place, words_after = words.partition(CLASS)
        position = len(words_before.split()) if place else "end"
        n_ctx, words = 0 if words else node.N_CTX, f"{words_before} {words_after}".strip()
        self.prompt_learner = PromptLearner(self.text_encoder, classnames, n_ctx, words, position=position)
        self.prompt_learner.requires_grad_(False)
        self.optim, self.steps, self.fraction = optim, node.TTA_STEPS, node.SELECTION_P

    def text_of(self, ctx: torch.Tensor) -> torch.Tensor:
        """Return g float [B, n_cls, d] for contexts float [B, n, width]."""
        learner = self.prompt_learner
        return normalize(self.text_encoder(learner(ctx), learner.tokens, learner.n_shared))

    def encode_text(self) -> torch.Tensor:
        """Return g float [n_cls, d] of the context before any image."""
        return self.text_of(self.prompt_learner.ctx[None])[0]

    def view_logits(self, f: torch.Tensor, ctx: torch.Tensor) -> torch.Tensor:
        """Return z_v float [B, n, n_cls] for f float [B, n, d]."""
        g = self.text_of(ctx)
        with torch.autocast(f.device.type, enabled=False):
            return self.logit_scale * wide(f) @ wide(g).mT

    def gradient(self, loss: torch.Tensor, ctx: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(GRADIENT_SCALE * loss, ctx)[0] / GRADIENT_SCALE

    def tune(self, f: torch.Tensor) -> torch.Tensor:
        """Return ctx' float [B, n_ctx, width] for the features float [B, n, d] of the views of B images."""
        ctx = self.prompt_learner.ctx.detach().repeat(len(f), 1, 1).requires_grad_()
        optimizer, selection = build_optimizer([ctx], self.optim), None
        for _ in range(self.steps):
            z = self.view_logits(f, ctx)
            if selection is None:  # the same views in all steps
                selection = confident(entropy_of(z.detach().log_softmax(dim=-1)), self.fraction).unsqueeze(-1)
            z = z.gather(1, selection.expand(-1, -1, z.shape[-1]))
            ctx.grad = self.gradient(entropy_of(mean_log_probability(z)).sum(), ctx)
            optimizer.step()
        return ctx.detach()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits float [B, n_cls] of views float [B, n, 3, H, W], or of images float [B, 3, H, W] alone."""
        views = image if image.dim() == 5 else image.unsqueeze(1)
        with torch.inference_mode(False), torch.enable_grad():
            f = self.frozen_image(views.flatten(0, 1)).unflatten(0, views.shape[:2])
            ctx = self.tune(f)
        with torch.no_grad():
            return self.logits(f[:, 0], self.text_of(ctx))


@TRAINER_REGISTRY.register()
class TPT(ClipTrainer):
    """Test-time prompt tuning: an evaluation that starts anew with each image."""

    defaults = ClipTrainer.defaults | {
        "N_CTX": Key(4, low=0, high=75),  # number of context vectors; CTX_INIT sets it to its number of words
        # initial words; [CLS] is the place of the class name, by default the end; "" = random vectors
        "CTX_INIT": "a_photo_of_a",
        "VIEWS": Key(64, low=1),  # number of views of an image, the image itself among them
        "SELECTION_P": Key(0.1, above=0, high=1),  # fraction of the views that are used
        "TTA_STEPS": Key(1, low=0),  # steps for each image; 0: zero-shot CLIP with these words
        # whether AugMix follows the random crops; auto, as published: not for ImageNet and its variants
        "AUGMIX": Key("auto", choices=["auto", "on", "off"]),
    }
    adaptation = "each image by itself, from random views of it"
    deciding_keys = {"CTX_INIT": DecidingKey(("N_CTX",), agrees_with_words, refused=True)}

    def check_node(self, node):
        super().check_node(node)
        if node.N_CTX < 1 and not node.CTX_INIT.strip(" _"):
            raise ValueError(f"{self.key('N_CTX')} is {node.N_CTX}: give 1 or more, or words as CTX_INIT")
        if node.CTX_INIT and not node.CTX_INIT.replace(CLASS, "").strip(" _"):
            raise ValueError(f'{self.key("CTX_INIT")} is "{node.CTX_INIT}": give words beside the class name')

    def build_classifier(self, clip_model, classnames):
        model = PromptTunedCLIP(self.node, self.cfg.OPTIM, clip_model, classnames)
        if self.cfg.MODEL.INIT_WEIGHTS:  # a context of CoOp
            load_pretrained_weights(model.prompt_learner, self.cfg.MODEL.INIT_WEIGHTS)
        return model

    def views_of(self, seed: int | None = None) -> Views:
        """Return the transform of a test image, see `Views`."""
        is_imagenet = self.cfg.DATASET.NAME.startswith("ImageNet")
        augmix = self.node.AUGMIX == "on" or (self.node.AUGMIX == "auto" and not is_imagenet)
        return Views(self.cfg, self.node.VIEWS, augmix, seed)

    def test_transform(self):
        return self.views_of(max(self.cfg.SEED, 0))

    def build_data_loader(self):
        super().build_data_loader()
        for loader in filter(None, (self.val_loader, self.test_loader)):
            loader.dataset.transform = self.views_of()
