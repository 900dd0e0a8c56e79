"""Documents to rows: cuts them into pieces, frames these, and packs them.

Also the segment ids and positions by which an example tells its pieces apart.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

# No row spans two blocks of documents, so interrupted packing can resume at a
# block's edge and still give the same rows.
BLOCK_DOCUMENTS = 1_000


class Row(NamedTuple):
  """Packed tokens, before corruption.

  Attributes:
    tokens: int32[n], including framing; n is at most the row length.
    segment_lengths: int32[s], number of tokens in each piece; they sum to n.
  """

  tokens: np.ndarray
  segment_lengths: np.ndarray


@dataclasses.dataclass(frozen=True)
class Framing:
  """The tokens around pieces of documents, and whether pieces share rows.

  Attributes:
    prefix: tokens before each piece, such as [CLS].
    suffix: tokens after each piece, such as [SEP].
    shared_rows: whether a row may hold several pieces.
    end: tokens after each document, which are part of its last piece.
  """

  prefix: tuple[int, ...] = ()
  suffix: tuple[int, ...] = ()
  shared_rows: bool = True
  end: tuple[int, ...] = ()


def pack(
  documents: Iterable[Sequence[int] | np.ndarray],
  *,
  framing: Framing,
  length: int,
  block_documents: int = BLOCK_DOCUMENTS,
) -> Iterator[Row]:
  """Packs the tokens of documents into rows.

  A document is cut into pieces that, with their framing, fill a row; its last
  piece may be shorter. Each piece goes, uncut, into the first open row with
  room for it (first fit). A row is yielded once it is full; at the end of each
  block, the remaining rows follow, oldest first.

  Args:
    documents: token ids without framing; empty documents are skipped.
    framing: tokens to add to each piece.
    length: most tokens in a row.
    block_documents: number of documents in a block.

  Raises:
    ValueError: `length` leaves no room for text.
  """
  frame = len(framing.prefix) + len(framing.suffix)
  if length <= frame:
    raise ValueError(
      f"rows of {length} tokens have no room for text next to {frame} framing "
      "tokens: set a larger length in --gin.TASK_FEATURE_LENGTHS"
    )
  open_rows = _OpenRows(length, least=frame + 1, shared=framing.shared_rows)
  for number, document in enumerate(documents):
    if number and number % block_documents == 0:
      yield from open_rows.flush()
    tokens = np.asarray(document, np.int32)
    if len(tokens):
      tokens = np.append(tokens, np.array(framing.end, np.int32))
    for begin in range(0, len(tokens), length - frame):
      text = tokens[begin : begin + length - frame]
      piece = np.concatenate((framing.prefix, text, framing.suffix))
      yield from open_rows.add(piece.astype(np.int32))
  yield from open_rows.flush()


class _OpenRows:
  """Rows that still have room, oldest first."""

  def __init__(self, length: int, least: int, shared: bool):
    self._length = length
    self._least = least  # Tokens in the smallest possible piece.
    self._shared = shared
    self._rows: list[list[np.ndarray]] = []
    self._room = np.zeros(0, np.int64)  # Of each row; longer than there are.

  def add(self, piece: np.ndarray) -> Iterator[Row]:
    """Puts a piece into the first row with room; yields rows that are full."""
    size, count = len(piece), len(self._rows)
    if not self._shared or size > self._length - self._least:
      yield _row([piece])  # It fills a row alone.
      return
    fits = self._room[:count] >= size
    number = int(fits.argmax()) if count else 0
    if not count or not fits[number]:
      number = count
      if count == len(self._room):
        self._room = np.append(self._room, np.zeros(count + 1, np.int64))
      self._rows.append([])
      self._room[number] = self._length
    self._rows[number].append(piece)
    self._room[number] -= size
    if self._room[number] < self._least:
      left = len(self._rows) - 1
      self._room[number:left] = self._room[number + 1 : left + 1].copy()
      yield _row(self._rows.pop(number))

  def flush(self) -> Iterator[Row]:
    """Yields all open rows, and forgets them."""
    yield from map(_row, self._rows)
    self._rows = []


def _row(pieces: list[np.ndarray]) -> Row:
  return Row(
    tokens=np.concatenate(pieces),
    segment_lengths=np.array([len(piece) for piece in pieces], np.int32),
  )


def segment_ids(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
  """The number of each token's piece, counted from 1.

  Args:
    lengths: number of tokens in each piece.
  """
  sizes = np.asarray(lengths, np.int64)
  return np.repeat(np.arange(1, len(sizes) + 1), sizes)


def positions(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
  """Each token's position within its piece.

  Args:
    lengths: number of tokens in each piece.
  """
  sizes = np.asarray(lengths, np.int64)
  begins = np.cumsum(sizes) - sizes
  return np.arange(sizes.sum()) - np.repeat(begins, sizes)


def pad(
  parts: Sequence[np.ndarray],
  length: int,
  dtype: type = np.int32,
  fill: int = 0,
) -> np.ndarray:
  """Concatenates parts, then fills up to `length` with `fill`."""
  padded: np.ndarray = np.full(length, fill, dtype)
  end = 0
  for part in parts:
    padded[end : end + len(part)] = part
    end += len(part)
  return padded
