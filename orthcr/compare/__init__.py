"""Many runs: the protocols, made of runs, for several methods and data sets.

The words of this package:

- A method is a trainer with its settings.
- A protocol is one of base2new, fewshot, xd and dg. Its stages are runs.
- A plan is the list of runs to be made. A job is the runs of one model.
"""
