"""From a command line to results: config -> run -> plans -> protocols, each using those before it; predictor -> config.

A run is one training or evaluation in its directory, a method a trainer with its settings, a protocol one of base2new,
fewshot, xd and dg, whose stages are runs, and a plan the runs to be made.
"""

import sys
from pathlib import Path

from dassl.interrupts import end_quietly

end_quietly()
if sys.argv[0] == "-m" and any(word.startswith("experiments.") for word in sys.orig_argv):
    # `python -m experiments.calibrate` from another folder: there `datasets`, which is not installed, is this clone's
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import trainers  # noqa: E402, F401  before `clip`, whose warning it silences
