"""Shapes in four other styles that the tiny CLIP never saw: the embedded benchmark's domain generalization.

For testing only, as ImageNetV2, -Sketch, -A and -R are: the same 40 classes, 10 images of each.
"""

from dassl.data.datasets import DATASET_REGISTRY

from .shapes import Shapes


class ShapesVariant(Shapes):
    """The base class of the variants."""

    images = {"test": 10}  # of each class
    test_only = True


@DATASET_REGISTRY.register()
class ShapesFog(ShapesVariant):
    dataset_dir = "shapes_fog"
    style = "fog"


@DATASET_REGISTRY.register()
class ShapesNight(ShapesVariant):
    dataset_dir = "shapes_night"
    style = "night"


@DATASET_REGISTRY.register()
class ShapesNeon(ShapesVariant):
    dataset_dir = "shapes_neon"
    style = "neon"


@DATASET_REGISTRY.register()
class ShapesScribble(ShapesVariant):
    dataset_dir = "shapes_scribble"
    style = "scribble"
