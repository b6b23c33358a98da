#!/usr/bin/env bash
# DATA=/path/to/datasets bash scripts/orthcr/base2new_train.sh DATASET [SEED]    e.g. caltech101 1; see scripts/run.py
export PYTHONPATH="$(dirname "$0")/../..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m scripts.run OrthCR base2new_train "$@"
