"""Shapes: 40 compositions of colour, pattern and shape that the tiny CLIP never saw, in a style that it never saw."""

import numpy as np

from dassl.data.datasets import DATASET_REGISTRY

from . import drawing
from .base import DrawnDataset


@DATASET_REGISTRY.register()
class Shapes(DrawnDataset):
    """32 x 32 pictures on a blotchy coloured canvas; 20 train, 20 val and 40 test images of each of 40 classes."""

    dataset_dir = "shapes"
    style = "canvas"
    images = {"train": 20, "val": 20, "test": 40}  # of each class

    def pictures(self):
        for label, composition in enumerate(drawing.UNSEEN[:40]):
            for k, (split, count) in enumerate(self.images.items()):
                rng = np.random.default_rng([13, label, k])
                for _ in range(count):
                    image = drawing.draw(composition, drawing.STYLES[self.style], rng)
                    yield split, label, drawing.name(composition), image
