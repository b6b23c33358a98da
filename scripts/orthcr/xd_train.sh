#!/usr/bin/env bash
# DATA=/path/to/datasets bash scripts/orthcr/xd_train.sh [DATASET [SEED]]    e.g. imagenet 1; see scripts/run.py
export PYTHONPATH="$(dirname "$0")/../..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m scripts.run OrthCR xd_train "$@"
