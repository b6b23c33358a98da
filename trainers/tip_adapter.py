"""Tip-Adapter and Tip-Adapter-F (Zhang et al. 2022, "Tip-Adapter: Training-Free Adaption of CLIP for Few-Shot
Classification", ECCV).

A cache of the n training images beside zero-shot CLIP, f and g of unit length:

    z = 100 f g^T + alpha exp(-beta (1 - f K)) V
    K [d, n]      unit length of the mean feature over AUGMENT_EPOCH augmented passes
    V [n, n_cls]  labels, one-hot

Tip-Adapter trains nothing. Tip-Adapter-F trains K from there, L = CE(z, y) at INIT_ALPHA and INIT_BETA, and keeps the
epoch that is best on val. Both then take the alpha and beta of a grid that are best on val. A class without images in
the cache, as new classes are, has no cache term: it is scored as by zero-shot CLIP.
"""

import os
import os.path as osp
import re

import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer, load_tensors
from .shared import archives
from .shared.classes import class_ids, places_of
from .shared.classifier import ClipClassifier
from .shared.console import say
from .shared.encoders import normalize
from .shared.keys import TEMPLATE, Decides, Key
from .shared.loaders import keep_last_batch
from .shared.prompts import template_for
from .shared.templates import IMAGENET_TEMPLATES_SELECT

PUBLISHED = {  # SEARCH_SCALE of beta and of alpha, INIT_ALPHA
    "ImageNet": (7, 3, 1.17),
    "Caltech101": (12, 5, 3),
    "DescribableTextures": (13, 13, 2),
    "EuroSAT": (12, 10, 2),
    "FGVCAircraft": (30, 30, 5),
    "Food101": (10, 10, 1.17),
    "OxfordFlowers": (50, 50, 10),
    "OxfordPets": (7, 3, 1.17),
    "StanfordCars": (20, 10, 3),
    "SUN397": (12, 10, 1.17),
    "UCF101": (7, 3, 3),
}


