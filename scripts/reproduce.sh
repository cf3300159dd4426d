#!/usr/bin/env bash
# The paper's recipe, from databases to the table.
#
#   bash scripts/reproduce.sh DATASET [NPROC] [--dry-run] [options of every command]
#
# InfoNCE RGB and flow, then CYCLES (2) cycles of co-training, each run from the last checkpoint of its predecessors;
# then retrieval and linear probe of each, two-stream, the table, its chart and a gallery of what was retrieved. What is
# done is skipped and what was interrupted goes on, so the same command can be given again at any time. NPROC processes
# per run (default: the paper's GPUs).
# Environment: CYCLES, BASELINES=1 (also random weights, and InfoNCE and UberNCE on RGB for as many epochs as CoCLR in
# all), NCE_EPOCHS, NCE_SCHEDULE, COCLR_EPOCHS, COCLR_SCHEDULE, PRETRAIN, COTRAIN and EVALUATE (options of all
# pretraining, of co-training and of evaluation alone), EVAL (datasets to evaluate on), PROBE=features (a linear layer
# on saved features: minutes instead of hours), SEED (0; a name of its own for each seed's runs).
source "$(dirname "$0")/environment.sh"

usage() { sed -n '2,13s/^# \{0,1\}//p' scripts/reproduce.sh; }
fail() { echo "error: $*" >&2; exit 2; }

dry=; arguments=()
for word in "$@"; do
    case "$word" in
        --dry-run) dry=1 ;;
        -h|--help) usage; exit 0 ;;
        --epochs*|--schedule*) fail "$word: set NCE_EPOCHS, NCE_SCHEDULE, COCLR_EPOCHS, COCLR_SCHEDULE instead" ;;
        *) arguments+=("$word") ;;
    esac
done
set -- "${arguments[@]}"
[ $# -ge 1 ] || { usage >&2; exit 2; }
dataset=$1; shift
nproc=
if [[ ${1-} =~ ^[0-9]+$ ]]; then nproc=$1; shift; fi
common=("$@" ${SEED:+--seed "$SEED"})
runs=${SEED:+seed${SEED}_}

case "$dataset" in
    k400) nce=(300 "250 280" 4 16384); coclr=(50 40 2); evaluate_on="ucf101 hmdb51" ;;
    *) nce=(300 "250 280" 2 2048); coclr=(100 80 2); evaluate_on=$dataset ;;
esac
nce_epochs=${NCE_EPOCHS:-${nce[0]}}; nce_schedule=${NCE_SCHEDULE:-${nce[1]}}
coclr_epochs=${COCLR_EPOCHS:-${coclr[0]}}; coclr_schedule=${COCLR_SCHEDULE:-${coclr[1]}}
evaluate_on=${EVAL:-$evaluate_on}
read -ra pretrain_options <<< "${PRETRAIN:-}"
read -ra cotrain_options <<< "${COTRAIN:-}"
read -ra evaluate_options <<< "${EVALUATE:-}"

run() {  # print a command, and run it
    local shown
    printf -v shown '%q ' "$@"
    echo "+ ${shown/#$PYTHON/python}"
    [ -n "$dry" ] || "$@"
}

launch() {  # NPROC SCRIPT ...
    local processes=$1; shift
    if [ "$processes" -gt 1 ]; then
        run "$PYTHON" -m torch.distributed.run --nproc_per_node="$processes" "$@"
    else
        run "$PYTHON" "$@"
    fi
}

