#!/usr/bin/env bash
# From nothing to a BERT that RaPTr has pretrained: makes .venv, prepares the
# King James Bible, and trains for three to four minutes on two CPU cores. Run
# again, it goes on where it stopped, or says that it is complete. Further
# arguments go to the training program, such as --gin.RANDOM_SEED=1.
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
