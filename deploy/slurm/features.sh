#!/bin/bash
#SBATCH --job-name=t2i-features
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@600
#
# Encodes a data set to features by Ray on the nodes of a Slurm job. From the root of the checkout:
#
#   DATASET=/shared/dataset OUT=/shared/features STAGE=alignment MODEL=/shared/models/PixArt-XL-2-1024-MS sbatch deploy/slurm/features.sh
#
# MODEL is a folder or a hub id with the VAE and the text encoder. More options of trainer.precompute may follow the script's name.
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:?start this script by sbatch}" || exit 2
source deploy/slurm/job.sh
need DATASET OUT STAGE MODEL

run_step "" srun ray symmetric-run --address "$HEAD" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
    python -m trainer.precompute --ray.address "$HEAD" \
    --dataset "$DATASET" --out "$OUT" --stage "$STAGE" \
    --vae.name "$MODEL" --text_encoder.name "$MODEL" "$@"
