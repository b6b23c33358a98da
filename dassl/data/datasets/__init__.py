from dassl.absent import absent_names

from .base_dataset import DatasetBase, Datum
from .build import DATASET_REGISTRY, build_dataset

__getattr__ = absent_names("dassl.data.datasets")
