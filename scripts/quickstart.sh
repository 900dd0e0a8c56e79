#!/usr/bin/env bash
# Pretrains a small BERT with RaPTr: makes .venv, prepares the King James Bible,
# and trains for three to four minutes on two CPU cores. Run it again to resume
# after an interruption. Arguments are passed to both programs, such as
# --gin.RANDOM_SEED=1.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
make_environment ""

run=(
  --gin_file=experiments/quickstart_bert_raptr.gin
  --gin.MODEL_DIR="'runs/quickstart'"
  "$@"
)
.venv/bin/python scripts/prepare.py "${run[@]}"
.venv/bin/python -m raptr_jax.main "${run[@]}"
