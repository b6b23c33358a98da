"""Time and memory of the trainers beside the formulation of the originals: `python -m benchmarks`, `make bench`.

__main__.py    the command: a list of cases, each measured in its own process
cases.py       the cases and their order
counts.py      operations and memory of a case, counted on fake tensors
reference.py   the originals' formulation, behind the interface of the trainers
measure.py     the measurement of one case
memory.py      the peak memory of a training step
results.py     JSON and tables
pictures.py    time and memory against the number of classes
costs.py       single figures of docs/: `python -m benchmarks.costs`
steps.py       a trainer in other processes, which makes a step on request
"""

from dassl.infrastructure.interrupts import end_quietly

end_quietly()

import trainers  # noqa: E402  before `clip`, because it silences clip's warning
