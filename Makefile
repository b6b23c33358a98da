# make demo       set-up, then base-to-new on the embedded data: table, output/demo/report.html
# make protocols  set-up, then all four protocols on the embedded data: tables, pictures, report.html in output/protocols
# make compare    the same with every method: output/compare
# make test       set-up, then the tests
# make lint       ruff: rules and format; scripts/lint.py: docstrings, names and lines
# make bench      time and memory of all trainers beside the originals' formulation, 20 minutes: output/bench

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python

.PHONY: demo protocols compare test lint bench setup

demo: setup
	$(PY) -m scripts.demo

protocols: setup
	$(PY) benchmark.py --trainers ZeroshotCLIP CoOp OrthCR --output-dir output/protocols

compare: setup
	$(PY) benchmark.py --trainers all --output-dir output/compare

test: setup
	$(PY) -m pytest -n 2 --dist worksteal

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m scripts.lint

bench: setup
	$(PY) -m benchmarks

setup: $(VENV)/installed

$(VENV)/installed: setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	@echo "Installing PyTorch and the rest into $(VENV): about 2 minutes and 5.5 GB"
	PYTHONWARNINGS=ignore $(PY) -m pip install --quiet --editable '.[dev,onnx]'
	touch $@
