"""ImageNet (Deng et al. 2009; ILSVRC 2012): 1,000 classes, and what its variants share."""

import os.path as osp

from dassl.data.datasets import DATASET_REGISTRY

from .base import SplitDataset
from .shared.annotations import read_class_folders, read_classnames

CLASSNAMES = "classnames.txt"


@DATASET_REGISTRY.register()
class ImageNet(SplitDataset):
    """Layout below `DATASET.ROOT`: imagenet/images/{train,val}/<wnid>/ and imagenet/classnames.txt ("n01440764 tench").

    Labels are the order of the wnids. The official val is test, and there is no val: CoOp passes the test images as val
    too, but nothing may be selected on them here.
    """

    dataset_dir = "imagenet"
    image_dir = "images"
    listed = True
    n_classes = 1_000

    def raw_splits(self):
        names = read_classnames(osp.join(self.dataset_dir, CLASSNAMES), self.n_classes)
        train, test = (
            read_class_folders(osp.join(self.image_dir, part), names, self.n_classes) for part in ("train", "val")
        )
        return train, [], test


class ImageNetVariant(SplitDataset):
    """Other images for ImageNet's classes, or some of them, to test on: one folder a class, named by the wnid.

    classnames.txt lies in its own folder, as in CoOp, or else in imagenet/.
    """

    listed = True
    test_only = True
    n_classes = 1_000  # that it has images of

    def raw_splits(self):
        own = osp.join(self.dataset_dir, CLASSNAMES)
        path = own if osp.exists(own) else osp.join(self.root, ImageNet.dataset_dir, CLASSNAMES)
        names = self.folders(read_classnames(path, ImageNet.n_classes))
        return [], [], read_class_folders(self.image_dir, names, self.n_classes)

    def folders(self, names: dict[str, str]) -> dict[str, str]:
        """{folder: class name} in order of the labels, of {wnid: class name}."""
        return names
