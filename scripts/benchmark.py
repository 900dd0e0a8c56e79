"""Time and memory of a training step, by path length and execution.

  python scripts/benchmark.py --path_lengths 3 6 12

For each path length k three programs take turns, so that other load on the
machine affects them equally: a dense model that has only k layers (the ideal),
and the full model's path of k layers under `gather` and under `cond`. The table
has median times, their ratios to the dense model of k layers, and temporary
memory according to XLA's analysis of the compiled step.
"""

import argparse
import functools
import math
import statistics
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

# This checkout's package, not another one that is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from raptr_jax.contracts import LayerDraw
from raptr_jax.methods.draws import as_executed
from raptr_jax.models.bert import BertConfig, BertMaskedLM
from raptr_jax.training import optim
from raptr_jax.training.state import init_state
from raptr_jax.training.train_step import train_step


def parse_args() -> argparse.Namespace:
  """The sizes of the model and the batch, and what to compare."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--layers", type=int, default=12)
  parser.add_argument("--width", type=int, default=256)
  parser.add_argument("--heads", type=int, default=4)
  parser.add_argument("--vocabulary", type=int, default=4096)
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--length", type=int, default=128)
  parser.add_argument("--remat", default="full", choices=("full", "none"))
  parser.add_argument("--dtype", default="float32")
  parser.add_argument("--path_lengths", type=int, nargs="+", default=[3, 6, 12])
  parser.add_argument("--rounds", type=int, default=9)
  return parser.parse_args()


def random_batch(args: argparse.Namespace) -> dict[str, np.ndarray]:
  """A batch for masked language modelling."""
  rng = np.random.default_rng(0)
  shape = (args.batch, args.length)
  targets = (args.batch, -(-args.length * 3 // 20))
  row = np.arange(args.length, dtype=np.int32)
  return {
    "tokens": rng.integers(0, args.vocabulary, shape, np.int32),
    "segment_ids": np.ones(shape, np.int32),
    "positions": np.broadcast_to(row, shape).copy(),
    "target_positions": np.broadcast_to(row[: targets[1]], targets).copy(),
    "targets": rng.integers(0, args.vocabulary, targets, np.int32),
    "target_weights": np.ones(targets, np.float32),
  }


class Program:
  """A compiled training step on one path, and its times."""

  def __init__(
    self,
    args: argparse.Namespace,
    num_layers: int,
    *,
    path_length: int,
    execution: str,
  ):
    model = BertMaskedLM(
      BertConfig(
        vocab_size=args.vocabulary,
        num_layers=num_layers,
        embed_dim=args.width,
        num_heads=args.heads,
        norm="pre",
        dropout_rate=0.0,
        remat=args.remat,
        dtype=args.dtype,
      )
    )
    optimizer = optim.adamw(learning_rate=lambda step: 1e-4)
    step = functools.partial(
      train_step,
      model=model,
      optimizer=optimizer,
      dropout_key=jax.random.key(0),
    )
    # Evenly spread, including the first and last layers like RaPTr's paths.
    kept = np.rint(np.linspace(0, num_layers - 1, path_length)).astype(int)
    mask = np.isin(np.arange(num_layers), kept)
    draw = LayerDraw(mask, mask.astype(np.float32))
    draws = as_executed({"stack": draw}, execution)
    self._inputs = jax.device_put((random_batch(args), draws))
    init = functools.partial(init_state, model=model, optimizer=optimizer)
    self._state = jax.jit(lambda key: nn.unbox(init(key)))(jax.random.key(0))
    self._step = (
      jax.jit(step, donate_argnums=0)
      .lower(self._state, *self._inputs)
      .compile()
    )
    memory = self._step.memory_analysis()
    self.temporary_mb = memory.temp_size_in_bytes / 1e6 if memory else math.nan
    self.seconds: list[float] = []

  def run(self) -> None:
    """Runs and times one step."""
    began = time.perf_counter()
    self._state, metrics = self._step(self._state, *self._inputs)
    jax.block_until_ready((self._state, metrics))
    self.seconds.append(time.perf_counter() - began)


def main() -> None:
  """Prints a table with a line per path length and program."""
  args = parse_args()
  device = jax.devices()[0].device_kind
  print(f"jax {jax.__version__} on {device}, {vars(args)}\n")
  print("| k | program | ms, median | over dense-k | temporary MB |")
  print("|---|---|---|---|---|")
  for length in args.path_lengths:
    programs = {
      name: Program(args, layers, path_length=length, execution=execution)
      for name, layers, execution in (
        ("dense-k", length, "gather"),
        ("gather", args.layers, "gather"),
        ("cond", args.layers, "cond"),
      )
    }
    for number in range(args.rounds + 2):
      for program in programs.values():
        program.run()
        if number < 2:  # Warm-up.
          program.seconds.clear()
    ideal = statistics.median(programs["dense-k"].seconds)
    for name, program in programs.items():
      median = statistics.median(program.seconds)
      print(
        f"| {length} | {name} | {median * 1e3:.1f} | {median / ideal:.2f}x |"
        f" {program.temporary_mb:.0f} |"
      )


if __name__ == "__main__":
  main()
