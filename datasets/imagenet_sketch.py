"""ImageNet-Sketch (Wang et al. 2019): sketches of ImageNet's 1,000 classes, for testing only."""

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetSketch(ImageNetVariant):
    """Layout below `DATASET.ROOT`: imagenet-sketch/images/<wnid>/ and imagenet-sketch/classnames.txt."""

    dataset_dir = "imagenet-sketch"
    image_dir = "images"
