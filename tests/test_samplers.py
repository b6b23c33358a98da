"""Samplers: the composition of every batch."""

import pytest
import torch

from dassl.data.datasets import Datum
from dassl.data.samplers import RandomClassSampler, RandomDomainSampler, SeqDomainSampler, build_sampler


def items_of(labels, domains=None):
    return [Datum(label=label, domain=d) for label, d in zip(labels, domains or [0] * len(labels), strict=True)]


def batches_of(sampler, size):
    indices = list(sampler)
    assert len(indices) == len(sampler) and len(indices) % size == 0
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def test_random_domain_sampler():
    # Groups of 3: 10, 4, 4 and 2. Two of different domains a batch: all 20 groups fit into 10 batches.
    items = items_of([0] * 62, [0] * 30 + [1] * 13 + [2] * 13 + [3] * 6)
    sampler = RandomDomainSampler(items, batch_size=6, n_domain=2)
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
    assert len(RandomDomainSampler(items, batch_size=8, n_domain=0)) == 3 * 8  # all 4 domains, 6 // 2 batches
    with pytest.raises(ValueError, match="multiple"):
        RandomDomainSampler(items, batch_size=7, n_domain=2)
    with pytest.raises(ValueError, match="4 domains"):
        RandomDomainSampler(items, batch_size=10, n_domain=5)


def test_seq_domain_sampler():
    items = items_of([0] * 20, [2] * 9 + [0] * 5 + [1] * 6)
    batches = batches_of(SeqDomainSampler(items, batch_size=6), 6)
    assert len(batches) == 2  # domain 0 has 5 // 2 pairs
    assert [[items[i].domain for i in batch] for batch in batches] == [[0, 0, 1, 1, 2, 2]] * 2
    assert len(set(sum(batches, []))) == 12
    with pytest.raises(ValueError, match="number of domains"):
        SeqDomainSampler(items, batch_size=7)


def test_random_class_sampler():
    items = items_of([5] * 8 + [1] * 9 + [3] * 4 + [9] * 2)  # groups of 4: 2, 2, 1 and 1 (with repeats)
    sampler = RandomClassSampler(items, batch_size=8, n_ins=4)
    batches = batches_of(sampler, 8)
    assert len(batches) == 3
    for batch in batches:
        labels = [items[i].label for i in batch]
        assert len(set(labels)) == 2 and all(labels.count(label) == 4 for label in set(labels))
    full = [i for i in sum(batches, []) if items[i].label != 9]
    assert len(set(full)) == len(full) == 20
    with pytest.raises(ValueError, match="needs 5 classes"):
        RandomClassSampler(items, batch_size=20, n_ins=4)


def test_build_sampler():
    items = items_of([0, 1] * 4, [0] * 4 + [1] * 4)
    for name in ["RandomSampler", "SequentialSampler", "RandomDomainSampler", "SeqDomainSampler"]:
        sampler = build_sampler(name, data_source=items, batch_size=4)
        assert type(sampler).__name__ == name and sorted(sampler) == list(range(8))
    assert len(list(build_sampler("RandomClassSampler", data_source=items, batch_size=4, n_ins=2))) == 8
    with pytest.raises(ValueError, match="RandomSampler"):
        build_sampler("RandomSampeler", data_source=items)
