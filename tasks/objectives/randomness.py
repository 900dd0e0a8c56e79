"""Where the randomness of examples comes from: seed, epoch and row."""

import numpy as np


def part_seed(seed: int, number: int, parts: int) -> int:
  """The seed of a part: of a task in a mixture, or of a shard.

  No two parts share one, even if the seeds of the wholes differ.

  Args:
    seed: seed of the whole.
    number: number of the part, counted from 0.
    parts: number of parts.
  """
  return seed * parts + number


def row_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
  """The generator that corrupts row `index` of an epoch."""
  return np.random.default_rng([seed, epoch, index])
