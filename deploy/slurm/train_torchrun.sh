#!/bin/bash
#SBATCH --job-name=t2i-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@600
#
# Trains a stage by torchrun on the nodes of a Slurm job, without Ray: a lost worker ends the job. From the root of the checkout:
#
#   FEATURES=/shared/features RUN_DIR=/shared/runs STAGE=alignment sbatch deploy/slurm/train_torchrun.sh
#
# More options of trainer.fit may follow the script's name. The job is queued again until the stage is done.
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:?start this script by sbatch}" || exit 2
source deploy/slurm/job.sh
need RUN_DIR STAGE FEATURES

run_step "$RUN_DIR/$STAGE/STOP" \
    srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$GPUS" \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$HEAD" \
    -m trainer.fit --stage "$STAGE" --features "$FEATURES" --run_dir "$RUN_DIR" "$@"
