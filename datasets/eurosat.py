"""EuroSAT (Helber et al. 2019): 10 kinds of land use seen by the satellite Sentinel-2."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset
from .shared.annotations import split_folders

NEW_CNAMES = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}


@DATASET_REGISTRY.register()
class EuroSAT(SplitDataset):
    """Layout below `DATASET.ROOT`: eurosat/2750/<class>/ and eurosat/split_zhou_EuroSAT.json.

    Without the split file, the class folders are split 50/20/30.
    """

    dataset_dir = "eurosat"
    image_dir = "2750"
    split_file = "split_zhou_EuroSAT.json"

    def raw_splits(self):
        return split_folders(self.image_dir, new_cnames=NEW_CNAMES)
