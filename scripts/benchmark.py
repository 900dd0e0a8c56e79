r"""Measures what training costs: time, memory, and what dropping layers saves.

  python scripts/benchmark.py
  python scripts/benchmark.py --suite dense --json dense.json

Programs that are compared take turns, and the tables have medians over the
rounds, so that other load on the machine affects all of them alike; a ratio is
the median of the ratios in each round. The tables are Markdown.

suites:
  drop       paths of L/4, L/2, 3L/4 and L layers, by gather, by cond and by
             multiplication with a mask, beside models of so many layers; RaPTr
             6-8-10-12 beside dense training; gradients of skipped layers
  dense      steps of the full model, beside Hugging Face's in PyTorch if torch
             and transformers are installed
  attention  kernels of attention, for rows of 128 to 8,192 tokens
  input      examples that a core prepares, and streams
  startup    from the command to the first step, and into each stage
  all        the suites whose packages are installed

sizes:
  tiny       to see that a suite runs
  cpu        models of 12 narrow layers in float32, for a few cores
  gpu        models of the paper's size in bfloat16, for one accelerator

drop, dense and attention need jax, flax, optax, orbax-checkpoint and jaxtyping alone.

Exit codes: 0 done; 1 a check does not hold; 2 a package is missing.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# PyTorch needs memory of the same GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

# This checkout's package, not another one that is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax

from benchmarks import attention, dense, drop, inputs, results, startup
from raptr_jax.training.host_memory import keep_freed_memory

SUITES = {
  "drop": drop.run,
  "dense": dense.run,
  "attention": attention.run,
  "input": inputs.run,
  "startup": startup.run,
}
# What a suite needs besides the packages of all of them.
NEEDED = {
  "input": ("grain", "array-record", "sentencepiece"),
  "startup": ("gin-config", "grain", "array-record", "sentencepiece"),
}
SIZES = ("tiny", "cpu", "gpu")


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the tables of the suites that the flags name."""
  args = parse_args(argv)
  keep_freed_memory()
  size = args.size or ("cpu" if jax.default_backend() == "cpu" else "gpu")
  head = results.header()
  print(results.header_markdown(head), flush=True)
  found: dict[str, list[results.Table]] = {}
  for suite in SUITES if args.suite == "all" else [args.suite]:
    missing = results.missing(NEEDED.get(suite, ()))
    if missing:
      print(f"{suite}: {', '.join(missing)} not installed", file=sys.stderr)
      if args.suite == suite:
        sys.exit(2)
      continue
    for table in SUITES[suite](size, args.rounds):
      found.setdefault(suite, []).append(table)
      print(table.markdown(), flush=True)
      if args.json:
        results.write_json(args.json, head, found)
  if not all(table.holds for tables in found.values() for table in tables):
    sys.exit(1)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """The suite, its size, and where its tables go."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument(
    "--suite", choices=(*SUITES, "all"), default="drop", help="default: drop"
  )
  parser.add_argument(
    "--size", choices=SIZES, help="default: cpu or gpu, what there is"
  )
  parser.add_argument(
    "--rounds",
    type=_positive,
    default=9,
    help="rounds that count, after two that do not; default: 9",
  )
  parser.add_argument(
    "--json", type=Path, metavar="FILE", help="write header and tables there"
  )
  return parser.parse_args(argv)


def _positive(text: str) -> int:
  if not text.isdecimal() or not int(text):
    raise argparse.ArgumentTypeError(f"{text!r}, expected at least 1")
  return int(text)


if __name__ == "__main__":
  main()
