#!/usr/bin/env bash
# DATA=/path/to/datasets bash scripts/zsclip/xd_train.sh [DATASET [SEED]]    e.g. imagenet 1; see scripts/run.py
exec "${PYTHON:-python}" "$(dirname "$0")/../run.py" ZeroshotCLIP xd_train "$@"
