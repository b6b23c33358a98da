"""Digits: scikit-learn's 1,797 real handwritten digits (Alpaydin & Kaynak 1998), 8 x 8 enlarged to 32 x 32."""

import numpy as np
from PIL import Image

from dassl.data.datasets import DATASET_REGISTRY

from .base import DrawnDataset
from .shared import drawing


@DATASET_REGISTRY.register()
class Digits(DrawnDataset):
    """Half of every class is for training, a fifth for validation, the rest for test, in the file's order."""

    dataset_dir = "digits"

    def pictures(self):
        from sklearn.datasets import load_digits  # here: it takes a second to import, and only drawing needs it

        digits = load_digits()
        for label, classname in enumerate(drawing.DIGITS):
            of_class = digits.images[digits.target == label]
            for k, pixels in enumerate(of_class):
                split = "train" if k < 0.5 * len(of_class) else "val" if k < 0.7 * len(of_class) else "test"
                image = Image.fromarray(np.uint8(pixels * 255 / 16)).convert("RGB")
                yield split, label, classname, image.resize((32, 32), Image.BICUBIC)
