"""Tip-Adapter and Tip-Adapter-F: a cache of the training images beside zero-shot CLIP.

Zhang et al. 2022, "Tip-Adapter: Training-Free Adaption of CLIP for Few-Shot Classification", ECCV.

The features f and g have unit length, and n is the number of training images:

    z = 100 f g^T + alpha exp(-beta (1 - f K)) V
    K [d, n]      mean feature of each image over AUGMENT_EPOCH augmented passes, normalised to unit length
    V [n, n_cls]  labels, one-hot

Tip-Adapter trains nothing. Tip-Adapter-F trains K from these values with L = CE(z, y) at INIT_ALPHA and INIT_BETA, and
keeps the epoch that is best on val. Both then select alpha and beta on val, from a grid. A class without images in the
cache, for example a new class, has no cache term: its score is that of zero-shot CLIP.
"""

import os
import os.path as osp
import re

import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY

from .base import ClipTrainer, load_tensors
from .shared.beside_dassl import read_archive, say
from .shared.classes import class_ids, positions_of
from .shared.classifier import ClipClassifier
from .shared.encoders import normalize
from .shared.keys import TEMPLATE, DecidingKey, Key
from .shared.loaders import keep_last_batch
from .shared.prompts import templates_for

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
    """The cache: K, V, alpha and beta.

    Args:
        width: d.
        images: n.
        classes: `class_ids` of the classes, int64 [n_cls].
        alpha, beta: initial values.
        trained: whether K is a parameter.
    """

    def __init__(self, width: int, images: int, classes: torch.Tensor, alpha: float, beta: float, trained: bool):
        super().__init__()
        keys = torch.zeros(width, images)
        if trained:
            self.keys = nn.Parameter(keys)
            self.register_buffer("best_keys", keys.clone())  # K of the best epoch so far
            self.register_buffer("best_accuracy", torch.tensor(-1.0))
        else:
            self.register_buffer("keys", keys)
        self.register_buffer("values", torch.zeros(images, len(classes)))
        self.register_buffer("alpha", torch.tensor(alpha))
        self.register_buffer("beta", torch.tensor(beta))
        self.register_buffer("classes", classes)

    @torch.no_grad()
    def fill(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Set K and V from features float [passes, n, d], not normalised, and labels int64 [n]."""
        self.keys.copy_(normalize(features.mean(dim=0)).t())
        self.values.copy_(F.one_hot(labels, len(self.classes)))

    def set(self, alpha: float, beta: float) -> None:
        self.alpha.fill_(alpha)
        self.beta.fill_(beta)

    @torch.no_grad()
    def keep(self, accuracy: float) -> None:
        """Store the keys as the best ones if the accuracy is the highest so far."""
        if accuracy > self.best_accuracy:
            self.best_accuracy.fill_(accuracy)
            self.best_keys.copy_(self.keys)

    @torch.no_grad()
    def restore(self) -> None:
        self.keys.copy_(self.best_keys)

    def affinity(self, cosines: torch.Tensor, beta: float | torch.Tensor) -> torch.Tensor:
        """Return exp(-beta (1 - f K)) V, float [B, n_cls], for the cosines f K float [B, n]."""
        return torch.exp(-beta * (1 - cosines)) @ self.values

    def forward(self, f: torch.Tensor) -> torch.Tensor:
        """Return the cache term, float [B, n_cls], for f float [B, d] of unit length."""
        return self.alpha * self.affinity(f @ self.keys, self.beta)

    def load_state_dict(self, state_dict, *args, **kwargs):
        # the two files of the original have keys and values only
        optional_names = {name: getattr(self, name) for name in ("alpha", "beta", "classes")}
        if "best_keys" in self.state_dict():
            optional_names |= {"best_keys": state_dict.get("keys"), "best_accuracy": self.best_accuracy}
        state = optional_names | {name: tensor for name, tensor in state_dict.items() if name in self.state_dict()}
        if state.keys() >= {"keys", "values"} and state["values"].shape[1] == len(state["classes"]):
            positions = positions_of(self.classes, state["classes"])
            has_images, values = positions >= 0, state["values"].to(self.values)
            if not has_images.all():
                count = f"{int(has_images.sum())} of these {len(has_images)} classes"
                say(f"The cache has images of {count}. The other classes have no cache term")
            state["values"] = values.new_zeros(len(values), len(has_images))
            state["values"][:, has_images] = values[:, positions[has_images]]
            state["classes"] = self.classes
            for name in {"keys", "best_keys", "values"} & state.keys():  # the number of images may differ
                getattr(self, name).data = self.values.new_empty(state[name].shape)
        return super().load_state_dict(state, *args, **kwargs)


class CachedCLIP(ClipClassifier):
    takes_features = True

    def __init__(self, clip_model, classnames: list[str], templates: list[str], cache: Cache, scale: float):
        super().__init__(clip_model, classnames, templates)
        self.cache = cache
        if scale:
            self.logit_scale.fill_(scale)

    def score(self, f: torch.Tensor) -> torch.Tensor:
        """Return z, float32 [B, n_cls], for features f float [B, d] of unit length."""
        with torch.autocast(f.device.type, enabled=False):  # beta may be 50, so half precision is too coarse for exp
            return self.logits(f, self.frozen_text) + self.cache(f)

    def forward(self, image):
        return self.score(self.encode_image(image))

    @torch.no_grad()
    def accuracy(self, f: torch.Tensor, label: torch.Tensor) -> float:
        """Return the accuracy in percent on features float [m, d] with labels int64 [m]."""
        return percent(self.score(f), label)

    @torch.no_grad()
    def search(self, f: torch.Tensor, label: torch.Tensor, scale: list[float], step: list[int]) -> tuple[float, ...]:
        """Return the first point of a grid with the best accuracy.

        Args:
            f: features float [m, d] of unit length.
            label: int64 [m].
            scale: ends of the grids of beta and of alpha, which are 0.1 + i (scale - 0.1) / step.
            step: number of points of both grids.

        Returns:
            The accuracy in percent, beta and alpha.
        """
        best_point, zero_shot, cosines = (-1.0, 0.0, 0.0), self.logits(f, self.frozen_text), f @ self.cache.keys
        betas, alphas = ([0.1 + i * (s - 0.1) / n for i in range(n)] for s, n in zip(scale, step, strict=True))
        for beta in betas:
            affinity = self.cache.affinity(cosines, beta)
            for alpha in alphas:
                accuracy = percent(zero_shot + alpha * affinity, label)
                if accuracy > best_point[0]:
                    best_point = accuracy, beta, alpha
        return best_point


def percent(logits: torch.Tensor, label: torch.Tensor) -> float:
    return 100 * (logits.argmax(dim=-1) == label).double().mean().item()


@TRAINER_REGISTRY.register()
class TipAdapter(ClipTrainer):
    """Tip-Adapter: a cache of the training images, without training."""

    defaults = ClipTrainer.defaults | {
        "AUGMENT_EPOCH": Key(10, low=1),  # number of augmented passes over the training images
        "INIT_BETA": Key(1.0, above=0),
        "INIT_ALPHA": Key(0.0, low=0),  # 0 = the published value of the data set, or of ImageNet if there is none
        "SEARCH_HP": True,  # whether alpha and beta are selected from the grids; False: they keep their initial values
        # ends of the grids of beta and alpha, [] = published for the data set; and the numbers of their points
        "SEARCH_SCALE": Key([], above=0.1, of=float, rule=("two or none of them", lambda ends: len(ends) in (0, 2))),
        "SEARCH_STEP": Key([200, 20], low=1, length=2),
        # test: without val images select on the test images, as published; the accuracy is then not comparable
        "SELECT": Key("val", choices=["val", "test"]),
        "LOGIT_SCALE": Key(100.0, low=0),  # the constant of the original; 0 = CLIP's scale
        "TEMPLATE": TEMPLATE,  # "" = the data set's template, for ImageNet 7 of them
    }
    deciding_keys = {"SEARCH_HP": DecidingKey(("INIT_ALPHA", "INIT_BETA"))}
    learner = "cache"
    trained = False
    plan = {"learning rate": "none", "epochs": "none: the cache is filled with features", "steps": "none"}

    def build_classifier(self, clip_model, classnames):
        node, name = self.node, self.cfg.DATASET.NAME
        templates = templates_for(name, node.TEMPLATE)
        *self.search_scale, alpha = PUBLISHED.get(name, PUBLISHED["ImageNet"])
        self.search_scale = node.SEARCH_SCALE or self.search_scale
        alpha = node.INIT_ALPHA or float(alpha)
        width, images = clip_model.text_projection.shape[1], len(self.dm.dataset.train_x or [])
        cache = Cache(width, images, class_ids(classnames), alpha, node.INIT_BETA, self.trained)
        return CachedCLIP(clip_model, classnames, templates, cache, node.LOGIT_SCALE)

    def fit(self):
        self.fill()
        self.search()

    def fill(self) -> None:
        passes = self.features_of_passes(self.node.AUGMENT_EPOCH)
        self.model.cache.fill(torch.stack([features for features, _ in passes]), passes[0][1])

    def load_published(self, directory):
        """Load the files of the original's caches/<data set>.

        They are `keys_16shots.pt` and `values_16shots.pt`, with Tip-Adapter-F `best_F_16shots.pt` for the keys.

        Returns:
            Whether the directory has such files.
        """
        shots = self.published_shots(directory)
        if not shots:
            return False
        path = osp.join(directory, f"{'best_F' if self.trained else 'keys'}_{shots}shots.pt")
        keys, values = read_archive(path), read_archive(osp.join(directory, f"values_{shots}shots.pt"))
        if self.trained and isinstance(keys, torch.Tensor):
            keys = keys.t()
        load_tensors(self.model.cache, {"keys": keys, "values": values}, path)
        self.search()  # the original does not save alpha and beta, but searches them after loading
        return True

    def published_shots(self, directory: str) -> int:
        """Return the shots of the original's cache in a directory; 0: there is none.

        If there are several caches, DATASET.NUM_SHOTS selects one.
        """
        files = os.listdir(directory) if osp.isdir(directory) else []
        matches = [re.fullmatch(r"values_(\d+)shots\.pt", file) for file in files]
        shots = [int(match[1]) for match in matches if match]
        if not shots:
            return 0
        if len(shots) == 1:
            return shots[0]
        if self.cfg.DATASET.NUM_SHOTS not in shots:
            raise ValueError(f"{directory} has caches of {sorted(shots)} shots: set DATASET.NUM_SHOTS to one of them")
        return self.cfg.DATASET.NUM_SHOTS

    def search(self) -> None:
        """Set alpha and beta to the best ones on val.

        Without val images, SELECT test takes the best ones on test; otherwise they stay as they are.
        """
        if not self.node.SEARCH_HP:
            return
        if self.dm.dataset.val:
            split = "val"
        elif self.node.SELECT == "test":
            split = "test"
        else:
            say("There are no val images: alpha and beta stay as they are")
            return
        accuracy, beta, alpha = self.model.search(*self.encode_split(split), self.search_scale, self.node.SEARCH_STEP)
        warning = ", not a fair figure" if split == "test" else ""
        say(f"Best on {split}: beta {beta:.2f}, alpha {alpha:.2f}, with {accuracy:.1f}%{warning}")
        self.model.cache.set(alpha, beta)

    def encode_split(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the unit-length features float [m, d] and labels int64 [m] of val or test, encoded once."""

        def encode() -> tuple[torch.Tensor, torch.Tensor]:
            with torch.random.fork_rng(devices=[]):  # a resumed run draws the same numbers as an uninterrupted one
                features, labels = self.features(getattr(self.dm.dataset, split))
            return normalize(features), labels

        return self.model.compute_frozen_once(f"{split} images", encode)


@TRAINER_REGISTRY.register()
class TipAdapterF(TipAdapter):
    """Tip-Adapter-F: a cache with trained keys."""

    defaults = TipAdapter.defaults | {
        # split that selects the epoch; last: the last epoch. With test, as published, alpha and beta are searched too,
        # but kept only if they improve the accuracy on test
        "SELECT": Key("val", choices=["val", "last", "test"]),
        "EPS": Key(1e-4, above=0),  # eps of AdamW
    }
    deciding_keys = {}  # K is trained at INIT_ALPHA and INIT_BETA, with and without a search afterwards
    trained = True
    plan = {}
    lr_per_batch = True

    def build_data_loader(self):
        super().build_data_loader()
        keep_last_batch(self.train_loader_x)

    def build_model(self):
        super().build_model()
        if self.optim is None:  # there are no training images
            return
        for group in self.optim.param_groups:
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
        """Store the keys if they are the best so far. Without a split to select on, the latest keys count as best."""
        split = self.node.SELECT
        if split == "last" or (split == "val" and not self.dm.dataset.val):
            score = float(self.epoch)  # grows in each epoch
        else:
            score = self.model.accuracy(*self.encode_split(split))
        self.model.cache.keep(score)

    def settle(self) -> None:
        """Restore the best keys, and set alpha and beta."""
        cache = self.model.cache
        cache.restore()
        if self.node.SELECT != "test":
            self.search()
            return
        alpha, beta = cache.alpha.item(), cache.beta.item()
        accuracy = self.model.accuracy(*self.encode_split("test"))
        self.search()
        say("SELECT test: chosen on the test images, as published: not a fair figure")
        if self.model.accuracy(*self.encode_split("test")) <= accuracy:
            cache.set(alpha, beta)
