"""OxfordFlowers (Nilsback & Zisserman 2008): 102 flowers."""

import os.path as osp

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset
from .shared.annotations import look_up, read_dict, read_mat, split_groups


@DATASET_REGISTRY.register()
class OxfordFlowers(SplitDataset):
    """Layout below `DATASET.ROOT`: oxford_flowers/jpg/image_00001.jpg... and split_zhou_OxfordFlowers.json beside jpg/.

    Without the split file, each class is split 50/20/30. imagelabels.mat has the class of each image, cat_to_name.json
    the names.
    """

    dataset_dir = "oxford_flowers"
    image_dir = "jpg"
    split_file = "split_zhou_OxfordFlowers.json"

    def raw_splits(self):
        labels = osp.join(self.dataset_dir, "imagelabels.mat")
        names = osp.join(self.dataset_dir, "cat_to_name.json")
        name_of, groups = read_dict(names), {}
        for k, number in enumerate(map(int, read_mat(labels, "labels")), start=1):
            image = f"image_{k:05d}.jpg"
            group = number - 1, look_up(str(number), name_of, f"{labels}, {image}", names)
            groups.setdefault(group, []).append(image)
        return split_groups(groups, self.image_dir)
