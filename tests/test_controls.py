"""The plan of the controls: which settings a row has, and which it shares with all others."""

from collections import Counter

import pytest

import trainers
from dassl.engine import TRAINER_REGISTRY
from orthcr.run.config import setup_cfg
from orthcr.run.declarations import discover
from scripts.controls import REGULARIZED, jobs_of, method_groups
from trainers.base import node_of

METHODS = {"regularizer": 5, "no_regularizer": 4, "published": 2}


@pytest.mark.parametrize("group", METHODS)
def test_a_group_differs_in_what_it_is_named_after(group, tmp_path):
    discover(trainers)
    trainings = [job.runs[0].spec for job in jobs_of(method_groups()[group], tmp_path, tmp_path)]
    # with and without Cutout, three seeds, and the models of base-to-new, of 16 shots and of both transfers
    assert set(Counter(spec.trainer for spec in trainings).values()) == {2 * 3 * 3}
    assert len(trainings) == 18 * METHODS[group]
    for spec in trainings[::5]:
        cfg, word = setup_cfg(spec), "with" if "/with_cutout/" in spec.output_dir else "without"
        node = cfg.TRAINER[node_of(TRAINER_REGISTRY.get(spec.trainer))]
        cuts = "cutout" in cfg.INPUT.TRANSFORMS or node.get("ATTENTIVE", False)
        assert cuts == (word == "with"), spec
        if spec.trainer in REGULARIZED:
            assert (node.REG == "none") == (group == "no_regularizer")
        assert (node.get("N_BLOCKS") == 4) == (group == "published")
