"""OxfordPets (Parkhi et al. 2012): 37 breeds of cats and dogs."""

import os.path as osp

from dassl.data.datasets import DATASET_REGISTRY, Datum

from .base import SplitDataset, read_split, save_split, subsample_classes
from .shared.annotations import read_lines, split_trainval, to_label


@DATASET_REGISTRY.register()
class OxfordPets(SplitDataset):
    """Layout below `DATASET.ROOT`: oxford_pets/images/Abyssinian_1.jpg... and oxford_pets/split_zhou_OxfordPets.json.

    Without the split file, 20 % of oxford_pets/annotations/trainval.txt are val; test.txt is test.
    """

    dataset_dir = "oxford_pets"
    image_dir = "images"
    split_file = "split_zhou_OxfordPets.json"

    # CoOp's names, which data-set files written for it call
    read_split = staticmethod(read_split)
    save_split = staticmethod(save_split)
    subsample_classes = staticmethod(subsample_classes)

    def raw_splits(self):
        trainval, test = self.read_list("trainval.txt"), self.read_list("test.txt")
        return *split_trainval(trainval), test

    def read_list(self, name: str) -> list[Datum]:
        path = osp.join(self.dataset_dir, "annotations", name)
        items = []
        for place, image, number, *_ in read_lines(path, "image class species breed"):
            label = to_label(number, place)
            items.append(Datum(osp.join(self.image_dir, f"{image}.jpg"), label, classname=breed(image)))
        return items


def breed(image: str) -> str:
    return image.rpartition("_")[0].lower()  # American_Bulldog_10 -> american_bulldog
