"""The targets of the embedded benchmark's cross-dataset transfer: other tasks on drawn pictures.

The classes of Colours, Patterns and Outlines are one part of a composition that the tiny CLIP never saw. Those of
Compositions are the 60 unseen compositions that Shapes does not have. Patterns has the style of Shapes, the others have
styles of their own.
"""

import numpy as np

from dassl.data.datasets import DATASET_REGISTRY

from .base import DrawnDataset
from .shapes import Shapes
from .shared import drawing


class ShapePart(DrawnDataset):
    """The base class of data sets whose classes are the values of one part of a composition."""

    part = 0  # index in a composition: pattern, colour, shape
    names: tuple[str, ...] = ()
    style = ""
    images = {"train": 20, "val": 10, "test": 40}  # of each class

    def pictures(self):
        for label, name in enumerate(self.names):
            compositions = [c for c in drawing.UNSEEN if c[self.part] == name]
            for k, (split, count) in enumerate(self.images.items()):
                rng = np.random.default_rng([17, self.part, label, k])
                for _ in range(count):
                    composition = compositions[rng.integers(len(compositions))]
                    yield split, label, name, drawing.draw(composition, drawing.STYLES[self.style], rng)


@DATASET_REGISTRY.register()
class Patterns(ShapePart):
    dataset_dir, style, part, names = "patterns", "canvas", 0, drawing.PATTERNS


@DATASET_REGISTRY.register()
class Colours(ShapePart):
    dataset_dir, style, part, names = "colours", "night", 1, tuple(drawing.COLOURS)


@DATASET_REGISTRY.register()
class Outlines(ShapePart):
    dataset_dir, style, part, names = "outlines", "fog", 2, tuple(drawing.SHAPES)


@DATASET_REGISTRY.register()
class Compositions(Shapes):
    dataset_dir = "compositions"
    style = "scribble"
    images = {"train": 16, "val": 4, "test": 10}

    @staticmethod
    def compositions():
        shape_compositions = set(Shapes.compositions())
        return [c for c in drawing.UNSEEN if c not in shape_compositions]
