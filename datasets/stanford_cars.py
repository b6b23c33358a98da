"""StanfordCars (Krause et al. 2013): 196 models of cars."""

import os.path as osp

from dassl.data.datasets import DATASET_REGISTRY, Datum

from .base import SplitDataset
from .shared.annotations import look_up, read_mat, split_trainval


@DATASET_REGISTRY.register()
class StanfordCars(SplitDataset):
    """Layout below `DATASET.ROOT`: stanford_cars/cars_train/, cars_test/ and split_zhou_StanfordCars.json.

    Without the split file, 20 % of devkit/cars_train_annos.mat are val; cars_test_annos_withlabels.mat is test, and
    devkit/cars_meta.mat has the class names.
    """

    dataset_dir = "stanford_cars"
    split_file = "split_zhou_StanfordCars.json"

    def raw_splits(self):
        meta = osp.join(self.dataset_dir, "devkit", "cars_meta.mat")
        names = dict(enumerate(map(year_first, read_mat(meta, "class_names")), start=1))

        def read(folder, annotations):
            path = osp.join(self.dataset_dir, annotations)
            items = []
            for car in read_mat(path, "annotations", ("fname", "class")):
                name = look_up(car["class"], names, f"{path}, {car['fname']}", meta)
                image = osp.join(self.image_dir, folder, car["fname"])
                items.append(Datum(image, int(car["class"]) - 1, classname=name))
            return items

        trainval = read("cars_train", osp.join("devkit", "cars_train_annos.mat"))
        return *split_trainval(trainval), read("cars_test", "cars_test_annos_withlabels.mat")


def year_first(name: str) -> str:
    model, _, year = name.rpartition(" ")
    return f"{year} {model}"  # Audi TTS Coupe 2012 -> 2012 Audi TTS Coupe