find_last() {  # PATTERN EPOCHS: the last checkpoint of the run whose folder matches, or nothing
    local found
    mapfile -t found < <(compgen -G "$1/model/epoch$(($2 - 1)).pth.tar")
    [ ${#found[@]} -le 1 ] || fail "${found[*]} all match; move the runs you do not mean away"
    echo "${found[0]-}"
}

declare -A checkpoint
cycles=${CYCLES:-2}; count=0
[ -z "${BASELINES:-}" ] && pretrainings=$((2 + 2 * cycles)) || pretrainings=$((4 + 2 * cycles))
stage() {  # TITLE PATTERN EPOCHS NPROC SCRIPT ...: train unless it is done; note the checkpoint that it hands on
    local title=$1 pattern=$2 epochs=$3 processes=$4; shift 4
    count=$((count + 1))
    [ $count -le $pretrainings ] && title_of="training $count of $pretrainings: $title" || title_of=$title
    echo "== $title_of"
    checkpoint[$title]=$(find_last "$pattern" "$epochs")
    if [ -z "${checkpoint[$title]}" ]; then
        launch "${nproc:-$processes}" "$@" --epochs "$epochs" --resume auto
        checkpoint[$title]=$(find_last "$pattern" "$epochs")
        [ -n "$dry" ] && checkpoint[$title]="$pattern/model/epoch$((epochs - 1)).pth.tar"
        [ -n "${checkpoint[$title]}" ] || fail "$title left no $pattern/model/epoch$((epochs - 1)).pth.tar"
    else
        echo "done: ${checkpoint[$title]}"
    fi
}

infonce() {  # TITLE MODEL DATASET [EPOCHS SCHEDULE PREFIX]
    local name_prefix=${runs:+--name_prefix $runs${6-}}
    [ -z "${6-}" ] || name_prefix="--name_prefix $runs$6"
    # shellcheck disable=SC2086  # the schedule is a list
    stage "$1" "log-pretrain/$runs${6-}$2_k*_$3-2clip-*" "${4-$nce_epochs}" "${nce[2]}" main_nce.py --net s3d \
        --model "$2" --moco-k "${nce[3]}" --dataset "$3-2clip" --seq_len 32 --ds 1 --batch_size 32 \
        --schedule ${5-$nce_schedule} -j 16 $name_prefix "${common[@]}" "${pretrain_options[@]}"
}

cotrain() {  # TITLE OWN OTHER [--reverse]
    local title=$1 own=$2 other=$3; shift 3
    # shellcheck disable=SC2086
    stage "$title" "log-pretrain/$runs${title}_coclr-*_$dataset-2stream-2clip-*" "$coclr_epochs" "${coclr[2]}" \
        main_coclr.py --net s3d --topk 5 --moco-k "${nce[3]}" "$@" --dataset "$dataset-2stream-2clip" --seq_len 32 \
        --ds 1 --batch_size 32 --schedule $coclr_schedule --name_prefix "$runs${title}_" -j 8 \
        --pretrain "${checkpoint[$own]}" "${checkpoint[$other]}" "${common[@]}" "${pretrain_options[@]}" \
        "${cotrain_options[@]}"
}

infonce InfoNCE-RGB infonce "$dataset"
infonce InfoNCE-Flow infonce "$dataset-f"
rgb=InfoNCE-RGB; flow=InfoNCE-Flow
stages=("$rgb" "$flow")
if [ -n "${BASELINES:-}" ]; then  # the bounds: trained on RGB for as many epochs as CoCLR in all
    long=$((nce_epochs + cycles * coclr_epochs))
    infonce InfoNCE-RGB-long infonce "$dataset" $long $((long * 5 / 6)) Long_
    infonce UberNCE-RGB ubernce "$dataset" $long $((long * 5 / 6)) Long_
    checkpoint[Random-RGB]=log-linclr/random_s3d_seed${SEED:-0}/random.pth.tar
    checkpoint[Random-Flow]=${checkpoint[Random-RGB]}
    stages=(Random-RGB Random-Flow "${stages[@]}" InfoNCE-RGB-long UberNCE-RGB)
fi
for ((cycle = 1; cycle <= cycles; cycle++)); do
    cotrain "Cycle$cycle-FlowMining" "$rgb" "$flow"; rgb=Cycle$cycle-FlowMining
    cotrain "Cycle$cycle-RGBMining" "$flow" "$rgb" --reverse; flow=Cycle$cycle-RGBMining
    stages+=("$rgb" "$flow")
done

where=()  # the options that say where databases lie are all that pictures need
for ((i = 0; i < ${#common[@]}; i++)); do
    case "${common[i]}" in --data[-_]root|--rgb[-_]lmdb|--flow[-_]lmdb) where+=("${common[@]:i:2}") ;; esac
done

for name in $evaluate_on; do
    for title in "${stages[@]}"; do
        ending=; case "$title" in *-Flow|*-RGBMining) ending=-f ;; esac
        path=${checkpoint[$title]}
        features=$(dirname "$path")/feature-$name
        case "$title" in Random-*) tested=random ;; *) tested=$path ;; esac
        echo "== evaluate $title on $name$ending"
        evaluation=(--net s3d --dataset "$name$ending" --seq_len 32 --ds 1 "${common[@]}" "${evaluate_options[@]}")
        if [ -n "$dry" ] || [ ! -e "$features/.done$ending" ]; then
            launch "${nproc:-1}" main_classifier.py "${evaluation[@]}" --test "$tested" --retrieval \
                --dirname "feature-$name"
            [ -n "$dry" ] || touch "$features/.done$ending"
        fi
        if [ "${PROBE:-}" = features ]; then
            [ -z "$dry" ] && [ -e "$features/.probed$ending" ] && continue
            run "$PYTHON" eval/feature_linear_probe.py --dataset "$name$ending" --test "$features" --final_bn \
                --lr 1.0 --wd 1e-3
            [ -n "$dry" ] || touch "$features/.probed$ending"
        elif [ "$tested" != random ]; then
            stage "Probe-$title-$name" "log-linclr/${runs}Probe-${title}_$name$ending-*" 100 1 main_classifier.py \
                "${evaluation[@]}" --batch_size 32 --train_what last --schedule 60 80 --optim sgd --lr 1e-1 \
                --wd 1e-3 --final_bn --name_prefix "${runs}Probe-${title}_" --pretrain "$path"
            probe=${checkpoint["Probe-$title-$name"]}
            [ -z "$dry" ] && [ -e "$probe-prob-ten.json" ] && continue
            launch "${nproc:-1}" main_classifier.py "${evaluation[@]}" --train_what last --test "$probe" --ten_crop
        fi
    done
    echo "== two-stream on $name"
    features=$(dirname "${checkpoint[$rgb]}")/feature-$name
    if [ -n "$dry" ] || [ ! -e "$features/.merged" ]; then
        run "$PYTHON" eval/merge_2stream_prob.py --dataset "$name" --mode s --prob1 "$features" \
            --prob2 "$(dirname "${checkpoint[$flow]}")/feature-$name"
        if [ "${PROBE:-}" != features ]; then
            run "$PYTHON" eval/merge_2stream_prob.py --dataset "$name" --mode c \
                --prob1 "${checkpoint[Probe-$rgb-$name]}-prob-ten.json" \
                --prob2 "${checkpoint[Probe-$flow-$name]}-prob-ten.json"
        fi
        [ -n "$dry" ] || touch "$features/.merged"
    fi
    run "$PYTHON" eval/retrieval.py --dataset "$name" --test "$features" --gallery "gallery-$name.html" \
        --curve "recall-$name.png" "${where[@]}"
done
run "$PYTHON" eval/report.py --mean --chart results.png
