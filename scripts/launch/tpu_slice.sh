#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice, from any machine with gcloud:
#   scripts/launch/tpu_slice.sh NAME ZONE
# Run it again to resume. Change: the configuration, the folders, which all
# hosts have mounted, and how raptr is found on the hosts, where it is to be
# installed with the extra tpu first.
# Further arguments are passed on, such as --gin.BATCH_SIZE=512.
set -euo pipefail
name=${1:?the name of the slice}
zone=${2:?its zone, such as us-east5-b}
shift 2

run=(raptr --multihost --gin_file=experiments/pretrain_bert_base_raptr.gin
  --gin.MODEL_DIR="'/shared/runs/base'"
  --gin.DATA_DIR="'/shared/data'"
  --gin.VOCABULARY_PATH="'/shared/vocab.txt'" "$@")
# Quoted once more, since a shell of each host reads it.
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="$(printf '%q ' "${run[@]}")"
