"""Batches from prepared records, with random access to any position."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import grain
import jax
import numpy as np
from absl import flags

from raptr_jax.contracts import Batch
from raptr_jax.data.order import Order
from raptr_jax.data.text_dataset import READ_AHEAD, TextDataset, joined_counts
from raptr_jax.tasks import files
from raptr_jax.tasks.files import AnyPath
from raptr_jax.tasks.objectives.objective import Corruption
from raptr_jax.tasks.prepared import records
from raptr_jax.tasks.task import NotPreparedError, TextTask

ENDLESS = 2**62  # Grain's ranges must end; no run gets this far.


@dataclasses.dataclass(kw_only=True, eq=False)
class PreparedDataset(TextDataset):
  """Batches from the records that `tasks/prepared/prepare.py` writes.

  Starts at any batch immediately, and needs neither TensorFlow nor seqio. A
  batch may span epochs: several, if they are small.
  """

  def open(self) -> None:
    """Opens the records.

    Raises:
      NotPreparedError: a task is not prepared.
      OSError: a shard is damaged.
      ValueError: the records do not fit the task, or there are none.
    """
    _ = self._parts

  @functools.cached_property
  def _parts(self) -> "list[_Examples]":
    return [
      self._open(part, order)
      for part, order in zip(self.task.parts, self._orders, strict=True)
    ]

  def _open(self, task: TextTask, order: Order) -> "_Examples":
    folder = task.folder(self.data_dir)
    metadata = records.load_metadata(folder)
    records.check_settings(
      folder, metadata.settings, task.settings(self.feature_lengths)
    )
    records.check_vocabulary(
      folder / task.vocabulary_file, metadata.vocabulary_fingerprint
    )
    vocabulary = task.prepared_vocabulary(folder)
    sizes = records.split_metadata(folder, self.split, metadata)
    self._check_size(task, sizes.rows)
    paths = records.shard_paths(folder, self.split, metadata)
    return _Examples(
      order=order,
      num_rows=sizes.rows,
      vocabulary_fingerprint=metadata.vocabulary_fingerprint,
      unigram_counts=records.load_counts(folder / records.UNIGRAM_COUNTS),
      corrupt=task.objective.corruption(vocabulary, self.feature_lengths),
      rows=_Rows(paths, sizes.rows),
    )

  def _check_size(self, task: TextTask, num_rows: int) -> None:
    """Warns if a batch has several epochs of a task.

    Raises:
      ValueError: an epoch has no rows.
    """
    if not num_rows:
      raise ValueError(
        f"the {self.split} split of {task.name} has no rows: provide more text"
      )
    share = self._interleaving.shares[self.task.parts.index(task)]
    times = self.batch_size * share / num_rows
    if times > 1 and jax.process_index() == 0:
      rows = "1 row" if num_rows == 1 else f"{num_rows} rows"
      print(
        f"{self.split} of {task.name}: {rows}, so each batch of "
        f"{self.batch_size} reads every row {times:.3g} times"
      )

  @property
  def num_examples(self) -> int | None:
    """Rows of all tasks together; None before they are prepared."""
    try:
      return sum(part.num_rows for part in self._parts)
    except NotPreparedError:
      return None

  @property
  def unigram_counts(self) -> np.ndarray | None:
    """float64[V], token counts of the train split; 0 for special ids."""
    counts = [part.unigram_counts for part in self._parts]
    return joined_counts(counts, self._interleaving.shares)

  @property
  def vocabulary_fingerprint(self) -> str:
    """SHA-256 of the vocabulary that encoded the rows, which all parts share."""
    return self._parts[0].vocabulary_fingerprint

  def files(self) -> list[AnyPath]:
    """The shards of all tasks."""
    return [path for part in self._parts for path in part.rows.paths]

  def check_file(self, path: AnyPath) -> None:
    """Reads a shard whole.

    Raises:
      OSError: it is damaged.
    """
    records.check_shard(path, len(self._parts[0].unigram_counts))

  def batches(self, start: int) -> Iterator[Batch]:
    """This host's part of batch `start`, `start + 1`, ... without end."""
    self.open()
    numbers = grain.MapDataset.range(start * self._host.size, ENDLESS)
    batches = numbers.map(self._example).batch(self._host.size)
    if self.workers:
      if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's settings for its processes.
      processes = grain.multiprocessing.MultiprocessingOptions(
        num_workers=self.workers
      )
      return iter(batches.to_iter_dataset().mp_prefetch(processes))
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=READ_AHEAD)
    return iter(batches.to_iter_dataset(reading))

  def _example(self, number: int) -> dict[str, np.ndarray]:
    """Example `number` of this host's share."""
    batch, place = divmod(number, self._host.size)
    position = batch * self.batch_size + self._host.begin + place
    part, position = self._interleaving.locate(position)
    return self._parts[part].example(position)


@dataclasses.dataclass(frozen=True)
class _Examples:
  """The opened records of a task, as an endless row of examples."""

  order: Order
  num_rows: int
  vocabulary_fingerprint: str
  unigram_counts: np.ndarray
  corrupt: Corruption
  rows: "_Rows"

  def example(self, position: int) -> dict[str, np.ndarray]:
    epoch, index = self.order.locate(position, self.num_rows)
    record = self.rows[index]
    try:
      row = records.decode_row(record)
      records.check_ids(row, len(self.unigram_counts))
    except ValueError as error:
      raise records.damaged(self.rows.shard(index), error) from error
    return self.corrupt(row, self.order.rng(epoch, index))


class _Rows:
  """The records of a split.

  A damaged shard raises an OSError with its name: all that is read carries a
  hash.

  Attributes:
    paths: of its shards.
  """

  def __init__(self, paths: Sequence[AnyPath], num_rows: int):
    self.paths = paths
    local = [str(path) for path in files.local_copies(paths)]
    try:
      self._source = grain.sources.ArrayRecordDataSource(local)
      found = len(self._source)
    except RuntimeError:
      records.num_rows(paths)  # Raises for the one that is damaged.
      raise
    if found != num_rows:
      folder = paths[0].parent
      raise ValueError(
        f"the shards in {folder} have {found:,} rows, but {records.METADATA} "
        f"says {num_rows:,}: delete {folder} and prepare again"
      )

  def __getitem__(self, index: int) -> bytes:
    try:
      record: bytes = self._source[index]
    except RuntimeError as error:
      raise records.damaged(self.shard(index), error) from error
    return record

  def shard(self, index: int) -> AnyPath:
    """The shard that has a row."""
    for path in self.paths[:-1]:
      count = records.num_rows([path])
      if index < count:
        return path
      index -= count
    return self.paths[-1]
