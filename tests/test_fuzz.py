"""A few cases of the fuzz test, and that it finds what is not checked. `python -m scripts.robustness.fuzz` has more."""

import random

import pytest

from dassl.utils import images
from orthcr.deploy import exported
from orthcr.run import config
from scripts.robustness.fuzz import FILES, SETTINGS, fuzz, odd_export, odd_pictures, prepare_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return prepare_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(("kinds", "count"), [(SETTINGS, 60), (FILES, 12)], ids=["settings", "files"])
def test_no_case_ends_in_a_traceback_a_hang_or_in_nonsense(kinds, count, world):
    seed = random.randrange(10**6)
    done = fuzz(world, count, seed, kinds=kinds)
    assert not done.faults, f"seed {seed}\n" + "\n".join(done.faults)
    assert sum(done.outcomes.values()) == count


@pytest.mark.parametrize(
    ("kinds", "module", "name", "without", "outcomes"),
    [
        (SETTINGS, config, "check_config", lambda cfg, declared: None, {"nonsense", "traceback"}),
        ((odd_export,), exported, "check_facts", lambda facts: None, {"traceback"}),
        ((odd_pictures,), images, "check_regular", lambda path: None, {"memory", "killed", "hang"}),
    ],
    ids=["settings", "exports", "pictures"],
)
def test_it_finds_what_is_not_checked(kinds, module, name, without, outcomes, world, monkeypatch):
    monkeypatch.setattr(module, name, without)
    if "hang" in outcomes:
        monkeypatch.setattr("scripts.robustness.fuzz.SECONDS", 5.0)
        monkeypatch.setattr("scripts.robustness.fuzz.MEMORY", 900)
    done = fuzz(world, count=200, seed=0, kinds=kinds, to_first=True)
    assert outcomes & {outcome.split(": ")[1] for outcome in done.outcomes}, done.outcomes
