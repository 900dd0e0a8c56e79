"""Batches of a mixture of tasks, in fixed proportions."""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from raptr_jax.contracts import Batch, Dataset
from raptr_jax.tasks.mixture import Mixture


class MixtureDataset:
  """Batches of a mixture of tasks, in which each task has a fixed share.

  Each part has its own order, epochs and randomness. A batch holds the examples
  of the first part, then those of the second, and so on. Shares are multiples
  of the number of hosts, and each host reads an equal part of every share.

  Attributes:
    batch_size: examples in a batch, over all hosts.
    parts: a dataset for each task of the mixture.
  """

  def __init__(
    self,
    *,
    mixture: Mixture,
    part_dataset: Callable[..., Dataset],
    batch_size: int,
    seed: int,
  ):
    """Builds the datasets of the parts; reads no data yet.

    Args:
      mixture: the tasks and their rates.
      part_dataset: builds the dataset of a part from `task`, `batch_size` and
        `seed`, such as a `StreamingDataset` whose other arguments are bound.
      batch_size: examples in a batch, over all hosts.
      seed: seed of order and corruption.

    Raises:
      ValueError: `batch_size` cannot be divided among parts and hosts.
    """
    self.batch_size = batch_size
    self.parts = tuple(
      # No two parts share a seed, even if mixtures differ in theirs.
      part_dataset(
        task=task,
        batch_size=share,
        seed=seed * len(mixture.tasks) + number,
      )
      for number, (task, share) in enumerate(
        zip(mixture.tasks, mixture.shares(batch_size, jax.process_count()))
      )
    )

  def open(self) -> None:
    """Opens all parts; raises what they raise."""
    for part in self.parts:
      part.open()

  @property
  def example_kinds(self) -> tuple[str, ...]:
    """Example kinds of the objective, which the parts share."""
    return self.parts[0].example_kinds

  @property
  def num_examples(self) -> int | None:
    """Rows in an epoch, summed over the parts; None if unknown."""
    sizes = [part.num_examples for part in self.parts]
    return None if None in sizes else sum(size for size in sizes if size)

  @property
  def unigram_counts(self) -> np.ndarray | None:
    """float64[V], the parts' token counts, weighted by their shares of a batch.

    Scaled to sum to the total count; None if a part does not know its counts.
    """
    found = [part.unigram_counts for part in self.parts]
    counts = [count for count in found if count is not None]
    if len(counts) < len(found):
      return None
    shares = [part.batch_size / self.batch_size for part in self.parts]
    weighted = [s * c / c.sum() for s, c in zip(shares, counts)]
    return sum(weighted) * sum(c.sum() for c in counts)

  def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a batch over all hosts; reads no data."""
    return {
      name: jax.ShapeDtypeStruct((self.batch_size, *x.shape[1:]), x.dtype)
      for name, x in self.parts[0].batch_spec().items()
    }

  def batches(self, start: int) -> Iterator[Batch]:
    """This host's part of batch `start`, `start + 1`, ... without end."""
    for batches in zip(*(part.batches(start) for part in self.parts)):
      yield {
        name: np.concatenate([batch[name] for batch in batches])
        for name in batches[0]
      }
