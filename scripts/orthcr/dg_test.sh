#!/usr/bin/env bash
# DATA=/path/to/datasets bash scripts/orthcr/dg_test.sh [DATASET [SEED]]    e.g. imagenet_sketch 1; see scripts/run.py
exec "${PYTHON:-python}" "$(dirname "$0")/../run.py" OrthCR dg_test "$@"
