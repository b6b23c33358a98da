"""One run: a training or an evaluation in its output directory.

The modules, in the order in which a run uses them: `flags` (command line), `spec` (description of the run), `config`,
`checks`, `runner`, `results`.
"""
