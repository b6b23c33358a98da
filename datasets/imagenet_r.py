"""ImageNet-R (Hendrycks et al. 2021): art, toys and other renditions of 200 classes, for testing only."""

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetR(ImageNetVariant):
    """Layout below `DATASET.ROOT`: imagenet-rendition/imagenet-r/<wnid>/ and imagenet-rendition/classnames.txt."""

    dataset_dir = "imagenet-rendition"
    image_dir = "imagenet-r"
    n_classes = 200
