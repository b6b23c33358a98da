"""DescribableTextures (Cimpoi et al. 2014): 47 textures."""

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset
from .shared.annotations import split_folders


@DATASET_REGISTRY.register()
class DescribableTextures(SplitDataset):
    """Layout below `DATASET.ROOT`: dtd/images/<class>/ and dtd/split_zhou_DescribableTextures.json.

    Without the split file, the class folders are split 50/20/30; the official splits of dtd/labels are not CoOp's.
    """

    dataset_dir = "dtd"
    image_dir = "images"
    split_file = "split_zhou_DescribableTextures.json"

    read_and_split_data = staticmethod(split_folders)  # CoOp's name, which data-set files written for it call

    def raw_splits(self):
        return split_folders(self.image_dir)
