"""The path from a command line to results: config -> run -> plans -> protocols, each using those before it.

`predictor` uses `config` alone. The words of this package:

- A run is one training or evaluation in its directory.
- A method is a trainer with its settings.
- A protocol is one of base2new, fewshot, xd and dg. Its stages are runs.
- A plan is the list of runs to be made.
"""

import sys
from pathlib import Path

from dassl.interrupts import end_quietly

end_quietly()
if sys.argv[0] == "-m" and any(word.startswith("experiments.") for word in sys.orig_argv):
    # `python -m experiments.calibrate` may start in another folder. `datasets` is not installed: take this clone's
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import trainers  # noqa: E402, F401  before `clip`, whose warning it silences
