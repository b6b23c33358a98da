"""Many runs: the protocols, made of runs, for several methods and data sets.

The words of this package:

- A run is one training or evaluation in its output directory.
- A method is a trainer with its settings.
- A protocol is one of base2new, fewshot, xd and dg. Its stages are runs.
- A job is the runs of one model, in order. A plan is a list of jobs.

The way of a benchmark: `command_line` parses it, `methods` and `benchmark_datasets` say what is compared, `stages` and
`overrides` make the runs of one method, `schedule` makes the plan of them, `benchmark_run` starts it, `plans` and
`engines` execute it.
"""
