"""From a command line to results: config -> run -> plans -> protocols, each using those before it; predictor -> config.

A run is one training or evaluation in its directory, a method a trainer with its settings, a protocol one of base2new,
fewshot, xd and dg, whose stages are runs, and a plan the runs to be made.
"""
