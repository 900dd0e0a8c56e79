"""Which task of a mixture an example comes from: a function of its number.

Every batch has as many examples of a task as its rate asks for, rounded down or
up, and the rounding evens out. Nothing is random, and nothing depends on how
many hosts read, or on where they start.
"""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int

# The finest rates, which also bounds how many batches pass until all repeats.
MOST_WEIGHT = 10_000
GOLDEN = (math.sqrt(5) - 1) / 2


def whole_weights(rates: Sequence[float]) -> tuple[int, ...]:
  """Rates as whole numbers: exactly, or as parts of `MOST_WEIGHT`.

  Args:
    rates: positive numbers; 0.3 means three tenths, and not the binary number
      that is nearest to them.
  """
  exact = [Fraction(str(rate)) for rate in rates]
  common = math.lcm(*(rate.denominator for rate in exact))
  weights = [int(rate * common) for rate in exact]
  divisor = math.gcd(*weights)
  weights = [weight // divisor for weight in weights]
  if sum(weights) <= MOST_WEIGHT:
    return tuple(weights)
  ends = [
    round(Fraction(end, sum(weights)) * MOST_WEIGHT)
    for end in np.cumsum(np.array(weights, object))
  ]
  return tuple(max(int(w), 1) for w in np.diff(ends, prepend=0))


class Interleaving:
  """The tasks of a mixture, in turn.

  After a whole number of batches, a cycle, all repeats, and each task has had
  exactly its share. A batch takes the whole examples of a task's share, and
  the rest by systematic sampling: the fractions that are left are laid out on a
  line, and examples are taken at points one example apart. The first point
  moves on by the golden ratio from batch to batch, and visits each place of the
  line once a cycle.

  Attributes:
    shares: float64[tasks], share of each task; they sum to 1.
  """

  def __init__(self, rates: Sequence[float], batch_size: int):
    """Computes a cycle, of at most `MOST_WEIGHT` batches.

    Args:
      rates: relative frequency of each task.
      batch_size: examples in a batch, over all hosts.
    """
    weights = np.array(whole_weights(rates))
    self.shares = weights / weights.sum()
    self._batch_size = batch_size
    self._counts = _counts(weights, batch_size)
    # Examples of each task before a batch of the cycle, and in all of it.
    self._before = np.cumsum(self._counts, 0) - self._counts
    self._cycle = self._counts.sum(0)

  def before(self, batch: int) -> Int[np.ndarray, "tasks"]:
    """How many examples of each task come before a batch."""
    cycle, place = divmod(batch, len(self._counts))
    return cycle * self._cycle + self._before[place]

  def locate(self, number: int) -> tuple[int, int]:
    """The task of an example, and its number among the examples of that task.

    Args:
      number: number of the example in the endless stream, counted from 0.
    """
    batch, place = divmod(number, self._batch_size)
    counts = self._counts[batch % len(self._counts)]
    tasks, ranks = _places(tuple(counts.tolist()))
    task = int(tasks[place])
    return task, int(self.before(batch)[task]) + int(ranks[place])


@functools.lru_cache
def _places(
  counts: tuple[int, ...],
) -> tuple[Int[np.ndarray, "B"], Int[np.ndarray, "B"]]:
  """The task at each place of a batch, and how many of it precede the place.

  The examples of a task are spread over the batch, since hosts read consecutive
  parts of it.
  """
  tasks = np.repeat(np.arange(len(counts)), counts)
  ends = np.cumsum(counts)
  ranks = np.arange(len(tasks)) - np.repeat(ends - counts, counts)
  order = np.argsort((ranks + 0.5) / np.array(counts)[tasks], kind="stable")
  return tasks[order], ranks[order]


def _counts(
  weights: Int[np.ndarray, "tasks"], batch_size: int
) -> Int[np.ndarray, "batches tasks"]:
  """Examples of each task, in each batch of a cycle."""
  total = int(weights.sum())
  unit = math.gcd(batch_size, total)
  batches = total // unit  # As long as an example, in units.
  whole, left = np.divmod(batch_size * weights, total)
  ends = np.cumsum(left // unit)
  stride = next(
    n
    for n in range(max(round(GOLDEN * batches), 1), 2 * batches)
    if math.gcd(n, batches) == 1
  )
  first = np.arange(batches) * stride % batches
  counts = np.tile(whole, (batches, 1))
  for point in range(int(ends[-1]) // batches):
    owners = np.searchsorted(ends, first + point * batches, side="right")
    counts[np.arange(batches), owners] += 1
  return counts
