"""The fuzz test, and that it finds what is not checked."""

from fuzz import fuzz

from experiments import config


def test_no_case_ends_in_a_traceback_or_in_nonsense():
    outcomes, faults = fuzz(count=500, seed=0)
    assert not faults, "\n".join(faults)
    assert sum(outcomes.values()) == 500
    assert outcomes["must_fail: refused"] > 40 and not outcomes["must_fail: ran"]
    assert sum(number for outcome, number in outcomes.items() if outcome.endswith(": ran")) > 50


def test_it_finds_what_is_not_checked(monkeypatch):
    monkeypatch.setattr(config, "check_config", lambda cfg, declared: None)
    outcomes, faults = fuzz(count=60, seed=0)
    kinds = {outcome.split(": ")[1] for outcome in outcomes}
    assert len(faults) >= 5 and kinds == {"refused", "ran", "nonsense", "traceback"}
