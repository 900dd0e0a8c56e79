"""Batches made from text while training, for corpora too large to prepare.

Every host reads text of its own, tokenises ahead of the training, and knows its
place. A checkpoint keeps the places of all hosts, and a run that resumes from
it reads no more than a window of rows again. As many hosts as before go on with
the very same batches. Another number of hosts begins with parts of the text
that nobody has begun: no text is repeated before the epoch ends, but parts are
skipped, those in hand and those between the slowest host and the fastest.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import grain
import jax
import numpy as np
from grain.experimental import ThreadPrefetchDatasetIterator
from jaxtyping import Int

from raptr_jax.contracts import Batch
from raptr_jax.data.row_stream import Place, RowStream, StreamedRow, Window
from raptr_jax.data.text_dataset import READ_AHEAD, TextDataset
from raptr_jax.tasks.objectives.packing import Row
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text.vocabularies import open_vocabulary
from raptr_jax.tasks.text.vocabulary import Vocabulary

# A host's place in each task; the fields of `Place`.
Places: TypeAlias = Int[np.ndarray, "tasks 5"]


@dataclasses.dataclass(kw_only=True, eq=False)
class StreamingDataset(TextDataset):
  """Batches of rows that are encoded and packed as they are needed.

  A task without a given vocabulary uses the one trained during preparation. On
  one host, an unshuffled stream gives the batches of prepared records, bit for
  bit. Shuffled, the parts of an epoch come in a random order, and windows of
  rows are permuted.

  Attributes:
    shuffle_window: rows that a host permutes together, of all tasks; up to
      three times as many are in memory. A window is a whole number of blocks of
      documents.
    shared: whether all hosts read the same rows, and each keeps its part of a
      batch. Batches then do not depend on the number of hosts; for held-out
      text, of which little is read.
    num_examples: None, since a stream does not know its length.
    unigram_counts: None, likewise.
  """

  num_examples: ClassVar[None] = None
  unigram_counts: ClassVar[None] = None

  shuffle_window: int = 16_384
  shared: bool = False

  def __post_init__(self):
    super().__post_init__()
    if self.shuffle_window < 1:
      raise ValueError(
        f"shuffle_window={self.shuffle_window} must be at least 1: set "
        "--gin.streaming.StreamingDataset.shuffle_window"
      )
    for part in self.task.parts:
      if part.limits:
        raise ValueError(
          f"{' and '.join(part.limits)}, but {part.name} is streamed, and only "
          "prepared text can be so limited: set --gin.MAX_TOKENS=None and "
          "--gin.TEXT_SHARE=1"
        )

  def open(self) -> None:
    """Opens the vocabulary, and looks for the text.

    Raises:
      NotPreparedError: the vocabulary does not exist.
      OSError: there is no text.
      ValueError: the vocabulary or the text does not fit the task.
    """
    _ = self._vocabulary
    for part in self.task.parts:
      part.source.num_parts()

  @functools.cached_property
  def _vocabulary(self) -> Vocabulary:
    return self.task.vocabulary(self.data_dir)

  @functools.cached_property
  def vocabulary_fingerprint(self) -> str:
    """SHA-256 of the vocabulary that encodes the text."""
    return self._vocabulary.fingerprint()

  def batches(self, start: int) -> "_Batches":
    """This host's part of batch `start`, `start + 1`, ... without end.

    All rows before are read and encoded first: `resume` is faster.
    """
    places = [Place(self._reader) for _ in self.task.parts]
    return self._read_ahead(0, places, dropped=start)

  def resume(
    self, start: int, places: Int[np.ndarray, "hosts tasks 5"]
  ) -> "_Batches":
    """Batches from `start` on, of a run that has read up to these places.

    Args:
      start: number of the next batch.
      places: of all hosts that have read so far.

    Raises:
      FileExistsError: they are of another number of tasks.
    """
    count = len(self.task.parts)
    if places.shape[1:] != (count, len(Place._fields)):
      raise FileExistsError(
        f"the checkpoint has places in {places.shape[1]} tasks, expected "
        f"{count}: undo the change of --gin.TASK, or set another MODEL_DIR"
      )
    if len(places) == self._readers:
      rows = places[self._reader]
    else:
      last = Place._fields.index("last")
      begun = places[:, :, last].max(0)
      rows = [Place(int(part) + 1 + self._reader) for part in begun]
    own = [Place(*map(int, row)) for row in rows]
    return self._read_ahead(start, own)

  @property
  def _readers(self) -> int:
    """The number of hosts that read different text."""
    return 1 if self.shared else jax.process_count()

  @property
  def _reader(self) -> int:
    return 0 if self.shared else jax.process_index()

  def _read_ahead(
    self, start: int, places: Sequence[Place], dropped: int = 0
  ) -> "_Batches":
    """Batches from `start` on, but for the first ones.

    Args:
      start: number of the batch that the places are for.
      places: this host's places in the tasks.
      dropped: number of batches to leave out.
    """
    closed = threading.Event()
    batches = self._batches(start, places, dropped, closed)
    return _Batches(batches, np.array(places), closed)

  def _batches(
    self,
    start: int,
    places: Sequence[Place],
    dropped: int,
    closed: threading.Event,
  ) -> Generator[tuple[Batch, Places]]:
    """What `_read_ahead` reads ahead, each with the places after it."""
    host = slice(self._host.begin, self._host.begin + self._host.size)
    corrupt = self.task.objective.corruption(
      self._vocabulary, self.feature_lengths
    )
    now = list(places)
    with contextlib.ExitStack() as stack:
      rows = self._rows(places, stack, closed)
      stack.callback(closed.set)  # First, also if a source fails.
      for batch in itertools.count(start):
        numbers = range(batch * self.batch_size, (batch + 1) * self.batch_size)
        drawn = []
        for number in numbers if self.shared else numbers[host]:
          part, _ = self._interleaving.locate(number)
          now[part], row = next(rows[part])
          drawn.append((part, row))
        if batch < start + dropped:
          continue
        examples = [
          corrupt(row.row, self._orders[part].rng(row.epoch, row.number))
          for part, row in (drawn[host] if self.shared else drawn)
        ]
        stacked = {
          key: np.stack([example[key] for example in examples])
          for key in examples[0]
        }
        yield stacked, np.array(now)

  def _rows(
    self,
    places: Sequence[Place],
    stack: contextlib.ExitStack,
    closed: threading.Event,
  ) -> list[Iterator[tuple[Place, StreamedRow]]]:
    """Rows of each task from its place on, and the place after each.

    Args:
      places: one for each task.
      stack: ends threads and processes when it is closed.
      closed: set when no more rows are needed.
    """
    pool = None
    if self.workers:
      # Not forked: the program's threads would be missing in the copies.
      context = multiprocessing.get_context("spawn")
      # Ctrl-C is for this process, which ends them.
      pool = concurrent.futures.ProcessPoolExecutor(
        self.workers,
        context,
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
      )
      stack.callback(pool.shutdown, cancel_futures=True)
    rows = []
    for task, order, share, place in zip(
      self.task.parts,
      self._orders,
      self._interleaving.shares,
      places,
      strict=True,
    ):
      stream = RowStream(
        source=task.source,
        split=self.split,
        order=order,
        encode=_Encode(
          task, str(self._vocabulary.path), dict(self.feature_lengths)
        ),
        window=round(self.shuffle_window * share) if self.shuffle else 1,
        host=self._reader,
        hosts=self._readers,
        closed=closed,
        pool=pool,
        processes=self.workers,
      )
      items = _Items(((window, None) for window in stream.windows(place)), None)
      windows = ThreadPrefetchDatasetIterator(items, prefetch_buffer_size=1)
      stack.callback(windows.close)
      rows.append(_taken(windows, place.taken))
    return rows


@dataclasses.dataclass(frozen=True)
class _Encode:
  """Rows of a block of documents; a function that processes can be sent."""

  task: TextTask
  vocabulary_path: str
  feature_lengths: Mapping[str, int]

  def __call__(self, documents: list[str]) -> list[Row]:
    vocabulary = _opened(
      self.vocabulary_path, self.task.lower_case, self.task.extra_ids
    )
    rows = self.task.rows(iter(documents), vocabulary, self.feature_lengths)
    return list(rows)


@functools.lru_cache
def _opened(path: str, lower_case: bool, extra_ids: int) -> Vocabulary:
  """Opened once in each process."""
  return open_vocabulary(path, lower_case, extra_ids=extra_ids)


def _taken(
  windows: Iterator[Window], taken: int
) -> Iterator[tuple[Place, StreamedRow]]:
  """The rows of windows, without the first ones, and the place after each."""
  for window in windows:
    for number in range(taken, len(window.rows)):
      yield window.place._replace(taken=number + 1), window.rows[number]
    taken = 0


class _Items(grain.DatasetIterator):
  """Items of a generator, and the state after each, for Grain to read ahead."""

  def __init__(self, items: Generator[tuple[Any, Any]], state: Any):
    super().__init__()
    self._items, self._state = items, state

  def __next__(self) -> Any:
    item, self._state = next(self._items)
    return item

  def get_state(self) -> Any:
    return self._state

  def set_state(self, state: Any) -> None:
    raise NotImplementedError("a generator cannot go back")

  def close(self) -> None:
    self._items.close()
    super().close()


class _Batches(ThreadPrefetchDatasetIterator):
  """Batches made ahead; `get_state` gives the places after the last one."""

  def __init__(
    self,
    batches: Generator[tuple[Batch, Places]],
    places: Places,
    closed: threading.Event,
  ):
    self._no_more = closed
    super().__init__(_Items(batches, places), prefetch_buffer_size=READ_AHEAD)

  def close(self) -> None:
    # First, since threads finish their window otherwise.
    self._no_more.set()
    super().close()

  def __del__(self) -> None:
    if not sys.is_finalizing():  # Then, modules may be gone already.
      self.close()
