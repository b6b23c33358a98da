"""Samplers by name, with Dassl's order of draws.

Every `batch_size` consecutive indices are one batch. As in Dassl, a sampler draws from Python's and NumPy's global
generators, and draws one epoch when it is constructed, to know its length. A later epoch may have another number of
batches. The samplers of this project's trainers are in `item_samplers`.
"""

import random

import numpy as np
from torch.utils.data import RandomSampler, Sampler, SequentialSampler

from dassl.utils import check_availability

from .item_samplers import FullRandomClassSampler, FullRandomDomainSampler, FullSeqDomainSampler, indices_by, per_group


class _EpochSampler(Sampler):
    """A sampler that draws all indices of an epoch at once."""

    def __iter__(self):
        return iter(self.draw_epoch())

    def __len__(self):
        return self.length

    def draw_epoch(self):
        """Return the indices of one epoch, in order."""
        raise NotImplementedError


class _DomainSampler(_EpochSampler):
    """A sampler of groups of images of one domain each, until a domain has too few images left for another group."""

    def draw_epoch(self):
        unused_indices = {domain: list(indices) for domain, indices in self.indices.items()}
        epoch = []
        while all(len(indices) >= self.n_img_per_domain for indices in unused_indices.values()):
            for domain in self.draw_domains():
                group = random.sample(unused_indices[domain], self.n_img_per_domain)
                epoch.extend(group)
                group_indices = set(group)
                unused_indices[domain] = [index for index in unused_indices[domain] if index not in group_indices]
        return epoch

    def draw_domains(self):
        """Return the domains of the next batch, in order."""
        raise NotImplementedError


class RandomDomainSampler(_DomainSampler):
    """Each batch: `n_domain` random domains (all of them if `n_domain` <= 0) with equally many images each.

    Raises ValueError if `batch_size` is not a multiple of `n_domain` or there are fewer domains.
    """

    def __init__(self, data_source, batch_size, n_domain):
        self.indices = indices_by(data_source, "domain")
        self.domains = list(self.indices)
        self.n_domain = len(self.domains) if n_domain is None or n_domain <= 0 else n_domain
        if self.n_domain > len(self.domains):
            raise ValueError(f"n_domain={n_domain}, but the data has only {len(self.domains)} domains")
        self.n_img_per_domain = per_group(batch_size, self.n_domain, "n_domain")
        self.length = len(self.draw_epoch())

    def draw_domains(self):
        return random.sample(self.domains, self.n_domain)


class SeqDomainSampler(_DomainSampler):
    """Each batch: all domains in sorted order, with equally many random images each.

    Raises ValueError if `batch_size` is not a multiple of the number of domains.
    """

    def __init__(self, data_source, batch_size):
        self.indices = indices_by(data_source, "domain")
        self.domains = sorted(self.indices)
        self.n_img_per_domain = per_group(batch_size, len(self.domains), "the number of domains")
        self.length = len(self.draw_epoch())

    def draw_domains(self):
        return self.domains


class RandomClassSampler(_EpochSampler):
    """Each batch: batch_size // n_ins random classes with `n_ins` images each.

    A class of fewer than `n_ins` images is drawn from with replacement. Raises ValueError if `batch_size` is not a
    multiple of `n_ins` or there are too few classes.
    """

    def __init__(self, data_source, batch_size, n_ins):
        self.indices = indices_by(data_source, "label")
        self.n_ins = n_ins
        self.ncls_per_batch = per_group(batch_size, n_ins, "n_ins")
        if self.ncls_per_batch > len(self.indices):
            requirement = f"batch_size={batch_size} with n_ins={n_ins} needs {self.ncls_per_batch} classes"
            raise ValueError(f"{requirement}, but the data has only {len(self.indices)}")
        self.length = len(self.draw_epoch())

    def draw_epoch(self):
        groups = {label: self._draw_groups(indices) for label, indices in self.indices.items()}
        labels, epoch = list(self.indices), []
        while len(labels) >= self.ncls_per_batch:
            for label in random.sample(labels, self.ncls_per_batch):
                epoch.extend(groups[label].pop(0))
                if not groups[label]:
                    labels.remove(label)
        return epoch

    def _draw_groups(self, indices):
        """Split the shuffled images of a class into groups of `n_ins`."""
        indices = list(indices)
        if len(indices) < self.n_ins:
            indices = np.random.choice(indices, size=self.n_ins, replace=True).tolist()
        random.shuffle(indices)
        return [indices[i : i + self.n_ins] for i in range(0, len(indices) - self.n_ins + 1, self.n_ins)]


def build_sampler(sampler_type, cfg=None, data_source=None, batch_size=32, n_domain=0, n_ins=16, draws_by_item=False):
    """Build the sampler of that name over a list of `Datum`.

    With `draws_by_item` the samplers of domains and classes are those of `item_samplers`. Raises ValueError for an
    unknown name.
    """
    domains, sequence, classes = RandomDomainSampler, SeqDomainSampler, RandomClassSampler
    if draws_by_item:
        domains, sequence, classes = FullRandomDomainSampler, FullSeqDomainSampler, FullRandomClassSampler
    samplers = {
        "RandomSampler": lambda: RandomSampler(data_source),
        "SequentialSampler": lambda: SequentialSampler(data_source),
        "RandomDomainSampler": lambda: domains(data_source, batch_size, n_domain),
        "SeqDomainSampler": lambda: sequence(data_source, batch_size),
        "RandomClassSampler": lambda: classes(data_source, batch_size, n_ins),
    }
    check_availability(sampler_type, list(samplers))
    return samplers[sampler_type]()
