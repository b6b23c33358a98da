"""TDA: a training-free dynamic adapter. Two caches are filled from the stream of test images.

Karmanov et al. 2024, "Efficient Test-Time Adaptation of Vision-Language Models", CVPR.

For each image in the order of the stream, f its feature, z = 100 f g^T, p = softmax(z), H the entropy of p in nats, and
c the predicted class:

    positive   the POS_CAPACITY images of least H of each predicted class;   V_+ one-hot of the class
    negative   likewise, only if  low < H / log2(C) < high;                  V_- 1 where  low < p < high, else 0

    z <- z + alpha_+ exp(-beta_+ (1 - f K_+)) V_+ - alpha_- exp(-beta_- (1 - f K_-)) V_-

An image is added to the caches before its own scores are computed. If an image has several views, the ones with the
least entropy are used: f, z and p are means over them, and f is not normalised again.
"""

import math

import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer
from .shared.beside_dassl import size
from .shared.classifier import ClipClassifier
from .shared.keys import TEMPLATE, Key
from .shared.prompts import template_for
from .shared.templates import IMAGENET_TEMPLATES, IMAGENET_TEMPLATES_SELECT
from .shared.views import Views, confident, entropy_of, mean_log_probability

PUBLISHED = {  # alpha and beta of the positive cache
    "ImageNet": (2, 5),
    "ImageNetA": (2, 5),
    "ImageNetV2": (1, 8),
    "ImageNetR": (1, 8),
    "ImageNetSketch": (2.363, 7.45),
    "Caltech101": (5, 5),
    "DescribableTextures": (2, 3),
    "EuroSAT": (4, 8),
    "FGVCAircraft": (2, 2),
    "Food101": (1, 1),
    "OxfordFlowers": (1, 5),
    "OxfordPets": (2, 7),
    "StanfordCars": (1, 7),
    "SUN397": (2, 3),
    "UCF101": (3, 8),
}
TEMPLATES = dict.fromkeys(("ImageNetR", "ImageNetSketch"), IMAGENET_TEMPLATES)
TEMPLATES |= dict.fromkeys(
    ("ImageNet", "ImageNetA", "ImageNetV2", "Caltech101", "StanfordCars", "SUN397"), IMAGENET_TEMPLATES_SELECT
)
BETWEEN = ("the second larger", lambda ends: ends[0] < ends[1])


class Cache(nn.Module):
    """A cache with room for `capacity` images of each class.

    Attributes:
        keys: features float [n_cls, capacity, d].
        entropy: float [n_cls, capacity], ascending; infinite where there is no image.
        values: float [n_cls, capacity, n_cls].
    """

    def __init__(self, n_cls: int, capacity: int, width: int):
        super().__init__()
        self.register_buffer("keys", torch.zeros(n_cls, capacity, width), persistent=False)
        self.register_buffer("entropy", torch.full((n_cls, capacity), torch.inf), persistent=False)
        self.register_buffer("values", torch.zeros(n_cls, capacity, n_cls), persistent=False)

    def clear(self) -> None:
        self.entropy.fill_(torch.inf)

    def add(self, c: torch.Tensor, f: torch.Tensor, entropy: torch.Tensor, value: torch.Tensor) -> None:
        """Add an image to class c, int64 [1]; one of infinite entropy is not added.

        A full class drops its last image if the new one has less entropy.
        """
        entropies = torch.cat([self.entropy.index_select(0, c), entropy.reshape(1, 1)], dim=1)
        order = entropies.argsort(dim=1, stable=True)[0, :-1]
        self.entropy.index_copy_(0, c, entropies.index_select(1, order))
        for stored_row, new_row in ((self.keys, f), (self.values, value)):
            rows = torch.cat([stored_row.index_select(0, c), new_row[None, None]], dim=1)
            stored_row.index_copy_(0, c, rows.index_select(1, order))

    def forward(self, f: torch.Tensor, beta: float) -> torch.Tensor:
        """Return exp(-beta (1 - f K)) V, float [n_cls], for one feature float [d]."""
        affinity = torch.exp(-beta * (1 - self.keys @ f)).masked_fill(self.entropy.isinf(), 0.0)
        return torch.einsum("ck,ckj->j", affinity, self.values)


