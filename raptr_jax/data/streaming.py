"""Batches streamed through seqio, for corpora too large to prepare."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from raptr_jax.contracts import Batch
from raptr_jax.data.text_dataset import TextDataset
from raptr_jax.tasks.objectives.packing import Row
from raptr_jax.tasks.text.vocabulary import Vocabulary

# Separates the permutation of a window from the corruption of a row.
WINDOW_STREAM = 1


@dataclasses.dataclass(kw_only=True, eq=False)
class StreamingDataset(TextDataset):
  """Batches from the seqio pipelines of the tasks.

  Every host runs the whole pipeline and keeps its part of each batch. Starting
  at batch n tokenises and drops all earlier rows: slow, but exact. A window of
  consecutive rows is held in memory and permuted. A task without a given
  vocabulary uses the one trained during preparation.

  Attributes:
    shuffle_window: number of consecutive rows that are permuted together.
    num_examples: None, since a stream does not know its length.
    unigram_counts: None, likewise.
  """

  num_examples: ClassVar[None] = None
  unigram_counts: ClassVar[None] = None

  shuffle_window: int = 65_536

  def __post_init__(self):
    super().__post_init__()
    if self.shuffle_window < 1:
      raise ValueError(
        f"shuffle_window={self.shuffle_window} must be at least 1: set "
        "--gin.streaming.StreamingDataset.shuffle_window"
      )

  def open(self) -> None:
    """Registers the seqio tasks.

    Raises:
      NotPreparedError: the vocabulary does not exist.
      ModuleNotFoundError: the extra `data` is not installed.
    """
    _ = self._seqio_tasks

  @functools.cached_property
  def _vocabulary(self) -> Vocabulary:
    return self.task.vocabulary(self.data_dir)

  @functools.cached_property
  def _seqio_tasks(self) -> list[Any]:
    return [part.seqio_task(self._vocabulary) for part in self.task.parts]

  def batches(self, start: int) -> Iterator[Batch]:
    """This host's part of batch `start`, `start + 1`, ... without end.

    Raises:
      ValueError: an epoch has no rows.
    """
    corrupt = self.task.objective.corruption(
      self._vocabulary, self.feature_lengths
    )
    skipped = self._interleaving.before(start)
    streams = [
      itertools.islice(self._rows(part), int(skipped[part]), None)
      for part in range(len(self.task.parts))
    ]
    begin, end = self._host.begin, self._host.begin + self._host.size
    for batch in itertools.count(start):
      first = batch * self.batch_size
      # Each stream is endless, so a batch is always full.
      drawn = [
        (part, *next(streams[part]))
        for part, _ in map(
          self._interleaving.locate, range(first, first + self.batch_size)
        )
      ]
      examples = [
        corrupt(row, self._orders[part].rng(epoch, index))
        for part, epoch, index, row in drawn[begin:end]
      ]
      yield {
        key: np.stack([example[key] for example in examples])
        for key in examples[0]
      }

  def _rows(self, part: int) -> Iterator[tuple[int, int, Row]]:
    """Epoch, index and row of a task's examples of all hosts, without end."""
    order = self._orders[part]
    for epoch in itertools.count():
      num_rows = 0
      windows = _chunks(self._epoch(part), self.shuffle_window)
      for number, window in enumerate(windows):
        places = np.arange(len(window))
        if order.shuffle:
          seeds = [order.seed, epoch, number, WINDOW_STREAM]
          places = np.random.default_rng(seeds).permutation(len(window))
        for place in places:
          yield epoch, num_rows + int(place), window[place]
        num_rows += len(window)
      self._check_size(self.task.parts[part], num_rows)

  def _epoch(self, part: int) -> Iterator[Row]:
    """The rows of a task's split, in the source's order."""
    row_length = self.task.objective.row_length(self.feature_lengths)
    dataset = self._seqio_tasks[part].get_dataset(
      sequence_length={"inputs": row_length}, split=self.split, shuffle=False
    )
    for row in dataset.as_numpy_iterator():
      yield Row(row["inputs"], row["segment_lengths"])


def _chunks(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
  """Lists of `size` rows; the last may be shorter."""
  while chunk := list(itertools.islice(rows, size)):
    yield chunk
