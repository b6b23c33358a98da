"""Caltech101 (Fei-Fei et al. 2004): 100 classes of objects and faces."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset
from .shared.annotations import split_folders

IGNORED = ("BACKGROUND_Google", "Faces_easy")
NEW_CNAMES = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}


@DATASET_REGISTRY.register()
class Caltech101(SplitDataset):
    """Layout below `DATASET.ROOT`: caltech-101/101_ObjectCategories/<class>/ and the split file in caltech-101/.

    Without the split file, the class folders are split 50/20/30.
    """

    dataset_dir = "caltech-101"
    image_dir = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"

    def raw_splits(self):
        return split_folders(self.image_dir, IGNORED, NEW_CNAMES)
