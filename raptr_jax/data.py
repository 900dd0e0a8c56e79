"""Batches for training: from prepared records, or streamed through seqio.

Both ways in have one order and one randomness, a pure function of seed, epoch
and row (see `tasks.order`): over the same rows they give the same batches,
bit for bit. The position is one integer, the number of the next batch.
Example number `batch * batch_size + i` is the same whatever the number of
hosts; each host gets a contiguous part of every batch.

A mixture joins the batches of its parts, each smaller and with a position of
its own: every batch has the same share of rows of each. The shares, and the
order within a batch, depend on the number of hosts.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from raptr_jax.contracts import Batch, Dataset
from tasks import records, sources
from tasks.mixture import Mixture
from tasks.order import Order
from tasks.packing import Row
from tasks.task import Corruption, TextTask
from tasks.vocabulary import Vocabulary

# Batches that are made ready while the device computes.
READ_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
ENDLESS = 2**62  # A range of Grain has an end; no run gets there.


@dataclasses.dataclass(frozen=True)
class HostPart:
  """The part of every batch that this host reads.

  Attributes:
    begin: its first example in the batch.
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


class _TaskDataset:
  """What both ways in share: their arguments.

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
    """Says what to read; reads nothing yet.

    Args:
      task: the task.
      data_dir: folder of all prepared tasks.
      feature_lengths: lengths of the features of a batch.
      batch_size: examples in a batch, over all hosts.
      seed: seed of the order and of the corruption.
      split: a split of the task's source.
      shuffle: whether rows are permuted.
      shuffle_window: consecutive rows that are permuted together.

    Raises:
      ValueError: arguments do not fit each other.
    """
    sources.check_split(split, task.source)
    self.batch_size = batch_size
    self._task = task
    self._data_dir = data_dir
    self._folder = Path(data_dir).expanduser() / task.name
    self._feature_lengths = dict(feature_lengths)
    self._split = split
    self._part = HostPart.of(batch_size)
    self._order = Order(seed=seed, shuffle=shuffle, window=shuffle_window)

  @property
  def kinds(self) -> tuple[str, ...]:
    """What the feature `kind` counts: the kinds of the task's objective."""
    return self._task.objective.kinds

  def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a batch over all hosts; reads no data."""
    features = self._task.objective.features(self._feature_lengths)
    return {
      name: jax.ShapeDtypeStruct((self.batch_size, length), dtype)
      for name, (length, dtype) in features.items()
    }

  def _check_size(self, num_rows: int) -> None:
    """Raises ValueError if an epoch of so many rows is no whole batch."""
    if num_rows < self.batch_size:
      raise ValueError(
        f"the {self._split} split of {self._task.name} has {num_rows} rows, "
        f"less than one batch of BATCH_SIZE={self.batch_size}: set a smaller "
        "--gin.BATCH_SIZE or take more text"
      )


class PreparedDataset(_TaskDataset):
  """Batches from the records that scripts/prepare.py has written.

  Starting at any batch is immediate. Neither TensorFlow nor seqio is needed.
  """

  def open(self) -> None:
    """Opens the records.

    Raises:
      FileNotFoundError: the task is not prepared.
      ValueError: the records do not fit the task.
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
    except FileNotFoundError:
      return None

  @property
  def unigram_counts(self) -> np.ndarray | None:
    """int64[V], tokens of the train split without special ones."""
    return self._records.unigram_counts

  def batches(self, start: int) -> Iterator[Batch]:
    """This host's part of batch `start`, `start + 1`, ... without end."""
    numbers = grain.MapDataset.range(start * self._part.size, ENDLESS)
    batches = numbers.map(self._example).batch(self._part.size)
    return iter(batches.to_iter_dataset(READ_AHEAD))

  def _example(self, number: int) -> dict[str, np.ndarray]:
    """Example `number` of those that fall to this host."""
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


