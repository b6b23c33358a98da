#!/usr/bin/env bash
# DATA=/path/to/datasets bash scripts/coop/base2new_train.sh DATASET [SEED]    e.g. caltech101 1; see scripts/run.py
exec "${PYTHON:-python}" "$(dirname "$0")/../run.py" CoOp base2new_train "$@"
