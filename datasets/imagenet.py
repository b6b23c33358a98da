"""ImageNet (Deng et al. 2009; ILSVRC 2012): 1,000 classes; and the base class of its variants."""

import os.path as osp

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset
from .shared.annotations import read_class_folders, read_classnames

CLASSNAMES = "classnames.txt"


@DATASET_REGISTRY.register()
class ImageNet(SplitDataset):
    """Layout below `DATASET.ROOT`: imagenet/images/{train,val}/<wnid>/ and imagenet/classnames.txt ("n01440764 tench").

    Labels are the order of the wnids. The official val is the test split, and there is no val split. CoOp also uses the
    test images as val; here nothing may be selected on them.
    """

    dataset_dir = "imagenet"
    image_dir = "images"
    listed = True
    n_classes = 1_000

    def raw_splits(self):
        names = read_classnames(osp.join(self.dataset_dir, CLASSNAMES), self.n_classes)
        train = read_class_folders(osp.join(self.image_dir, "train"), names, self.n_classes)
        test = read_class_folders(osp.join(self.image_dir, "val"), names, self.n_classes)
        return train, [], test

    def sample(self, train, val, shots, rng):
        """Select as other data sets do. With DATASET.SAMPLING val_first, val comes from the training images, too.

        CLIP-LoRA's code draws both at once from each class. The first ones are for training.
        """
        if self.sampling != "val_first":
            return super().sample(train, val, shots, rng)
        few_items, val, n = [], [], shots + min(shots, 4)
        for items in self.split_dataset_by_label(train).values():
            if len(items) < n:
                size = f'{len(items)} training images of "{items[0].classname}"'
                raise ValueError(f"{self.image_dir} has {size}, but val_first draws {n}: complete the copy")
            drawn_items = rng.sample(items, n)
            few_items += drawn_items[:shots]
            val += drawn_items[shots:]
        return few_items, val


class ImageNetVariant(SplitDataset):
    """Test images of ImageNet's classes, or of a part of them: a folder for each class, named by the wnid.

    classnames.txt is read from the variant's own folder, as in CoOp, or from imagenet/ if it is not there.
    """

    listed = True
    test_only = True
    n_classes = 1_000  # classes with images

    def raw_splits(self):
        path = osp.join(self.dataset_dir, CLASSNAMES)
        if not osp.exists(path):
            path = osp.join(self.root, ImageNet.dataset_dir, CLASSNAMES)
        names = self.folders(read_classnames(path, ImageNet.n_classes))
        return [], [], read_class_folders(self.image_dir, names, self.n_classes)

    def folders(self, names: dict[str, str]) -> dict[str, str]:
        """Return {folder: class name} in the order of the labels.

        Args:
            names: {wnid: class name}.
        """
        return names
