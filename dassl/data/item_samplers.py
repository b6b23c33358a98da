"""Samplers of this project's trainers, which draw by item.

Every `batch_size` consecutive indices are one batch. An epoch has as many batches as the data can fill. The samplers
draw from torch's global generator when iterated, never when constructed. Their length is exact: training loops compare
it with the number of the batch to find the last one of an epoch. `samplers` has the ones that draw as Dassl does.
"""

import random
from collections import defaultdict

import numpy as np
import torch
from torch.utils.data import Sampler


def _shuffled(items):
    return [items[i] for i in torch.randperm(len(items)).tolist()]


def indices_by(data_source, attribute):
    """Return {value of the attribute: [index into data_source]}, in order of first appearance."""
    indices = defaultdict(list)
    for index, item in enumerate(data_source):
        indices[getattr(item, attribute)].append(index)
    return dict(indices)


def _random_groups(indices, size):
    """Split shuffled indices into len(indices) // size groups of `size`."""
    indices = _shuffled(indices)
    return [indices[i : i + size] for i in range(0, len(indices) - size + 1, size)]


def _num_batches(counts, n):
    """Return the largest number of batches of n groups of different keys, where key k has counts[k] groups."""
    return next(b for b in range(sum(counts) // n, -1, -1) if sum(min(c, b) for c in counts) >= n * b)


def _deal(groups, n):
    """Return `_num_batches` random batches of n groups of different keys.

    Keys with the most remaining groups go first, because otherwise there could be fewer batches. Ties and the order of
    the batches are random.

    Args:
        groups: {key: [group]}, which this function empties.
        n: number of groups in a batch.
    """
    batches = []
    for _ in range(_num_batches([len(g) for g in groups.values()], n)):
        keys = sorted(_shuffled(list(groups)), key=lambda key: len(groups[key]), reverse=True)[:n]
        batches.append([groups[key].pop() for key in _shuffled(keys)])
    return _shuffled(batches)


def per_group(batch_size, n, what):
    if batch_size % n:
        raise ValueError(f"batch_size={batch_size} is not a multiple of {what}={n}")
    return batch_size // n


class FullRandomDomainSampler(Sampler):
    """A sampler of batches with `n_domain` random domains and the same number of images of each.

    With `n_domain` <= 0 each batch has all domains.

    Raises:
        ValueError: `batch_size` is not a multiple of `n_domain`, or there are fewer domains.
    """

    def __init__(self, data_source, batch_size, n_domain):
        self.indices = indices_by(data_source, "domain")
        self.n_domain = n_domain if n_domain > 0 else len(self.indices)
        if self.n_domain > len(self.indices):
            raise ValueError(f"n_domain={n_domain}, but the data has only {len(self.indices)} domains")
        self.n_img_per_domain = per_group(batch_size, self.n_domain, "n_domain")
        counts = [len(indices) // self.n_img_per_domain for indices in self.indices.values()]
        self.length = _num_batches(counts, self.n_domain) * batch_size

    def __iter__(self):
        groups = {d: _random_groups(indices, self.n_img_per_domain) for d, indices in self.indices.items()}
        return iter([i for batch in _deal(groups, self.n_domain) for group in batch for i in group])

    def __len__(self):
        return self.length


class FullSeqDomainSampler(Sampler):
    """A sampler of batches with all domains in sorted order and the same number of random images of each.

    Raises:
        ValueError: `batch_size` is not a multiple of the number of domains.
    """

    def __init__(self, data_source, batch_size):
        self.indices = dict(sorted(indices_by(data_source, "domain").items()))
        self.n_img_per_domain = per_group(batch_size, len(self.indices), "the number of domains")
        min_items = min(len(indices) for indices in self.indices.values())
        self.length = min_items // self.n_img_per_domain * batch_size

    def __iter__(self):
        groups = [_random_groups(indices, self.n_img_per_domain) for indices in self.indices.values()]
        return iter([i for batch in zip(*groups, strict=False) for group in batch for i in group])

    def __len__(self):
        return self.length


class FullRandomClassSampler(Sampler):
    """A sampler of batches with batch_size / n_ins random classes and `n_ins` images of each.

    Images of a class with fewer than `n_ins` are drawn with replacement.

    Raises:
        ValueError: `batch_size` is not a multiple of `n_ins`, or there are too few classes.
    """

    def __init__(self, data_source, batch_size, n_ins):
        self.indices = indices_by(data_source, "label")
        self.n_ins = n_ins
        self.ncls_per_batch = per_group(batch_size, n_ins, "n_ins")
        if self.ncls_per_batch > len(self.indices):
            requirement = f"batch_size={batch_size} with n_ins={n_ins} needs {self.ncls_per_batch} classes"
            raise ValueError(f"{requirement}, but the data has only {len(self.indices)}")
        counts = [max(1, len(indices) // n_ins) for indices in self.indices.values()]
        self.length = _num_batches(counts, self.ncls_per_batch) * batch_size

    def __iter__(self):
        groups = {label: self._groups(indices) for label, indices in self.indices.items()}
        return iter([i for batch in _deal(groups, self.ncls_per_batch) for group in batch for i in group])

    def __len__(self):
        return self.length

    def _groups(self, indices):
        if len(indices) < self.n_ins:
            indices = [indices[i] for i in torch.randint(len(indices), (self.n_ins,)).tolist()]
        return _random_groups(indices, self.n_ins)


class SeededIndex(int):
    """An index into the data, with the seed of the item's random transforms: (seed of the epoch, number in the epoch).

    The seed has the number in the epoch and not the index. So an item that a sampler draws twice in an epoch gets two
    augmentations.
    """

    seed = (0, 0)

    def seeded(self):
        """Seed torch (of the CPU), random and numpy, and return the plain index."""
        words = np.random.SeedSequence(self.seed).generate_state(3).tolist()
        torch.default_generator.manual_seed(words[0])  # torch.manual_seed costs more, and seeds GPUs
        random.seed(words[1])
        np.random.seed(words[2])
        return int(self)


class Seeded(Sampler):
    """A sampler of the indices of another one as `SeededIndex`es.

    Torch's global generator draws the seed of the epoch.
    """

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        epoch = int(torch.randint(2**62, ()))
        for k, index in enumerate(self.sampler):
            seeded_index = SeededIndex(index)
            seeded_index.seed = epoch, k
            yield seeded_index

    def __len__(self):
        return len(self.sampler)
