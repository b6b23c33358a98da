#!/usr/bin/env bash
# DATA=/path/to/datasets bash scripts/orthcr/base2new_train.sh DATASET [SEED]    e.g. caltech101 1; see scripts/run.py
exec "${PYTHON:-python}" "$(dirname "$0")/../run.py" OrthCR base2new_train "$@"
