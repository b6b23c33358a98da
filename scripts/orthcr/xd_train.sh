#!/usr/bin/env bash
# DATA=/path/to/datasets bash scripts/orthcr/xd_train.sh [DATASET [SEED]]    e.g. imagenet 1; see scripts/run.py
exec "${PYTHON:-python}" "$(dirname "$0")/../run.py" OrthCR xd_train "$@"