class StreamingDataset(_TaskDataset):
  """Batches from the task's seqio pipeline, for corpora too large to write.

  Every host runs the whole pipeline and keeps its part of each batch. To
  start at batch n, the rows before it are tokenised and dropped: slow, but
  exact. A window of rows is held in memory. A task without a vocabulary of
  its own takes the one that scripts/prepare.py has trained.

  Attributes:
    num_examples: None: the stream does not tell.
    unigram_counts: None: the stream does not tell.
  """

  num_examples = None
  unigram_counts = None

  def open(self) -> None:
    """Registers the seqio task.

    Raises:
      FileNotFoundError: there is no vocabulary.
      ModuleNotFoundError: the extra packages are not installed.
    """
    _ = self._seqio_task

  @functools.cached_property
  def _vocabulary(self) -> Vocabulary:
    return self._task.vocabulary(self._data_dir)

  @functools.cached_property
  def _seqio_task(self) -> Any:
    return self._task.seqio_task(self._vocabulary)

  def batches(self, start: int) -> Iterator[Batch]:
    """This host's part of batch `start`, `start + 1`, ... without end.

    Raises:
      ValueError: an epoch is smaller than a batch.
    """
    corrupt = self._task.objective.corruption(
      self._vocabulary, self._feature_lengths
    )
    rows = itertools.islice(self._rows(), start * self.batch_size, None)
    begin, end = self._part.begin, self._part.begin + self._part.size
    while True:
      # Without end: a batch is always full.
      mine = list(itertools.islice(rows, self.batch_size))[begin:end]
      examples = [
        corrupt(row, self._order.rng(epoch, index))
        for epoch, index, row in mine
      ]
      yield {
        key: np.stack([example[key] for example in examples])
        for key in examples[0]
      }

  def _rows(self) -> Iterator[tuple[int, int, Row]]:
    """Epoch, index and row of the examples of all hosts, without end."""
    for epoch in itertools.count():
      num_rows = 0
      windows = _chunks(self._epoch(), self._order.window)
      for number, window in enumerate(windows):
        places = self._order.permutation(epoch, number, len(window))
        for place in places:
          yield epoch, num_rows + int(place), window[place]
        num_rows += len(window)
      self._check_size(num_rows)

  def _epoch(self) -> Iterator[Row]:
    """The rows of the split in the order of the source."""
    row_length = self._task.objective.row_length(self._feature_lengths)
    dataset = self._seqio_task.get_dataset(
      sequence_length={"inputs": row_length}, split=self._split, shuffle=False
    )
    for row in dataset.as_numpy_iterator():
      yield Row(row["inputs"], row["segment_lengths"])


def _chunks(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
  """Lists of `size` rows; the last may be shorter."""
  while chunk := list(itertools.islice(rows, size)):
    yield chunk


class MixtureDataset:
  """Batches of a mixture of tasks, with fixed shares of rows.

  Each part has its own order, its own epochs, and its own randomness. A batch
  has the rows of the first part first, then those of the second, and so on.
  The shares are multiples of the number of hosts, each of which reads its part
  of every share.

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
    """Says what to read; reads nothing yet.

    Args:
      mixture: the tasks and their rates.
      part_dataset: called with `task`, `batch_size` and `seed`, gives the
        dataset of a part, as `StreamingDataset` does with its other arguments.
      batch_size: examples in a batch, over all hosts.
      seed: seed of the order and of the corruption.

    Raises:
      ValueError: the hosts and the parts cannot share a batch.
    """
    self.batch_size = batch_size
    self.parts = tuple(
      # No two parts, of whatever seeds, have the same randomness.
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
    """Opens the parts; raises what they raise."""
    for part in self.parts:
      part.open()

  @property
  def kinds(self) -> tuple[str, ...]:
    """The kinds of rows of the objective, which the parts have in common."""
    return self.parts[0].kinds

  @property
  def num_examples(self) -> int | None:
    """Rows of all parts, though each has epochs of its own; None: unknown."""
    sizes = [part.num_examples for part in self.parts]
    return None if None in sizes else sum(size for size in sizes if size)

  @property
  def unigram_counts(self) -> np.ndarray | None:
    """float64[V], shares of the tokens in the mixture; they sum to the counts.

    None if a part does not know its counts.
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
