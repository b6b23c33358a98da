"""Caltech101 (Fei-Fei et al. 2004): 100 classes of objects and faces."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset


@DATASET_REGISTRY.register()
class Caltech101(SplitDataset):
    """Layout below `DATASET.ROOT`: caltech-101/101_ObjectCategories/... and caltech-101/split_zhou_Caltech101.json."""

    dataset_dir = "caltech-101"
    image_dir = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"
