#!/usr/bin/env bash
# Tests and benchmarks on a machine with a GPU, in less than nine minutes:
#   scripts/gpu_suite.sh FOLDER [SIZE]
# writes what was found to FOLDER as Markdown and JSON; SIZE is that of
# benchmark.py. It needs the packages jax, flax, optax, orbax-checkpoint and
# jaxtyping; pytest and hypothesis for the tests; torch and transformers for the
# comparison with PyTorch. PYTHON sets the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
folder=${1:?the folder for what is found}
size=${2:-gpu}
python=${PYTHON:-python3}
mkdir -p "$folder"
failed=()

# Without tests/conftest.py, which sets up eight CPU devices; so no test on a
# mesh. Full precision, since the tests compare results of float32.
if "$python" -c 'import pytest, hypothesis' 2>/dev/null; then
  JAX_DEFAULT_MATMUL_PRECISION=highest timeout 120 "$python" -m pytest \
    --noconftest -p no:cacheprovider -W default -q -k 'not mesh' \
    tests/attention_test.py tests/masked_stack_test.py tests/losses_test.py \
    2>&1 | tee "$folder/tests.txt"
  [ "${PIPESTATUS[0]}" = 0 ] || failed+=(tests)
else
  echo "no tests: pytest and hypothesis are not installed" \
    | tee "$folder/tests.txt"
fi

# Each table is written when it is measured, so a suite that runs out of time
# leaves those before.
while read -r suite seconds; do
  timeout "$seconds" "$python" scripts/benchmark.py --suite "$suite" \
    --size "$size" --rounds 7 --json "$folder/$suite.json" \
    | tee "$folder/$suite.md"
  [ "${PIPESTATUS[0]}" = 0 ] || failed+=("$suite")
done <<'SUITES'
drop 170
dense 150
attention 90
SUITES

if [ ${#failed[@]} != 0 ]; then
  echo "failed, or out of time: ${failed[*]}" >&2
  exit 1
fi
