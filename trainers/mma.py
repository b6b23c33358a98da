"""MMA, multi-modal adapters (Yang et al. 2024, "MMA: Multi-Modal Adapter for Vision-Language Models", CVPR).

The original code is github.com/ZjjConan/VLM-MultiModalAdapter. In the later blocks i an adapter A_i stands beside the
block of each encoder e. It sees the block's input x through the block's own, frozen ln_1. The middle layer S_i is one
for both encoders:

    block_i(x) + scale A_i(ln_1(x)),   A_i(h) = U_e relu(S relu(D_e h)),   D_e: d_e -> r,   S: r -> r,   U_e: r -> d_e
    L = CE(s f g^T, y)

U, S and D have biases. Their gradients are those of scale 1: the gradient is divided by the scale where it enters A_i,
and multiplied by it where it leaves A_i, so that all other tensors get the gradient of L. The published scale is 0.001.
ADAPTER_START 0 adds scale A_0 to the token embeddings and to the output of ln_pre, with the gradient of L.
"""

import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer
from .shared.backbones import is_vit
from .shared.classifier import ClipClassifier
from .shared.encoders import normalize
from .shared.keys import Key
from .shared.prompts import fill_template


class ScaledGradient(torch.autograd.Function):
    """The identity, with a gradient that is multiplied by a factor."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.factor * grad, None


class AdapterLearner(nn.Module):
    """The layers of all adapters, with the names of the original: the number of a block counts from 1.

    Args:
        blocks: numbers of the blocks; 0: the inputs.
        widths: width of the tokens of the text and of the image.
        r: width of the middle layer.
        scale: see above.
    """

    dead = ("token_embedding", "tokenized_prompts")  # in the original's checkpoints, of the classes of the training

    def __init__(self, blocks: range, widths: tuple[int, int], r: int, scale: float):
        super().__init__()
        self.scale = scale
        for encoder, width in zip(("text", "visual"), widths, strict=True):
            adapters = {
                str(i): nn.ModuleDict({"down": nn.Sequential(nn.Linear(width, r)), "up": nn.Linear(r, width)})
                for i in blocks
            }
            self.add_module(f"{encoder}_adapter", nn.ModuleDict(adapters))
        self.shared_adapter = nn.ModuleDict({str(i): nn.Sequential(nn.Linear(r, r)) for i in blocks})
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def compute_branch(self, place: str, h: torch.Tensor) -> torch.Tensor | None:
        """Return scale A_i(h) at a place of the encoders; None: there is no adapter. See shared/encoders.py."""
        encoder, place = place.split("_")
        block = "0" if place == "input" else str(int(place) + 1)
        if block not in self.shared_adapter:
            return None
        adapter = (self.text_adapter if encoder == "text" else self.visual_adapter)[block]
        factor = 1 if block == "0" else self.scale
        down_projection = adapter["down"](ScaledGradient.apply(h, factor)).relu()
        branch = adapter["up"](self.shared_adapter[block](down_projection).relu())
        return self.scale * ScaledGradient.apply(branch, 1 / factor)

    def load_state_dict(self, state_dict, *args, **kwargs):
        state = {name: tensor for name, tensor in state_dict.items() if name not in self.dead}
        return super().load_state_dict(state, *args, **kwargs)


class AdaptedCLIP(ClipClassifier):
    """CLIP with adapters beside its blocks.

    Args:
        node: config node of MMA.
        clip_model, classnames: see `ClipClassifier`.
    """

    def __init__(self, node, clip_model, classnames: list[str]):
        super().__init__(clip_model, classnames)
        template = f"{node.TEXT_CTX_INIT} {{}}."
        tokens = self.text_encoder.tokenize(fill_template(template, classnames))
        self.register_buffer("tokens", tokens.to(self.logit_scale.device), persistent=False)
        widths = clip_model.text_projection.shape[0], clip_model.visual.conv1.out_channels
        blocks = range(node.ADAPTER_START, node.ADAPTER_END + 1)
        self.adapter_learner = AdapterLearner(blocks, widths, node.ADAPTER_DIM, node.ADAPTER_SCALE)

    def encode_text(self) -> torch.Tensor:
        return normalize(self.text_encoder(None, self.tokens, beside=self.adapter_learner.compute_branch))

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        return normalize(self.image_encoder(image, beside=self.adapter_learner.compute_branch))


@TRAINER_REGISTRY.register()
class MMA(ClipTrainer):
    """Multi-modal adapter."""

    defaults = ClipTrainer.defaults | {
        "TEXT_CTX_INIT": "a photo of a",  # the words before the class name, which are not trained
        "ADAPTER_START": Key(4, low=0),  # first block with an adapter, counted from 1; 0 = the inputs too; published: 5
        "ADAPTER_END": Key(12, low=0),  # last block with an adapter
        "ADAPTER_DIM": Key(32, low=1),  # r
        "ADAPTER_SCALE": Key(0.1, above=0),  # published: 0.001
    }
    node_name = "MMADAPTER"
    learner = "adapter_learner"

    def build_classifier(self, clip_model, classnames):
        node, name = self.node, self.cfg.MODEL.BACKBONE.NAME
        if not is_vit(clip_model):
            raise ValueError(f"{name} is a ResNet: its image encoder has no blocks to put adapters beside; take a ViT")
        blocks = min(len(module.transformer.resblocks) for module in (clip_model.visual, clip_model))
        if not node.ADAPTER_START <= node.ADAPTER_END <= blocks:
            problem = f"{self.key('ADAPTER_START')} is {node.ADAPTER_START} and ADAPTER_END {node.ADAPTER_END}"
            raise ValueError(f"{problem}: give 0 <= start <= end <= {blocks}, the number of blocks of {name}")
        return AdaptedCLIP(node, clip_model, classnames)
