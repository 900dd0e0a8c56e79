"""The rows of a task that one host streams, and its place among them.

A source comes in parts, and the parts of all epochs, one after the other, are
an endless sequence: host h of H reads parts h, h + H, h + 2 H, ... of it. So no
two hosts read the same part of an epoch, even if there are more hosts than
parts.
"""

import dataclasses
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import NamedTuple, TypeVar

import numpy as np

from raptr_jax.data.order import Order
from raptr_jax.tasks.objectives.packing import BLOCK_DOCUMENTS, Row
from raptr_jax.tasks.text.sources import Source

WINDOW_STREAM = 1  # Separates the permutation of a window from corruption.
BLOCKS_AHEAD = 2  # For each process that encodes.
Item = TypeVar("Item")


class Place(NamedTuple):
  """Where a host is in the stream of a task, as whole numbers.

  Attributes:
    part: of the endless sequence, that the current window of rows begins in.
    block: blocks of documents of that part before the window.
    row: rows of the epoch that this host has read before the window.
    taken: rows of the window that earlier batches have.
    last: part that the window ends in; -1 before the first window.
  """

  part: int
  block: int = 0
  row: int = 0
  taken: int = 0
  last: int = -1


class StreamedRow(NamedTuple):
  """A row, and what its random generator depends on.

  Attributes:
    epoch: that it belongs to.
    number: of the row; no two rows of an epoch have the same, as long as the
      number of hosts stays.
    row: its tokens.
  """

  epoch: int
  number: int
  row: Row


class Window(NamedTuple):
  """Consecutive rows, in the order of training.

  Attributes:
    place: where it begins; none of its rows is taken.
    rows: at least `RowStream.window`, or the rest of the epoch; whole blocks.
  """

  place: Place
  rows: list[StreamedRow]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowStream:
  """The rows of a task for one host, without end.

  Attributes:
    source: of documents.
    split: of the source.
    order: whether parts and windows are permuted, and how.
    encode: makes rows of a block of documents; a function that processes can be
      sent if there is a pool.
    window: least number of rows that are permuted together.
    host: number of this host.
    hosts: how many there are.
    closed: once it is set, no more blocks come.
    pool: processes that encode; None for none.
    processes: how many.
  """

  source: Source
  split: str
  order: Order
  encode: Callable[[list[str]], list[Row]]
  window: int
  host: int
  hosts: int
  closed: threading.Event
  pool: Executor | None = None
  processes: int = 0

  def windows(self, place: Place) -> Iterator[Window]:
    """The window of a place, whole, and those after it; none spans epochs.

    Raises:
      OSError: there is no text, or it cannot be read.
    """
    num_parts = self.source.num_parts()
    epoch, row = place.part // num_parts, place.row
    rows: list[StreamedRow] = []
    begin, last = place, place.part
    for part, block, new in self._encoded(place):
      if part // num_parts > epoch:
        if rows:
          yield Window(begin._replace(last=last), self._permuted(rows))
        epoch, row, rows = part // num_parts, 0, []
      if not rows:
        begin = Place(part, block, row)
      for number, tokens in enumerate(new, row):
        own = number * self.hosts + self.host
        rows.append(StreamedRow(epoch, own, tokens))
      row, last = row + len(new), part
      if rows and len(rows) >= self.window:
        yield Window(begin._replace(last=last), self._permuted(rows))
        rows = []

  def _permuted(self, rows: Sequence[StreamedRow]) -> list[StreamedRow]:
    if not self.order.shuffle:
      return list(rows)
    first = rows[0]
    seeds = [self.order.seed, first.epoch, first.number, WINDOW_STREAM]
    places = np.random.default_rng(seeds).permutation(len(rows))
    return [rows[place] for place in places]

  def _encoded(self, place: Place) -> Iterator[tuple[int, int, list[Row]]]:
    """Part and block, and its rows; processes work ahead."""
    blocks = self._blocks(place)
    if self.pool is None:
      for part, block, documents in blocks:
        yield part, block, self.encode(documents)
      return
    begun = (
      (part, block, self.pool.submit(self.encode, documents))
      for part, block, documents in blocks
    )
    for part, block, future in _ahead(begun, BLOCKS_AHEAD * self.processes):
      yield part, block, future.result()

  def _blocks(self, place: Place) -> Iterator[tuple[int, int, list[str]]]:
    """Blocks of documents from a place on, with their part and number.

    Packing starts anew with each block, so a block gives the same rows whether
    those before it are read or not.
    """
    num_parts, empty, skipped = self.source.num_parts(), 0, place.block
    for part in itertools.count(place.part, self.hosts):
      _, number = self.order.locate(part, num_parts)
      documents = self.source.documents(self.split, number)
      rest = itertools.islice(documents, skipped * BLOCK_DOCUMENTS, None)
      for block, texts in enumerate(self._chunks(rest), skipped):
        if self.closed.is_set():
          return
        yield part, block, texts
        empty = -1
      skipped, empty = 0, empty + 1
      if empty == num_parts:
        self._check_text()
        empty = 0

  def _chunks(self, documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in blocks; the last may be smaller."""
    documents = iter(documents)
    while True:
      try:
        chunk = list(itertools.islice(documents, BLOCK_DOCUMENTS))
      except ValueError as error:  # Text that cannot be read, such as no UTF-8.
        raise OSError(str(error)) from error
      if not chunk:
        return
      yield chunk

  def _check_text(self) -> None:
    """Raises FileNotFoundError unless other parts of an epoch have text."""
    # In order, a host may come by the same parts in every epoch.
    if self.order.shuffle and any(
      True for _ in self.source.documents(self.split)
    ):
      return
    raise FileNotFoundError(
      f"the {self.split} split of {self.source.description()} has no text, or "
      f"none for host {self.host} of {self.hosts}: provide more"
    )


def _ahead(items: Iterator[Item], count: int) -> Iterator[Item]:
  """The items, `count` of them taken before they are asked for."""
  taken: deque[Item] = deque()
  for item in items:
    taken.append(item)
    if len(taken) > count:
      yield taken.popleft()