class DynamicCLIP(ClipClassifier):
    """CLIP with both caches, which `train` and `eval` empty.

    Args:
        node: the node TRAINER.TDA.
        clip_model, classnames, templates: see `ClipClassifier`.
        positive: alpha and beta of the positive cache.
    """

    def __init__(self, node, clip_model, classnames: list[str], templates: list[str], positive: tuple[float, float]):
        super().__init__(clip_model, classnames, templates)
        n_cls, width = len(classnames), clip_model.text_projection.shape[1]
        self.positive = Cache(n_cls, node.POS_CAPACITY, width)
        self.negative = Cache(n_cls, node.NEG_CAPACITY, width)
        self.weights, self.node = (positive, (node.NEG_ALPHA, node.NEG_BETA)), node
        self.largest = math.log2(n_cls) if node.LOG2 else math.log(n_cls)
        if node.LOGIT_SCALE:
            self.logit_scale.fill_(node.LOGIT_SCALE)

    def caches(self) -> dict[str, Cache]:
        return {"positive": self.positive, "negative": self.negative}

    def train(self, mode: bool = True):
        for cache in self.caches().values():
            cache.clear()
        return super().train(mode)

    def summary(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return f [B, d], z and log p [B, n_cls] of the confident ones of views float [B, n, 3, H, W]."""
        f = self.frozen_image(views.flatten(0, 1))
        z = self.logits(f, self.frozen_text).unflatten(0, views.shape[:2])
        f = f.unflatten(0, views.shape[:2])
        confident_views = confident(entropy_of(z.log_softmax(dim=-1)), self.node.SELECTION_P).unsqueeze(-1)
        f, z = (t.gather(1, confident_views.expand(-1, -1, t.shape[-1])) for t in (f, z))
        return f.mean(dim=1), z.mean(dim=1), mean_log_probability(z)

    def adapt(self, f: torch.Tensor, z: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
        """Add an image to the caches and return its scores, float [n_cls]."""
        node, p, entropy, c = self.node, log_p.exp(), entropy_of(log_p), z.argmax(dim=0, keepdim=True)
        self.positive.add(c, f, entropy, torch.zeros_like(z).index_fill(0, c, 1.0))
        low, high = node.NEG_ENTROPY
        is_uncertain = (entropy / self.largest > low) & (entropy / self.largest < high)
        low, high = node.NEG_MASK
        self.negative.add(c, f, entropy.where(is_uncertain, torch.inf), ((p > low) & (p < high)).to(z))
        (alpha, beta), (negative_alpha, negative_beta) = self.weights
        return z + alpha * self.positive(f, beta) - negative_alpha * self.negative(f, negative_beta)

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the scores float [B, n_cls] of views float [B, n, 3, H, W] or images float [B, 3, H, W], in order."""
        images = zip(*self.summary(image if image.dim() == 5 else image.unsqueeze(1)), strict=True)
        with torch.autocast(image.device.type, enabled=False):
            return torch.stack([self.adapt(*rows) for rows in images])


@TRAINER_REGISTRY.register()
class TDA(ClipTrainer):
    """A training-free dynamic adapter: an evaluation of a stream."""

    defaults = ClipTrainer.defaults | {
        # alpha and beta of the positive cache: the published ones of ImageNet; [] = those published for the data set
        "POSITIVE": Key([2.0, 5.0], low=0, of=float, rule=("two or none of them", lambda pair: len(pair) in (0, 2))),
        "POS_CAPACITY": Key(3, low=0),  # images of each class; 0 = no such cache
        "NEG_CAPACITY": Key(2, low=0),
        "NEG_ALPHA": Key(0.117, low=0),
        "NEG_BETA": Key(1.0, low=0),
        "NEG_ENTROPY": Key([0.2, 0.5], length=2, low=0, rule=BETWEEN),  # of the entropy over `LOG2`
        "NEG_MASK": Key([0.03, 1.0], length=2, low=0, rule=BETWEEN),  # of the probability
        "LOG2": True,  # whether the entropy in nats is divided by log2(C), as published; False: by its maximum, log(C)
        "VIEWS": Key(0, low=0),  # 0 = published: 64 for ImageNet's variants, else 1
        "SELECTION_P": Key(0.1, above=0, high=1),  # fraction of the views that are used
        "AUGMIX": True,  # whether AugMix follows the random crops of the views
        "SHUFFLE": True,  # whether SEED decides the order of the stream; False: the order of the data set
        "LOGIT_SCALE": Key(100.0, low=0),  # the constant of the original; 0 = CLIP's scale
        "TEMPLATE": TEMPLATE,  # "" = published: 7 or 80 of CLIP's templates for some data sets, else the data set's
    }

    adaptation = "the images so far, in their order"

    def build_classifier(self, clip_model, classnames):
        node, name = self.node, self.cfg.DATASET.NAME
        templates = [] if node.TEMPLATE else TEMPLATES.get(name)
        templates = templates or [template_for(name, node.TEMPLATE)]
        positive = tuple(node.POSITIVE) or PUBLISHED.get(name, PUBLISHED["ImageNet"])
        return DynamicCLIP(node, clip_model, classnames, templates, positive)

    def views_of(self, seed: int | None = None) -> Views:
        """Return the transform of a test image, see `Views`."""
        name = self.cfg.DATASET.NAME
        is_variant = name.startswith("ImageNet") and name != "ImageNet"
        return Views(self.cfg, self.node.VIEWS or (64 if is_variant else 1), self.node.AUGMIX, seed)

    def test_transform(self):
        return self.views_of(max(self.cfg.SEED, 0))

    def build_data_loader(self):
        if size() > 1:
            raise ValueError("TDA adapts to one stream of images, which has no parts: start it without torchrun")
        super().build_data_loader()
        for loader in filter(None, (self.val_loader, self.test_loader)):
            loader.dataset.transform = self.views_of()
            if self.node.SHUFFLE:
                items = loader.dataset.data_source
                order = torch.randperm(len(items), generator=torch.Generator().manual_seed(max(self.cfg.SEED, 0)))
                items[:] = [items[k] for k in order.tolist()]

    def get_adaptation_state(self):
        return {name: dict(cache.named_buffers()) for name, cache in self.model.caches().items()}

    def set_adaptation_state(self, state):
        for name, cache in self.model.caches().items():
            for key, buffer in cache.named_buffers():
                buffer.copy_(state[name][key])
