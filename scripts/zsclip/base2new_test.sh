#!/usr/bin/env bash
# DATA=/path/to/datasets bash scripts/zsclip/base2new_test.sh DATASET [SEED]    e.g. caltech101 1; see scripts/run.py
exec "${PYTHON:-python}" "$(dirname "$0")/../run.py" ZeroshotCLIP base2new_test "$@"
