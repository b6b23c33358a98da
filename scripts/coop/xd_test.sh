#!/usr/bin/env bash
# DATA=/path/to/datasets bash scripts/coop/xd_test.sh [DATASET [SEED]]    e.g. caltech101 1; see scripts/run.py
exec "${PYTHON:-python}" "$(dirname "$0")/../run.py" CoOp xd_test "$@"
