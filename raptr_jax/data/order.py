"""The order of a task's examples: a pure function of seed, epoch and position.

An epoch is a random permutation of all rows. Every place of it is computed when
it is needed, so it takes no memory, and does not depend on where a run starts
or on how many hosts read.
"""

import dataclasses
import functools

import numpy as np
from grain.experimental import index_shuffle

from raptr_jax.tasks.objectives.randomness import row_generator

# Separates the permutation of an epoch from the corruption of its row i. Not 0:
# NumPy gives (a, b) and (a, b, 0) the same stream.
ORDER_STREAM = 1
ROUNDS = 4  # Of the cipher that permutes; as many as Grain's own shuffle has.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
  """The order of rows, and the random generator of each.

  Attributes:
    seed: determines both; not negative.
    shuffle: whether rows are permuted.
  """

  seed: int
  shuffle: bool

  def __post_init__(self):
    if self.seed < 0:
      raise ValueError(
        f"seed={self.seed} must not be negative: set --gin.RANDOM_SEED"
      )

  def locate(self, position: int, num_rows: int) -> tuple[int, int]:
    """The epoch of an example, and the index of its row in that epoch.

    Args:
      position: number of the example in the endless stream, counted from 0.
      num_rows: rows in an epoch.
    """
    epoch, place = divmod(position, num_rows)
    if not self.shuffle:
      return epoch, place
    seed = _epoch_seed(self.seed, epoch)
    return epoch, index_shuffle(place, num_rows - 1, seed, ROUNDS)

  def rng(self, epoch: int, index: int) -> np.random.Generator:
    """The generator that corrupts row `index` of an epoch."""
    return row_generator(self.seed, epoch, index)


@functools.lru_cache
def _epoch_seed(seed: int, epoch: int) -> int:
  """A seed of 32 bits, as many as the permutation takes."""
  sequence = np.random.SeedSequence([seed, epoch, ORDER_STREAM])
  return int(sequence.generate_state(1)[0])
