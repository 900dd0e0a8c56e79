#!/usr/bin/env bash
# Runs every check that a change must pass: format, lint, types, the pages of
# the documentation (build/docs/index.html), tests.
# Arguments are passed to pytest, such as tests/policies_test.py.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
make_environment dev,data,docs
export JAX_PLATFORMS=cpu # libtpu, of the extra dev, would look for TPUs.

.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
bash -n scripts/*.sh scripts/launch/*.sh
.venv/bin/shellcheck -x scripts/*.sh scripts/launch/*.sh
.venv/bin/python -m sphinx -q -W --keep-going -b html docs build/docs
# The tests of a file share their setup, so they stay in one process.
.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
