"""A few cases of the fuzz test, and that it finds what is not checked. `python -m scripts.robustness.fuzz` has more."""

import random

import pytest

from dassl.infrastructure import images
from orthcr.deploy import exported
from orthcr.run import config
from scripts.robustness.fuzz import FILES, SETTINGS, fuzz, odd_export, odd_pictures, prepare_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return prepare_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(("kinds", "count"), [(SETTINGS, 40), (FILES, 9)], ids=["settings", "files"])
def test_no_case_ends_in_a_traceback_a_hang_or_in_nonsense(kinds, count, world):
    seed = random.randrange(10**6)
    done = fuzz(world, count, seed, kinds=kinds)
    assert not done.faults, f"seed {seed}\n" + "\n".join(done.faults)
    assert sum(done.outcomes.values()) == count


@pytest.mark.parametrize(
    ("kinds", "start", "changes", "outcomes"),
    [
        (SETTINGS, 0, {(config, "check_config"): lambda cfg, declared: None}, {"nonsense", "traceback"}),
        ((odd_export,), 20, {(exported, "check_facts"): lambda facts: None}, {"nonsense", "traceback"}),
        ((odd_pictures,), 105, {(images, name): 10**12 for name in ("PIXELS", "MANY_PIXELS")}, {"memory", "killed"}),
    ],
    ids=["settings", "exports", "pictures"],
)
def test_it_finds_what_is_not_checked(kinds, start, changes, outcomes, world, monkeypatch):
    """From a case on, so that the first fault comes soon."""
    monkeypatch.setattr("scripts.robustness.fuzz.MEMORY", 900)
    for (module, name), value in changes.items():
        monkeypatch.setattr(module, name, value)
    done = fuzz(world, count=60, seed=0, start=start, kinds=kinds, to_first=True)
    assert outcomes & {outcome.split(": ")[1] for outcome in done.outcomes}, done.outcomes
