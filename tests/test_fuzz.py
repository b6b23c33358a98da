"""The fuzz test, and that it finds what is not checked."""

import random

import pytest

from dassl.utils import images
from orthcr.deploy import exported
from orthcr.run import config
from scripts.robustness.fuzz import FILES, SETTINGS, fuzz, odd_export, odd_pictures


def test_no_case_ends_in_a_traceback_or_in_nonsense():
    done = fuzz(count=500, seed=0)
    assert not done.faults, "\n".join(done.faults)
    assert sum(done.outcomes.values()) == 500
    assert done.outcomes["must_fail: refused"] > 40 and not done.outcomes["must_fail: ran"]
    assert sum(number for outcome, number in done.outcomes.items() if outcome.endswith(": ran")) > 50


def test_no_hostile_file_ends_in_a_traceback_a_hang_or_a_full_memory():
    seed = random.randrange(10**6)
    done = fuzz(count=80, seed=seed, kinds=FILES)
    assert not done.faults, f"seed {seed}\n" + "\n".join(done.faults)
    assert sum(done.outcomes.values()) == 80


def test_it_finds_what_is_not_checked(monkeypatch):
    monkeypatch.setattr(config, "check_config", lambda cfg, declared: None)
    done = fuzz(count=60, seed=0, kinds=SETTINGS)
    kinds = {outcome.split(": ")[1] for outcome in done.outcomes}
    assert len(done.faults) >= 5 and kinds == {"refused", "ran", "nonsense", "traceback"}


@pytest.mark.parametrize(
    ("kind", "module", "name", "without", "outcomes"),
    [
        (odd_export, exported, "check_facts", lambda facts: None, {"traceback"}),
        (odd_pictures, images, "check_regular", lambda path: None, {"memory", "killed", "hang"}),
    ],
)
def test_it_finds_files_that_are_not_checked(kind, module, name, without, outcomes, monkeypatch):
    monkeypatch.setattr(module, name, without)
    monkeypatch.setattr("scripts.robustness.fuzz.SECONDS", 5.0)
    monkeypatch.setattr("scripts.robustness.fuzz.MEMORY", 900)
    done = fuzz(count=60, seed=0, kinds=(kind,))
    assert outcomes & {outcome.split(": ")[1] for outcome in done.outcomes}, done.outcomes
