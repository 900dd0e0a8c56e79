#!/usr/bin/env bash
# Pretrains a small BERT with RaPTr on the King James Bible: makes .venv, and
# trains for three to four minutes on two CPU cores. Run it again to resume
# after an interruption. Arguments are passed on, such as --gin.RANDOM_SEED=1.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
make_environment ""

exec .venv/bin/raptr --gin_file=experiments/quickstart_bert_raptr.gin \
  --gin.MODEL_DIR="'runs/quickstart'" "$@"
