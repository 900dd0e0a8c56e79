#!/usr/bin/env bash
# Trains on several nodes of a SLURM cluster:
#   sbatch scripts/launch/slurm.sh
# Change: nodes, GPUs of a node (as many tasks: JAX gives each process the GPU
# of its number), time; the configuration, and folders that all nodes share.
# Arguments are passed on, such as --gin.BATCH_SIZE=512.
#
# TENSOR splits layers over the GPUs of one process. To use it, start one process
# for each node, and name its GPUs: --ntasks-per-node=1, and below
#   export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7
#
# Two minutes before its time is over, the run saves a checkpoint and the job
# goes back into the queue, where the same command resumes it.
#SBATCH --job-name=raptr
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
set -uo pipefail

srun raptr --multihost --gin_file=experiments/pretrain_bert_base_raptr.gin \
  --gin.MODEL_DIR="'/shared/runs/base'" --gin.DATA_DIR="'/shared/data'" \
  --gin.VOCABULARY_PATH="'/shared/vocab.txt'" "$@" &
run=$!

# SLURM signals this script alone. `wait` ends at a signal, and is then called
# again: only the code with which the run itself ended counts.
signalled=yes
trap 'signalled=yes; kill -TERM "$run" 2>/dev/null' TERM
while [ -n "$signalled" ]; do
  signalled=
  wait "$run"
  code=$?
done

if [ "$code" = 143 ]; then # Stopped, with a checkpoint saved.
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