class Cache(nn.Module):
    """K, V, alpha and beta; `trained`: whether K is a parameter."""

    def __init__(self, width: int, images: int, classes: torch.Tensor, alpha: float, beta: float, trained: bool):
        super().__init__()
        keys = torch.zeros(width, images)
        if trained:
            self.keys = nn.Parameter(keys)
            self.register_buffer("best_keys", keys.clone())  # of the best epoch so far, by its accuracy
            self.register_buffer("best_accuracy", torch.tensor(-1.0))
        else:
            self.register_buffer("keys", keys)
        self.register_buffer("values", torch.zeros(images, len(classes)))
        self.register_buffer("alpha", torch.tensor(alpha))
        self.register_buffer("beta", torch.tensor(beta))
        self.register_buffer("classes", classes)

    @torch.no_grad()
    def fill(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """From features float [passes, n, d], not normalised, and labels int64 [n]."""
        self.keys.copy_(normalize(features.mean(dim=0)).t())
        self.values.copy_(F.one_hot(labels, len(self.classes)))

    def set(self, alpha: float, beta: float) -> None:
        self.alpha.fill_(alpha)
        self.beta.fill_(beta)

    @torch.no_grad()
    def keep(self, accuracy: float) -> None:
        """Keeps the keys as the best so far, if they are."""
        if accuracy > self.best_accuracy:
            self.best_accuracy.fill_(accuracy)
            self.best_keys.copy_(self.keys)

    @torch.no_grad()
    def restore(self) -> None:
        self.keys.copy_(self.best_keys)

    def affinity(self, cosines: torch.Tensor, beta: float | torch.Tensor) -> torch.Tensor:
        """exp(-beta (1 - f K)) V of the cosines f K float [B, n] -> [B, n_cls]."""
        return torch.exp(-beta * (1 - cosines)) @ self.values

    def forward(self, f: torch.Tensor) -> torch.Tensor:
        """The cache term of unit-length f float [B, d] -> [B, n_cls]."""
        return self.alpha * self.affinity(f @ self.keys, self.beta)

    def load_state_dict(self, state_dict, *args, **kwargs):
        # keys and values alone, the original's two files, are enough
        optional = {name: getattr(self, name) for name in ("alpha", "beta", "classes")}
        if "best_keys" in self.state_dict():
            optional |= {"best_keys": state_dict.get("keys"), "best_accuracy": self.best_accuracy}
        kept = optional | {name: tensor for name, tensor in state_dict.items() if name in self.state_dict()}
        if kept.keys() >= {"keys", "values"} and kept["values"].shape[1] == len(kept["classes"]):
            place = places_of(self.classes, kept["classes"])
            known, theirs = place >= 0, kept["values"].to(self.values)
            if not known.all():
                say(f"The cache has {int(known.sum())} of these {len(known)} classes: no cache term for the others")
            kept["values"] = theirs.new_zeros(len(theirs), len(known))
            kept["values"][:, known] = theirs[:, place[known]]
            kept["classes"] = self.classes
            for name in {"keys", "best_keys", "values"} & kept.keys():  # of as many images as it was filled with
                getattr(self, name).data = self.values.new_empty(kept[name].shape)
        return super().load_state_dict(kept, *args, **kwargs)


class CachedCLIP(ClipClassifier):
    def __init__(self, clip_model, classnames: list[str], templates: list[str], cache: Cache, scale: float):
        super().__init__(clip_model, classnames, templates)
        self.cache = cache
        if scale:
            self.logit_scale.fill_(scale)

    def score(self, f: torch.Tensor) -> torch.Tensor:
        """z float32 [B, n_cls] of unit-length features f float [B, d]."""
        with torch.autocast(f.device.type, enabled=False):  # beta may be 50: exp wants digits
            return self.logits(f, self.frozen_text) + self.cache(f)

    def forward(self, image):
        return self.score(self.encode_image(image))

    @torch.no_grad()
    def accuracy(self, f: torch.Tensor, label: torch.Tensor) -> float:
        """In percent, of features float [m, d] and labels int64 [m]."""
        return percent(self.score(f), label)

    @torch.no_grad()
    def search(self, f: torch.Tensor, label: torch.Tensor, scale: list[float], step: list[int]) -> tuple[float, ...]:
        """(accuracy in percent, beta, alpha): the first that is best of the grid 0.1 + i (scale - 0.1) / step."""
        best, zero_shot, cosines = (-1.0, 0.0, 0.0), self.logits(f, self.frozen_text), f @ self.cache.keys
        betas, alphas = ([0.1 + i * (s - 0.1) / n for i in range(n)] for s, n in zip(scale, step, strict=True))
        for beta in betas:
            affinity = self.cache.affinity(cosines, beta)
            for alpha in alphas:
                accuracy = percent(zero_shot + alpha * affinity, label)
                best = (accuracy, beta, alpha) if accuracy > best[0] else best
        return best


def percent(logits: torch.Tensor, label: torch.Tensor) -> float:
    return 100 * (logits.argmax(dim=-1) == label).double().mean().item()


@TRAINER_REGISTRY.register()
class TipAdapter(ClipTrainer):
    """A cache of the training images; nothing is trained."""

    defaults = ClipTrainer.defaults | {
        "AUGMENT_EPOCH": Key(10, low=1),  # passes over the training images
        "INIT_BETA": Key(1.0, above=0),
        "INIT_ALPHA": Key(0.0, low=0),  # 0 = published for the data set, else ImageNet's
        "SEARCH_HP": True,  # whether alpha and beta are searched; else they stay as they are
        # ends of the grids of beta and alpha, [] = published for the data set; their points
        "SEARCH_SCALE": Key([], above=0.1, of=float, rule=("two or none of them", lambda ends: len(ends) in (0, 2))),
        "SEARCH_STEP": Key([200, 20], low=1, length=2),
        "SELECT": Key("val", choices=["val", "test"]),  # test: as published, where there is no val; not a fair figure
        "LOGIT_SCALE": Key(100.0, low=0),  # the original's constant; 0 = CLIP's own
        "TEMPLATE": TEMPLATE,  # "" = the data set's own, for ImageNet 7
    }
    decides = {"SEARCH_HP": Decides(("INIT_ALPHA", "INIT_BETA"))}
    learner = "cache"
    trained = False

    def build_classifier(self, clip_model, classnames):
        node, name = self.node, self.cfg.DATASET.NAME
        ensemble = name.startswith("ImageNet") and not node.TEMPLATE
        templates = IMAGENET_TEMPLATES_SELECT if ensemble else [template_for(name, node.TEMPLATE)]
        *self.search_scale, alpha = PUBLISHED.get(name, PUBLISHED["ImageNet"])
        self.search_scale = node.SEARCH_SCALE or self.search_scale
        self._encoded = {}
        alpha = node.INIT_ALPHA or float(alpha)
        width, images = clip_model.text_projection.shape[1], len(self.dm.dataset.train_x or [])
        cache = Cache(width, images, class_ids(classnames), alpha, node.INIT_BETA, self.trained)
        return CachedCLIP(clip_model, classnames, templates, cache, node.LOGIT_SCALE)

    def fit(self):
        self.fill()
        self.search()

    def fill(self) -> None:
        passes = self.passes(self.node.AUGMENT_EPOCH)
        self.model.cache.fill(torch.stack([features for features, _ in passes]), passes[0][1])

    def load_published(self, directory):
        """From the original's caches/<data set>: `keys_16shots.pt` or, trained, `best_F_16shots.pt`; and the values."""
        shots = self.published_shots(directory)
        if not shots:
            return False
        path = osp.join(directory, f"{'best_F' if self.trained else 'keys'}_{shots}shots.pt")
        keys, values = archives.load(path), archives.load(osp.join(directory, f"values_{shots}shots.pt"))
        if self.trained and isinstance(keys, torch.Tensor):
            keys = keys.t()
        load_tensors(self.model.cache, {"keys": keys, "values": values}, path)
        self.search()  # as there: alpha and beta are not kept
        return True

    def published_shots(self, directory: str) -> int:
        """Of the original's cache there: DATASET.NUM_SHOTS, or those of the only one; 0: there is none."""
        files = os.listdir(directory) if osp.isdir(directory) else []
        there = [int(hit[1]) for hit in (re.fullmatch(r"values_(\d+)shots\.pt", file) for file in files) if hit]
        if len(there) > 1 and self.cfg.DATASET.NUM_SHOTS not in there:
            raise ValueError(f"{directory} has caches of {sorted(there)} shots: set DATASET.NUM_SHOTS to one of them")
        return self.cfg.DATASET.NUM_SHOTS if len(there) > 1 else sum(there)

    def search(self) -> None:
        """Sets alpha and beta, on val; without val on test if SELECT says so, else not."""
        if not self.node.SEARCH_HP:
            return
        split = "val" if self.dm.dataset.val else "test" if self.node.SELECT == "test" else ""
        if not split:
            say("There are no val images: alpha and beta stay as they are")
            return
        accuracy, beta, alpha = self.model.search(*self.encoded(split), self.search_scale, self.node.SEARCH_STEP)
        unfair = ", not a fair figure" * (split == "test")
        say(f"Best on {split}: beta {beta:.2f}, alpha {alpha:.2f}, with {accuracy:.1f}%{unfair}")
        self.model.cache.set(alpha, beta)

    def encoded(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit-length features float [m, d] and labels int64 [m] of val or test, encoded once."""
        if split not in self._encoded:
            with torch.random.fork_rng(devices=[]):  # a run gone on with must draw what an undisturbed one does
                features, labels = self.features(getattr(self.dm.dataset, split))
            self._encoded[split] = normalize(features), labels
        return self._encoded[split]


@TRAINER_REGISTRY.register()
class TipAdapterF(TipAdapter):
    """The cache's keys are trained."""

    defaults = TipAdapter.defaults | {
        # what the epoch is chosen on; test: as published, and then alpha and beta only where they help there
        "SELECT": Key("val", choices=["val", "last", "test"]),
        "EPS": Key(1e-4, above=0),  # of AdamW
    }
    decides = {}  # K is trained at INIT_ALPHA and INIT_BETA, whatever is searched then
    trained = True
    lr_per_batch = True

    def build_data_loader(self):
        super().build_data_loader()
        keep_last_batch(self.train_loader_x)

    def build_model(self):
        super().build_model()
        for group in self.optim.param_groups if self.optim else []:  # none without training images
            if "eps" in group:
                group["eps"] = self.node.EPS

    def fit(self):
        self.fill()

    def after_epoch(self):
        self.keep_best()
        if self.epoch + 1 == self.max_epoch:
            self.settle()
        super().after_epoch()

    def keep_best(self) -> None:
        """Keeps the keys if they are the best so far; if nothing is chosen, the last are."""
        split = {"val": "val" if self.dm.dataset.val else "", "last": "", "test": "test"}[self.node.SELECT]
        accuracy = self.model.accuracy(*self.encoded(split)) if split else float(self.epoch)
        self.model.cache.keep(accuracy)

    def settle(self) -> None:
        """Puts the best keys in place, and sets alpha and beta."""
        cache, published = self.model.cache, self.node.SELECT == "test"
        cache.restore()
        before = cache.alpha.item(), cache.beta.item(), self.model.accuracy(*self.encoded("test")) if published else 0
        self.search()
        if published:
            say("SELECT test: chosen on the test images, as published: not a fair figure")
            if self.model.accuracy(*self.encoded("test")) <= before[2]:
                cache.set(*before[:2])
