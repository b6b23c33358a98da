"""Time and memory of the trainers beside the formulation of the originals: `python -m benchmarks`, `make bench`.

__main__.py    the command: a list of cases, each measured in a process of its own
cases.py       what a case is, and which come first
flops.py       operations and memory that a case should need
reference.py   the originals' formulation, behind the trainers' own interface
measure.py     one case
memory.py      the peak of a training step
results.py     JSON and tables
pictures.py    time and memory against the number of classes
costs.py       single figures of docs/: `python -m benchmarks.costs`
steps.py       a trainer in processes of its own, which steps when it is told
"""

from dassl.interrupts import end_quietly

end_quietly()

import trainers  # noqa: E402  before `clip`, whose warning it silences
