"""A few random kills at every run of the tests; `python -m scripts.robustness.kills` makes a hundred."""

import random

from scripts.robustness import kills


def test_killed_runs_end_as_the_undisturbed_one(monkeypatch, capfd):
    monkeypatch.setattr(kills, "CASES", {"OrthCR": kills.CASES["OrthCR"]})
    seed = random.randrange(10**6)
    assert kills.main(["--count", "3", "--seed", str(seed)]) == 0, f"seed {seed}\n{capfd.readouterr().out}"
    assert capfd.readouterr().out.startswith("3 kills in ")
