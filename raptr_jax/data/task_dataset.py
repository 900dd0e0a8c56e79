"""What the datasets of one task, prepared and streamed, have in common."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax

from raptr_jax.tasks.prepared.order import Order
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text import sources


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


class TaskDataset:
  """The arguments of a dataset of one task, and the shapes of its batches.

  Attributes:
    batch_size: examples in a batch, over all hosts.
  """

  def __init__(
    self,
    *,
    task: TextTask,
    data_dir: str,
    feature_lengths: Mapping[str, int],
    batch_size: int,
    seed: int,
    split: str = "train",
    shuffle: bool = True,
    shuffle_window: int = 65_536,
  ):
    """Stores the arguments; reads no data yet.

    Args:
      task: the task.
      data_dir: folder of all prepared tasks.
      feature_lengths: lengths of the features of a batch.
      batch_size: examples in a batch, over all hosts.
      seed: seed of order and corruption.
      split: a split of the task's source.
      shuffle: whether rows are permuted.
      shuffle_window: number of consecutive rows that are permuted together.

    Raises:
      ValueError: the split is unknown, `batch_size` cannot be divided among the
        hosts, `seed` is negative, or `shuffle_window` is below 1.
    """
    sources.check_split(split, task.source)
    self.batch_size = batch_size
    self._task = task
    self._data_dir = data_dir
    self._folder = Path(data_dir).expanduser() / task.name
    self._feature_lengths = dict(feature_lengths)
    self._split = split
    self._warned = False
    self._part = HostPart.of(batch_size)
    self._order = Order(seed=seed, shuffle=shuffle, window=shuffle_window)

  @property
  def example_kinds(self) -> tuple[str, ...]:
    """Names of the example kinds that the task's objective makes."""
    return self._task.objective.example_kinds

  def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a batch over all hosts; reads no data."""
    features = self._task.objective.features(self._feature_lengths)
    return {
      name: jax.ShapeDtypeStruct((self.batch_size, length), dtype)
      for name, (length, dtype) in features.items()
    }

  def _check_size(self, num_rows: int) -> None:
    """Warns once if an epoch is smaller than a batch, which then spans several.

    Raises:
      ValueError: an epoch has no rows.
    """
    if not num_rows:
      raise ValueError(
        f"the {self._split} split of {self._task.name} has no rows: provide "
        "more text"
      )
    if num_rows < self.batch_size and not self._warned:
      self._warned = True
      if jax.process_index() == 0:
        rows = "1 row" if num_rows == 1 else f"{num_rows} rows"
        print(
          f"{self._split} of {self._task.name}: {rows}, so each batch of "
          f"{self.batch_size} reads every row "
          f"{self.batch_size / num_rows:.3g} times"
        )
