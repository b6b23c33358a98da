"""FGVCAircraft (Maji et al. 2013): 100 variants of aircraft."""

import os.path as osp

from dassl.data.datasets import DATASET_REGISTRY, Datum

from .base import PARTS, SplitDataset
from .shared.annotations import look_up, read_lines


@DATASET_REGISTRY.register()
class FGVCAircraft(SplitDataset):
    """Layout below `DATASET.ROOT`: fgvc_aircraft/images/, variants.txt and images_variant_{train,val,test}.txt.

    The lists are the split, as in CoOp; there is no split file.
    """

    dataset_dir = "fgvc_aircraft"
    image_dir = "images"

    def raw_splits(self):
        variants = osp.join(self.dataset_dir, "variants.txt")
        label_of = {name: k for k, (_, name) in enumerate(read_lines(variants, "variant"))}

        def read(name):
            items = []
            for place, image, variant in read_lines(osp.join(self.dataset_dir, name), "image variant"):
                label = look_up(variant, label_of, place, variants)
                items.append(Datum(self.image_dir + f"/{image}.jpg", label, classname=variant))
            return items

        return tuple(read(f"images_variant_{part}.txt") for part in PARTS)
