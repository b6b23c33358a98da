"""UCF101 (Soomro et al. 2012): 101 actions, the middle frame of each video."""

import os.path as osp
import re

from dassl.data.datasets import DATASET_REGISTRY, Datum

from .base import SplitDataset
from .shared.annotations import look_up, read_lines, split_trainval, to_label


@DATASET_REGISTRY.register()
class UCF101(SplitDataset):
    """Layout below `DATASET.ROOT`: ucf101/UCF-101-midframes/Apply_Eye_Makeup/... and ucf101/split_zhou_UCF101.json.

    Without the split file, ucf101/ucfTrainTestlist/classInd.txt has the classes; 20 % of trainlist01.txt are val, and
    testlist01.txt is test.
    """

    dataset_dir = "ucf101"
    image_dir = "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"

    def raw_splits(self):
        lists = osp.join(self.dataset_dir, "ucfTrainTestlist")
        classes = osp.join(lists, "classInd.txt")
        label_of = {action: to_label(number, place) for place, number, action in read_lines(classes, "number action")}

        def read(name, form):
            items = []
            for place, path, *_ in read_lines(osp.join(lists, name), form):
                action, _, video = path.partition("/")
                label = look_up(action, label_of, place, classes)
                items.append(Datum(self.frame(action, video), label, classname=split_words(action)))
            return items

        trainval = read("trainlist01.txt", "action/video.avi number")
        return *split_trainval(trainval), read("testlist01.txt", "action/video.avi")

    def frame(self, action: str, video: str) -> str:
        return osp.join(self.image_dir, split_words(action), video.replace(".avi", ".jpg"))


def split_words(action: str) -> str:
    return "_".join(re.findall("[A-Z][^A-Z]*", action))  # ApplyEyeMakeup -> Apply_Eye_Makeup
