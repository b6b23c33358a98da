#!/usr/bin/env bash
# DATA=/path/to/datasets bash scripts/coop/main.sh DATASET CFG CTP NCTX SHOTS CSC    CoOp's own arguments, seeds 1 2 3
#
#   DATASET   a file of configs/datasets, e.g. caltech101
#   CFG       a file of configs/trainers/CoOp, e.g. rn50_ep50
#   CTP       position of the class token: end or middle
#   NCTX      number of context tokens
#   SHOTS     images of each class: 1, 2, 4, 8 or 16
#   CSC       context of each class its own: False or True
#
# From the environment: DATA (data) and OUTPUT (output). The folders are CoOp's. Finished runs are skipped, unfinished
# ones go on where they were. KEY VALUE pairs may follow.
set -euo pipefail
if [ $# -lt 6 ]; then
    echo "error: main.sh takes DATASET CFG CTP NCTX SHOTS CSC, e.g. caltech101 rn50_ep50 end 16 1 False" >&2
    exit 2
fi
dataset=$1 cfg=$2 ctp=$3 nctx=$4 shots=$5 csc=$6
shift 6
clone=$(cd "$(dirname "$0")/../.." && pwd)
for seed in 1 2 3; do
    dir=${OUTPUT:-output}/$dataset/CoOp/${cfg}_${shots}shots/nctx${nctx}_csc${csc}_ctp${ctp}/seed$seed
    if [ -e "$dir/results.json" ]; then
        echo "$dir is finished"
        continue
    fi
    "${PYTHON:-python}" "$clone/train.py" --root "${DATA:-data}" --seed "$seed" --trainer CoOp \
        --dataset-config-file "configs/datasets/$dataset.yaml" --config-file "configs/trainers/CoOp/$cfg.yaml" \
        --output-dir "$dir" TRAINER.COOP.N_CTX "$nctx" TRAINER.COOP.CSC "$csc" \
        TRAINER.COOP.CLASS_TOKEN_POSITION "$ctp" DATASET.NUM_SHOTS "$shots" "$@"
done
