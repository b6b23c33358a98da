"""Food101 (Bossard et al. 2014): 101 dishes."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset
from .shared.annotations import split_folders


@DATASET_REGISTRY.register()
class Food101(SplitDataset):
    """Layout below `DATASET.ROOT`: food-101/images/<class>/ and food-101/split_zhou_Food101.json.

    Without the split file, the class folders are split 50/20/30; the official split of food-101/meta is not CoOp's.
    """

    dataset_dir = "food-101"
    image_dir = "images"
    split_file = "split_zhou_Food101.json"

    def raw_splits(self):
        return split_folders(self.image_dir)
