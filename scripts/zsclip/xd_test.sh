#!/usr/bin/env bash
# DATA=/path/to/datasets bash scripts/zsclip/xd_test.sh [DATASET [SEED]]    e.g. caltech101 1; see scripts/run.py
export PYTHONPATH="$(dirname "$0")/../..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m scripts.run ZeroshotCLIP xd_test "$@"
