#!/usr/bin/env bash
# The whole recipe in small, on embedded footage: videos, flow, databases, pretraining, co-training, evaluation, table,
# chart, gallery. --full: also InfoNCE and UberNCE of as many epochs, and three seeds. SEEDS: others.
source "$(dirname "$0")/environment.sh"
case "${1-}" in
    "") set -- "0" random ;;
    --full) set -- "0 1 2" all ;;
    *) echo "error: $1 is not known; usage: bash scripts/quickstart.sh [--full]" >&2; exit 2 ;;
esac
name=synthetic seeds=${SEEDS:-$1} baselines=$2 nce_epochs=${NCE_EPOCHS:-34} coclr_epochs=${COCLR_EPOCHS:-20}
root=${COCLR_DATA:-data}
footage=$root/$name-videos

if [ ! -e "$root/$name/prepared.json" ]; then
    [ -e "$footage/classInd.txt" ] || "$PYTHON" -m dataset.synthetic --out "$footage"
    "$PYTHON" -m dataset.prepare "$name" --videos "$footage" --out "$root/$name" --flow dis
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
for seed in $seeds; do
    bash scripts/reproduce.sh "$name" 1 --data_root "$root" --seq_len 8 --ds 2 --img_dim 32 --channels_last -j 1 \
        --small --lr 3e-4 --train_flow "--lr 1.5e-4" --cotrain "--topk 15" --seed "$seed" \
        --baselines "$baselines" --at_once 2 \
        --nce_epochs "$nce_epochs" --nce_schedule "$((nce_epochs * 5 / 6))" \
        --coclr_epochs "$coclr_epochs" --coclr_schedule "$((coclr_epochs * 5 / 6))"
done
echo "table: results.md; chart: results.png; what was retrieved: gallery-$name.html, recall-$name.png"
