#!/usr/bin/env bash
# DATA=/path/to/datasets bash scripts/orthcr/fewshot.sh DATASET [SEED [SHOTS]]    e.g. caltech101 1 16; see scripts/run.py
export PYTHONPATH="$(dirname "$0")/../..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m scripts.run OrthCR fewshot "$@"
