#!/bin/bash
#SBATCH --job-name=t2i-caption
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@600
#
# Captions images by Ray on the nodes of a Slurm job. From the root of the checkout:
#
#   IMAGES=/shared/images OUT=/shared/runs/photos MODEL=/shared/models/llava-1.5-7b-hf sbatch deploy/slurm/caption.sh
#
# More options of captioner.run may follow the script's name. The job is queued again until all images are captioned.
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:?start this script by sbatch}" || exit 2
source deploy/slurm/job.sh
need IMAGES OUT MODEL

run_step "" srun ray symmetric-run --address "$HEAD" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
    python -m captioner.run --ray.address "$HEAD" \
    --images "$IMAGES" --out "$OUT" --model "$MODEL" "$@"
