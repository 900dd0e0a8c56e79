"""Batches streamed through seqio, for corpora too large to prepare."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from raptr_jax.contracts import Batch
from raptr_jax.data.task_dataset import TaskDataset
from raptr_jax.tasks.objectives.packing import Row
from raptr_jax.tasks.text.vocabulary import Vocabulary


class StreamingDataset(TaskDataset):
  """Batches from the task's seqio pipeline.

  Every host runs the whole pipeline and keeps its part of each batch. Starting
  at batch n tokenises and drops all earlier rows: slow, but exact. One window
  of rows is held in memory. A task without a given vocabulary uses the one
  trained during preparation.

  Attributes:
    num_examples: None, since a stream does not know its length.
    unigram_counts: None, likewise.
  """

  num_examples = None
  unigram_counts = None

  def open(self) -> None:
    """Registers the seqio task.

    Raises:
      NotPreparedError: the vocabulary does not exist.
      ModuleNotFoundError: the extra `data` is not installed.
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
      ValueError: an epoch has no rows.
    """
    corrupt = self._task.objective.corruption(
      self._vocabulary, self._feature_lengths
    )
    rows = itertools.islice(self._rows(), start * self.batch_size, None)
    begin, end = self._part.begin, self._part.begin + self._part.size
    while True:
      # `rows` is endless, so a batch is always full.
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
    """The rows of the split, in the source's order."""
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
