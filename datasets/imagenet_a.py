"""ImageNet-A (Hendrycks et al. 2021): photos of 200 classes that ResNets get wrong, for testing only."""

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetA(ImageNetVariant):
    """Layout below `DATASET.ROOT`: imagenet-adversarial/imagenet-a/<wnid>/ and imagenet-adversarial/classnames.txt."""

    dataset_dir = "imagenet-adversarial"
    image_dir = "imagenet-a"
    n_classes = 200
