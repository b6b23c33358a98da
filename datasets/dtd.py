"""DescribableTextures (Cimpoi et al. 2014): 47 textures."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset


@DATASET_REGISTRY.register()
class DescribableTextures(SplitDataset):
    """Layout below `DATASET.ROOT`: dtd/images/... and dtd/split_zhou_DescribableTextures.json."""

    dataset_dir = "dtd"
    image_dir = "images"
    split_file = "split_zhou_DescribableTextures.json"
