"""The commands for the benchmarks: `python -m datasets.tools.prepare` and `python -m datasets.tools.verify`."""
