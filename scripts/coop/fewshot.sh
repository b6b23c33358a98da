#!/usr/bin/env bash
# DATA=/path/to/datasets bash scripts/coop/fewshot.sh DATASET [SEED [SHOTS]]    e.g. caltech101 1 16; see scripts/run.py
exec "${PYTHON:-python}" "$(dirname "$0")/../run.py" CoOp fewshot "$@"
