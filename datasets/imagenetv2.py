"""ImageNetV2 (Recht et al. 2019), matched frequency: new photos of ImageNet's 1,000 classes, for testing only."""

from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import ImageNetVariant


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetVariant):
    """Layout below `DATASET.ROOT`: imagenetv2/imagenetv2-matched-frequency-format-val/<0..999>/ and classnames.txt.

    The names of the folders are the labels, in the order of the wnids; 10 comes after 9.
    """

    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"

    def folders(self, names):
        return {str(label): name for label, name in enumerate(names.values())}
