"""Shapes: 40 compositions of colour, pattern and shape that the tiny CLIP never saw, in a style that it never saw."""

import numpy as np

from dassl.data.datasets import DATASET_REGISTRY

from .base import DrawnDataset
from .shared import drawing

BASE_SHAPES = ("circle", "triangle", "square", "hexagon", "star")


@DATASET_REGISTRY.register()
class Shapes(DrawnDataset):
    """Pictures of 32 x 32 pixels on a blotchy canvas; 20 train, 20 val and 40 test images of each of 40 classes.

    As in the real benchmarks, the new classes are other objects: no base class has the shape of a new one.
    """

    dataset_dir = "shapes"
    style = "canvas"
    images = {"train": 20, "val": 20, "test": 40}  # of each class

    @staticmethod
    def compositions() -> list[tuple[str, str, str]]:
        """Return the 20 base classes, then the 20 new ones."""
        base = [c for c in drawing.UNSEEN if c[2] in BASE_SHAPES]
        new_compositions = [c for c in drawing.UNSEEN if c[2] not in BASE_SHAPES]
        return base[:20] + new_compositions[:20]

    def pictures(self):
        for label, composition in enumerate(self.compositions()):
            for k, (split, count) in enumerate(self.images.items()):
                rng = np.random.default_rng([13, label, k])
                for _ in range(count):
                    image = drawing.draw(composition, drawing.STYLES[self.style], rng)
                    yield split, label, drawing.name(composition), image
