# shellcheck shell=bash
# Sourced by the other scripts. make_environment EXTRAS makes .venv at the root of
# the checkout and installs the package with the versions of constraints.txt.
# PYTHON sets the interpreter; the default is the first one that is new enough.

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
      2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python of version 3.11 or newer; set PYTHON to one" >&2
  return 1
}

make_environment() {
  local extras=$1 python stamp
  stamp=.venv/installed-$(cat setup.py constraints.txt | cksum | cut -d' ' -f1)
  if [ -e "$stamp-all" ] || [ -e "$stamp-${extras:-none}" ]; then
    return
  fi
  if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    echo "creating .venv with $("$python" --version)"
    "$python" -m venv .venv
  fi
  echo "installing raptr_jax${extras:+[$extras]}, which takes a minute or two"
  PIP_CONSTRAINT="" .venv/bin/python -m pip install --quiet \
    --disable-pip-version-check --constraint constraints.txt \
    --editable ".${extras:+[$extras]}"
  touch "$stamp-${extras:-none}"
  [ "$extras" != dev,data,docs ] || touch "$stamp-all"
}
