"""One run: a training or an evaluation in its output directory.

The data go from the command line (`flags`) to the config (`config`), the checks, the run (`runner`) and its results.
"""
