"""OxfordPets (Parkhi et al. 2012): 37 breeds of cats and dogs."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset


@DATASET_REGISTRY.register()
class OxfordPets(SplitDataset):
    """Layout below `DATASET.ROOT`: oxford_pets/images/... and oxford_pets/split_zhou_OxfordPets.json."""

    dataset_dir = "oxford_pets"
    image_dir = "images"
    split_file = "split_zhou_OxfordPets.json"
