"""Batches from prepared records, with random access to any position."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from raptr_jax.contracts import Batch
from raptr_jax.data.task_dataset import TaskDataset
from raptr_jax.tasks.objectives.objective import Corruption
from raptr_jax.tasks.prepared import records
from raptr_jax.tasks.task import NotPreparedError

# Batches to prepare while the device computes.
READ_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
ENDLESS = 2**62  # Grain's ranges must end; no run gets this far.


class PreparedDataset(TaskDataset):
  """Batches from the records that `tasks/prepared/prepare.py` writes.

  Starts at any batch immediately, and needs neither TensorFlow nor seqio. A
  batch may span epochs: several, if they are small.
  """

  def open(self) -> None:
    """Opens the records.

    Raises:
      NotPreparedError: the task is not prepared.
      ValueError: the records do not fit the task, or there are none.
    """
    _ = self._records

  @functools.cached_property
  def _records(self) -> "_Records":
    task, folder = self._task, self._folder
    metadata = records.load_metadata(folder)
    records.check_settings(
      folder, metadata.settings, task.settings(self._feature_lengths)
    )
    records.check_vocabulary(
      folder / task.vocabulary_file, metadata.vocabulary_fingerprint
    )
    vocabulary = task.prepared_vocabulary(folder)
    num_rows = metadata.splits[self._split].rows
    self._check_size(num_rows)
    paths = records.shard_paths(folder, self._split, metadata)
    return _Records(
      num_rows=num_rows,
      unigram_counts=np.load(folder / records.UNIGRAM_COUNTS),
      corrupt=task.objective.corruption(vocabulary, self._feature_lengths),
      rows=grain.sources.ArrayRecordDataSource([str(path) for path in paths]),
    )

  @property
  def num_examples(self) -> int | None:
    """Rows in an epoch; None before the task is prepared."""
    try:
      return self._records.num_rows
    except NotPreparedError:
      return None

  @property
  def unigram_counts(self) -> np.ndarray | None:
    """int64[V], token counts of the train split; 0 for special ids."""
    return self._records.unigram_counts

  def batches(self, start: int) -> Iterator[Batch]:
    """This host's part of batch `start`, `start + 1`, ... without end."""
    numbers = grain.MapDataset.range(start * self._part.size, ENDLESS)
    batches = numbers.map(self._example).batch(self._part.size)
    return iter(batches.to_iter_dataset(READ_AHEAD))

  def _example(self, number: int) -> dict[str, np.ndarray]:
    """Example `number` of this host's share."""
    batch, place = divmod(number, self._part.size)
    position = batch * self.batch_size + self._part.begin + place
    data = self._records
    epoch, index = self._order.locate(position, data.num_rows)
    row = records.decode_row(data.rows[index])
    return data.corrupt(row, self._order.rng(epoch, index))


@dataclasses.dataclass(frozen=True)
class _Records:
  """The opened records of a split."""

  num_rows: int
  unigram_counts: np.ndarray
  corrupt: Corruption
  rows: Sequence[bytes]
