#!/usr/bin/env bash
# DATA=/path/to/datasets bash scripts/orthcr/dg_test.sh [DATASET [SEED]]    e.g. imagenet_sketch 1; see scripts/run.py
export PYTHONPATH="$(dirname "$0")/../..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m scripts.run OrthCR dg_test "$@"
