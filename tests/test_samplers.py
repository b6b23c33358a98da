"""Samplers: the composition of every batch."""

import random

import numpy as np
import pytest
import torch

from dassl.data.datasets import Datum
from dassl.data.item_samplers import FullRandomClassSampler, FullRandomDomainSampler, FullSeqDomainSampler
from dassl.data.samplers import RandomClassSampler, RandomDomainSampler, SeqDomainSampler, build_sampler


def items_of(labels, domains=None):
    return [Datum(label=label, domain=d) for label, d in zip(labels, domains or [0] * len(labels), strict=True)]


def batches_of(sampler, size):
    indices = list(sampler)
    assert len(indices) == len(sampler) and len(indices) % size == 0
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def test_full_random_domain_sampler():
    # Groups of 3: 10, 4, 4 and 2. Two of different domains a batch: all 20 groups fit into 10 batches.
    items = items_of([0] * 62, [0] * 30 + [1] * 13 + [2] * 13 + [3] * 6)
    sampler = FullRandomDomainSampler(items, batch_size=6, n_domain=2)
    batches = batches_of(sampler, 6)
    assert len(batches) == 10
    for batch in batches:
        domains = [items[i].domain for i in batch]
        assert len(set(domains)) == 2 and all(domains.count(d) == 3 for d in set(domains))
    assert len(set(sum(batches, []))) == 60  # no image twice in an epoch
    assert batches_of(sampler, 6) != batches  # another epoch, another order
    torch.manual_seed(3)
    first = list(sampler)
    torch.manual_seed(3)
    assert list(sampler) == first
    assert len(FullRandomDomainSampler(items, batch_size=8, n_domain=0)) == 3 * 8  # all 4 domains, 6 // 2 batches
    with pytest.raises(ValueError, match="multiple"):
        FullRandomDomainSampler(items, batch_size=7, n_domain=2)
    with pytest.raises(ValueError, match="4 domains"):
        FullRandomDomainSampler(items, batch_size=10, n_domain=5)


def test_full_seq_domain_sampler():
    items = items_of([0] * 20, [2] * 9 + [0] * 5 + [1] * 6)
    batches = batches_of(FullSeqDomainSampler(items, batch_size=6), 6)
    assert len(batches) == 2  # domain 0 has 5 // 2 pairs
    assert [[items[i].domain for i in batch] for batch in batches] == [[0, 0, 1, 1, 2, 2]] * 2
    assert len(set(sum(batches, []))) == 12
    with pytest.raises(ValueError, match="number of domains"):
        FullSeqDomainSampler(items, batch_size=7)


def test_full_random_class_sampler():
    items = items_of([5] * 8 + [1] * 9 + [3] * 4 + [9] * 2)  # groups of 4: 2, 2, 1 and 1 (with repeats)
    sampler = FullRandomClassSampler(items, batch_size=8, n_ins=4)
    batches = batches_of(sampler, 8)
    assert len(batches) == 3
    for batch in batches:
        labels = [items[i].label for i in batch]
        assert len(set(labels)) == 2 and all(labels.count(label) == 4 for label in set(labels))
    full = [i for i in sum(batches, []) if items[i].label != 9]
    assert len(set(full)) == len(full) == 20
    with pytest.raises(ValueError, match="needs 5 classes"):
        FullRandomClassSampler(items, batch_size=20, n_ins=4)


def draw_group(indices, size):
    """Move `size` random entries of a list out of it, as Dassl does."""
    group = random.sample(indices, size)
    indices[:] = [index for index in indices if index not in group]
    return group


@pytest.mark.parametrize("seed", range(3))
def test_domain_samplers_draw_as_dassls(seed):
    """From Python's generator: the domains of a batch, then the images of each; until one has too few left."""
    domains = [0] * 14 + [2] * 9 + [1] * 8
    random.Random(seed).shuffle(domains)
    items = items_of([0] * len(domains), domains)
    for sampler_class, n_domain in ((RandomDomainSampler, 2), (RandomDomainSampler, 3), (SeqDomainSampler, 3)):
        arguments = (items, 6) if sampler_class is SeqDomainSampler else (items, 6, n_domain)
        random.seed(seed)
        sampler = sampler_class(*arguments)
        epochs = [list(sampler) for _ in range(2)]
        state = random.getstate()

        random.seed(seed)
        expected = []
        for _ in range(3):  # the first one is drawn to know the length
            left = {d: [i for i, domain in enumerate(domains) if domain == d] for d in dict.fromkeys(domains)}
            expected.append([])
            short = False
            while not short:
                batch = sorted(left) if sampler_class is SeqDomainSampler else random.sample(list(left), n_domain)
                for domain in batch:
                    expected[-1] += draw_group(left[domain], 6 // n_domain)
                    short = short or len(left[domain]) < 6 // n_domain
        assert epochs == expected[1:] and len(sampler) == len(expected[0]) and random.getstate() == state


@pytest.mark.parametrize("seed", range(3))
def test_the_class_sampler_draws_as_dassls(seed):
    items = items_of([5] * 8 + [1] * 9 + [3] * 4 + [9] * 2)
    random.seed(seed)
    np.random.seed(seed)
    sampler = RandomClassSampler(items, batch_size=8, n_ins=4)
    epoch = list(sampler)

    random.seed(seed)
    np.random.seed(seed)
    expected = []
    for _ in range(2):  # the first one is drawn to know the length
        groups = {}
        for label in (5, 1, 3, 9):
            indices = [i for i, item in enumerate(items) if item.label == label]
            if len(indices) < 4:
                indices = list(np.random.choice(indices, size=4, replace=True))
            random.shuffle(indices)
            groups[label] = [indices[i : i + 4] for i in range(0, len(indices) // 4 * 4, 4)]
        labels = [5, 1, 3, 9]
        expected.append([])
        while len(labels) >= 2:
            for label in random.sample(labels, 2):
                expected[-1] += groups[label].pop(0)
                labels = [each for each in labels if groups[each]]
    assert epoch == expected[1] and len(sampler) == len(expected[0])


def test_wrong_sizes_are_errors_in_dassls_samplers_too():
    items = items_of([0, 0, 1, 1], [0, 0, 1, 1])
    for build in (
        lambda: RandomDomainSampler(items, 4, 3),
        lambda: RandomDomainSampler(items, 5, 2),
        lambda: SeqDomainSampler(items, 3),
        lambda: RandomClassSampler(items, 6, 2),
        lambda: RandomClassSampler(items, 5, 2),
    ):
        with pytest.raises(ValueError, match="multiple|only 2"):
            build()


def test_build_sampler():
    items = items_of([0, 1] * 4, [0] * 4 + [1] * 4)
    for name in ["RandomSampler", "SequentialSampler", "RandomDomainSampler", "SeqDomainSampler"]:
        sampler = build_sampler(name, data_source=items, batch_size=4)
        assert type(sampler).__name__ == name and sorted(sampler) == list(range(8))
        sampler = build_sampler(name, data_source=items, batch_size=4, draws_by_item=True)
        assert type(sampler).__name__.removeprefix("Full") == name and sorted(sampler) == list(range(8))
        assert type(sampler).__name__.startswith("Full") == ("Domain" in name)
    assert len(list(build_sampler("RandomClassSampler", data_source=items, batch_size=4, n_ins=2))) == 8
    with pytest.raises(ValueError, match="RandomSampler"):
        build_sampler("RandomSampeler", data_source=items)
