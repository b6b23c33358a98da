import os
import random
from collections import defaultdict
from dataclasses import dataclass

from dassl.infrastructure.console import say
from dassl.infrastructure.download import extract_archive
from dassl.utils import check_availability, download_url


@dataclass(frozen=True)
class Datum:
    """One labelled image. That the file exists is checked only when it is read."""

    impath: str = ""
    label: int = 0
    domain: int = 0
    classname: str = ""

    def __setstate__(self, state):
        # Few-shot caches pickled under Dassl.pytorch hold the same four fields as _impath, _label, ...
        self.__dict__.update({name.removeprefix("_"): value for name, value in state.items()})


class DatasetBase:
    """Lists of `Datum`: labelled training (`train_x`), unlabelled training (`train_u`), `val` and `test`.

    The classes are those of `train_x`. Subclasses set `dataset_dir`, the folder of the data set below
    ``cfg.DATASET.ROOT``, and `domains`, the names of all its domains.
    """

    dataset_dir = ""
    domains = []

    def __init__(self, train_x=None, train_u=None, val=None, test=None):
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

    train_x = property(lambda self: self._train_x)
    train_u = property(lambda self: self._train_u)
    val = property(lambda self: self._val)
    test = property(lambda self: self._test)
    lab2cname = property(lambda self: self._lab2cname)
    classnames = property(lambda self: self._classnames)
    num_classes = property(lambda self: self._num_classes)

    @staticmethod
    def get_num_classes(data_source):
        """Return the largest label plus one: the number of outputs that a classifier needs."""
        if not data_source:
            raise ValueError("The data set has no labelled training items (train_x is empty)")
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source):
        """Return ({label: class name}, [class names in order of their labels])."""
        lab2cname = {item.label: item.classname for item in data_source}
        lab2cname = dict(sorted(lab2cname.items()))
        return lab2cname, list(lab2cname.values())

    def check_input_domains(self, source_domains, target_domains):
        """Raise ValueError, with the nearest valid name, for a domain that the data set does not have."""
        self.is_input_domain_valid([*source_domains, *target_domains])

    def is_input_domain_valid(self, input_domains):
        """Raise ValueError, with the nearest valid name, for a domain that the data set does not have."""
        for domain in input_domains:
            check_availability(domain, self.domains)

    @staticmethod
    def download_data(url, dst, from_gdrive=True):
        """Download a tar or zip archive to the file `dst` and unpack it into the folder of `dst`."""
        folder = os.path.dirname(dst)
        os.makedirs(folder, exist_ok=True)
        if from_gdrive:
            import gdown  # here, because nothing else needs it

            gdown.download(url, dst)
        else:
            download_url(url, dst)
        extract_archive(dst, folder)

    def generate_fewshot_dataset(self, *data_sources, num_shots=-1, repeat=False, rng=None):
        """Draw `num_shots` items of every class, without replacement, classes in order of first appearance.

        A class with fewer items is drawn with replacement if `repeat`, else kept whole. `num_shots` < 1 keeps
        everything. With the global generator (`rng` None, else a `random.Random`) and the same `random.seed` these
        are the images that CoOp draws. Returns a list of `Datum` for every data source, for a single one just it.
        """
        rng = rng or random

        def draw(items):
            if len(items) >= num_shots:
                return rng.sample(items, num_shots)
            return rng.choices(items, k=num_shots) if repeat else items

        output = list(data_sources)
        if num_shots >= 1:
            say(f"Creating a {num_shots}-shot dataset")
            items_by_label = [self.split_dataset_by_label(source).values() for source in data_sources]
            output = [[item for items in classes for item in draw(items)] for classes in items_by_label]
        return output[0] if len(output) == 1 else output

    @staticmethod
    def split_dataset_by_label(data_source):
        """Return {label: [Datum]}, labels in order of first appearance, items in their order."""
        return _group_by(data_source, "label")

    @staticmethod
    def split_dataset_by_domain(data_source):
        """Return {domain: [Datum]}, domains in order of first appearance, items in their order."""
        return _group_by(data_source, "domain")


def _group_by(data_source, attribute):
    groups = defaultdict(list)
    for item in data_source:
        groups[getattr(item, attribute)].append(item)
    return groups
