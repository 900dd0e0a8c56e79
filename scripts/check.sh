#!/usr/bin/env bash
# All that has to pass before a change is good: format, lint, types, tests.
# Further arguments go to pytest, such as tests/policies_test.py.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
make_environment dev,data

.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
bash -n scripts/*.sh
# A file's tests share what they set up: they stay in one process.
.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
