#!/usr/bin/env bash
#SBATCH --job-name=coclr
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
# One process per GPU on two nodes; SLURM warns two minutes before the end, the run saves, and goes on when requeued:
#   sbatch scripts/slurm.sh --model infonce --dataset k400-2clip --moco-k 16384 --epochs 300 --schedule 250 280
set -uo pipefail
srun .venv/bin/python main_nce.py --net s3d --seq_len 32 --ds 1 --batch_size 32 -j 16 --resume auto "$@"
status=$?
[ $status -eq $((128 + 10)) ] && scontrol requeue "$SLURM_JOB_ID"  # 128 + SIGUSR1: saved and waiting to go on
exit $status
