"""Comparison of several methods on several data sets, by protocols that consist of runs.

The words of this package:

- A run is one training or evaluation in its output directory.
- A method is a trainer with its settings.
- A protocol is one of base2new, fewshot, xd and dg. A stage is one step of it, for example the training of base2new.
- A job is the training of one model and all its tests, in order. A plan is a list of jobs.

The modules, in the order in which a benchmark uses them:

1. `command_line` parses the flags.
2. `methods` and `benchmark_datasets` choose the methods and the data sets.
3. `stages` and `overrides` describe the runs of one method.
4. `schedule` collects them in a plan.
5. `benchmark_run` starts the plan; `plans` and `engines` execute it.
"""
