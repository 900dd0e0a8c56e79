"""Prepares the records of a task; see `raptr_jax.main.prepare_main`."""

import sys

from raptr_jax.main import prepare_main

if __name__ == "__main__":
  # Gin files may import modules of the current folder, as with `python -m`.
  sys.path.append("")
  prepare_main()
