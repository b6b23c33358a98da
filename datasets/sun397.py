"""SUN397 (Xiao et al. 2010): 397 scenes."""

import os.path as osp

from dassl.data.datasets import DATASET_REGISTRY, Datum

from .base import SplitDataset
from .shared.annotations import look_up, read_lines, split_trainval


@DATASET_REGISTRY.register()
class SUN397(SplitDataset):
    """Layout below `DATASET.ROOT`: sun397/SUN397/a/abbey/... and sun397/split_zhou_SUN397.json.

    Without the split file, ClassName.txt has the classes; 20 % of Training_01.txt are val, and Testing_01.txt is test.
    """

    dataset_dir = "sun397"
    image_dir = "SUN397"
    split_file = "split_zhou_SUN397.json"

    def raw_splits(self):
        classes = osp.join(self.dataset_dir, "ClassName.txt")
        label_of = {scene: k for k, (_, scene) in enumerate(read_lines(classes, "/letter/scene"))}

        def read(name):
            items = []
            for place, path in read_lines(osp.join(self.dataset_dir, name), "/letter/scene/image.jpg"):
                scene = osp.dirname(path)
                label = look_up(scene, label_of, place, classes)
                items.append(Datum(self.image_dir + path, label, classname=inside_out(scene)))
            return items

        trainval = read("Training_01.txt")
        return *split_trainval(trainval), read("Testing_01.txt")


def inside_out(scene: str) -> str:
    return " ".join(reversed(scene.split("/")[2:]))  # /c/church/indoor -> indoor church
