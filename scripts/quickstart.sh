#!/usr/bin/env bash
# The whole recipe in small, on embedded footage: videos, flow, databases, pretraining, co-training, evaluation, table.
source "$(dirname "$0")/environment.sh"
root=${COCLR_DATA:-data}
videos=$root/synthetic-videos

if [ ! -e "$root/synthetic/prepared.json" ]; then
    [ -e "$videos/classInd.txt" ] || "$PYTHON" -m dataset.synthetic --out "$videos" --videos 40 --size 64 --frames 32
    "$PYTHON" -m dataset.prepare synthetic --videos "$videos" --out "$root/synthetic" --flow dis
fi
export NCE_EPOCHS=${NCE_EPOCHS:-16} COCLR_EPOCHS=${COCLR_EPOCHS:-10}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # clips this small are slower on several threads
CYCLES=1 UBERNCE=1 PROBE=features NCE_SCHEDULE=$((NCE_EPOCHS - 2)) COCLR_SCHEDULE=$((COCLR_EPOCHS - 2)) \
    PRETRAIN="--batch_size 16 --moco-k 64 --moco-m 0.99 --lr 3e-4" \
    bash scripts/reproduce.sh synthetic 1 --data_root "$root" --seq_len 8 --ds 2 --img_dim 32 --channels_last -j 2
