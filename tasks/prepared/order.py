"""The order of training examples: a pure function of seed, epoch and position.

Rows are permuted within windows of consecutive rows; an epoch's last window may
be shorter. The order does not depend on where a run starts, how many hosts
read, or whether rows come from records or a stream.
"""

import dataclasses
import functools

import numpy as np

# Separates the permutation of window i from the corruption of row i. Not 0:
# NumPy gives (a, b) and (a, b, 0) the same stream.
WINDOW_STREAM = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
  """The order of rows, and the random generator of each.

  Attributes:
    seed: determines both; not negative.
    shuffle: whether rows are permuted.
    window: number of consecutive rows that are permuted together.
  """

  seed: int
  shuffle: bool
  window: int

  def __post_init__(self):
    if self.seed < 0:
      raise ValueError(
        f"seed={self.seed} must not be negative: set --gin.RANDOM_SEED"
      )
    if self.window < 1:
      raise ValueError(
        f"shuffle_window={self.window} must be at least 1: set the dataset's "
        "gin binding of `shuffle_window`"
      )

  def locate(self, position: int, num_rows: int) -> tuple[int, int]:
    """The epoch of an example, and the index of its row in that epoch.

    Args:
      position: number of the example in the endless stream, counted from 0.
      num_rows: rows in an epoch.
    """
    epoch, offset = divmod(position, num_rows)
    number, place = divmod(offset, self.window)
    begin = number * self.window
    size = min(self.window, num_rows - begin)
    return epoch, begin + int(self.permutation(epoch, number, size)[place])

  def permutation(self, epoch: int, number: int, size: int) -> np.ndarray:
    """int[size], the order of rows within window `number`."""
    if not self.shuffle:
      return np.arange(size)
    return _permutation(self.seed, epoch, number, size)

  def rng(self, epoch: int, index: int) -> np.random.Generator:
    """The generator that corrupts row `index` of an epoch."""
    return np.random.default_rng([self.seed, epoch, index])


# Concurrent readers may need the end of one window and the start of the next.
@functools.lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, number: int, size: int) -> np.ndarray:
  rng = np.random.default_rng([seed, epoch, number, WINDOW_STREAM])
  return rng.permutation(size)
