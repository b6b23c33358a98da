"""Digits: scikit-learn's 1,797 real handwritten digits (Alpaydin & Kaynak 1998), 8 x 8 enlarged to 32 x 32."""

import numpy as np
from PIL import Image

from dassl.data.datasets import DATASET_REGISTRY

from .base import DrawnDataset
from .shared import drawing


@DATASET_REGISTRY.register()
class Digits(DrawnDataset):
    """Splits of every class, in the file's order: 50 % train, 20 % val, the rest test."""

    dataset_dir = "digits"

    def pictures(self):
        from sklearn.datasets import load_digits  # here, because it takes a second and only drawing needs it

        digits = load_digits()
        for label, classname in enumerate(drawing.DIGITS):
            class_images = digits.images[digits.target == label]
            for k, pixels in enumerate(class_images):
                if k < 0.5 * len(class_images):
                    split = "train"
                elif k < 0.7 * len(class_images):
                    split = "val"
                else:
                    split = "test"
                image = Image.fromarray(np.uint8(pixels * 255 / 16)).convert("RGB")
                yield split, label, classname, image.resize((32, 32), Image.BICUBIC)
