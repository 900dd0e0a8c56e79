"""What datasets of text have in common, prepared and streamed."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from raptr_jax.data.interleaving import Interleaving
from raptr_jax.data.order import Order
from raptr_jax.tasks import files
from raptr_jax.tasks.mixture import Mixture
from raptr_jax.tasks.objectives.randomness import part_seed
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text import sources

READ_AHEAD = 4  # Batches that are made while the device computes.


@dataclasses.dataclass(frozen=True)
class HostPart:
  """The part of every batch that this host reads.

  Attributes:
    begin: index of its first example in the batch.
    size: number of its examples.
  """

  begin: int
  size: int

  @classmethod
  def of(cls, batch_size: int) -> "HostPart":
    """This host's part of batches of `batch_size`.

    Raises:
      ValueError: the hosts cannot share a batch evenly.
    """
    hosts = jax.process_count()
    if batch_size < 1 or batch_size % hosts:
      raise ValueError(
        f"BATCH_SIZE={batch_size} must be a positive multiple of the number "
        f"of hosts, {hosts}: set --gin.BATCH_SIZE"
      )
    size = batch_size // hosts
    return cls(begin=jax.process_index() * size, size=size)


@dataclasses.dataclass(kw_only=True, eq=False)
class TextDataset:
  """The arguments of a dataset of text, and the shapes of its batches.

  Constructing one reads no data.

  Attributes:
    task: a task, or a mixture of tasks.
    data_dir: folder of all prepared tasks.
    feature_lengths: lengths of the features of a batch.
    batch_size: examples in a batch, over all hosts.
    seed: seed of order and corruption. No two tasks of a mixture share their
      randomness, even if mixtures differ in their seeds.
    split: a split of the sources of all tasks.
    shuffle: whether rows are permuted.
    workers: processes that do the work; 0 for a thread of this one. The batches
      are the same.
  """

  task: TextTask | Mixture
  data_dir: str
  feature_lengths: Mapping[str, int]
  batch_size: int
  seed: int
  split: str = "train"
  shuffle: bool = True
  workers: int = 0

  def __post_init__(self):
    files.path("DATA_DIR", self.data_dir)  # Raises for what cannot be read.
    if self.workers < 0:
      raise ValueError(
        f"DATA_WORKERS={self.workers} must not be negative: set "
        "--gin.DATA_WORKERS"
      )
    for part in self.task.parts:
      sources.check_split(self.split, part.source)
    self._host = HostPart.of(self.batch_size)
    self._interleaving = Interleaving(self.task.rates, self.batch_size)
    parts = len(self.task.parts)
    self._orders = [
      Order(seed=part_seed(self.seed, number, parts), shuffle=self.shuffle)
      for number in range(parts)
    ]

  @property
  def example_kinds(self) -> tuple[str, ...]:
    """Names of the example kinds that the task's objective makes."""
    return self.task.objective.example_kinds

  def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a batch over all hosts; reads no data."""
    features = self.task.objective.features(self.feature_lengths)
    return {
      name: jax.ShapeDtypeStruct((self.batch_size, length), dtype)
      for name, (length, dtype) in features.items()
    }


def joined_counts(
  counts: Sequence[np.ndarray], shares: np.ndarray
) -> np.ndarray:
  """float64[V], token counts of tasks, weighted by their shares of a batch.

  Scaled to sum to the total count.
  """
  sizes = [count.sum() for count in counts]
  joined: np.ndarray = sum(
    share * (sum(sizes) / size) * count
    for share, size, count in zip(shares, sizes, counts, strict=True)
  )
  return joined
