#!/usr/bin/env bash
# Trains on all GPUs of one machine, in one process; run it again to resume.
# Change: the configuration, MODEL_DIR, VOCABULARY_PATH. Arguments are passed
# on, such as --gin.BATCH_SIZE=512; CUDA_VISIBLE_DEVICES=0,1 uses fewer GPUs.
set -euo pipefail

exec raptr --gin_file=experiments/pretrain_bert_base_raptr.gin \
  --gin.MODEL_DIR="'runs/base'" --gin.VOCABULARY_PATH="'vocab.txt'" "$@"
