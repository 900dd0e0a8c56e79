import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from raptr_jax.tasks.objectives.packing import Framing, pack

FRAMING = Framing(prefix=(2,), suffix=(3,))


def _lists(rows):
  return [(list(row.tokens), list(row.segment_lengths)) for row in rows]


def test_rows_by_hand():
  documents = [
    [11, 12, 13, 14, 15, 16, 17, 18],  # Cut into 6 + 2 tokens.
    [21],  # Fits behind the rest of the first; the row is then full.
    [31, 32, 33],
    [],
    [41, 42],  # No room in the row before.
    [51],  # First fit: beside [31, 32, 33].
  ]
  assert _lists(pack(documents, framing=FRAMING, length=8)) == [
    ([2, 11, 12, 13, 14, 15, 16, 3], [8]),
    ([2, 17, 18, 3, 2, 21, 3], [4, 3]),
    ([2, 31, 32, 33, 3, 2, 51, 3], [5, 3]),
    ([2, 41, 42, 3], [4]),
  ]


def test_rows_of_one_unframed_piece():
  framing = Framing(shared_rows=False)
  documents = [[11, 12, 13, 14, 15], [21]]
  assert _lists(pack(documents, framing=framing, length=3)) == [
    ([11, 12, 13], [3]),
    ([14, 15], [2]),
    ([21], [1]),
  ]


def test_rows_do_not_cross_blocks():
  rows = pack([[11], [21], [31]], framing=FRAMING, length=8, block_documents=2)
  assert _lists(rows) == [
    ([2, 11, 3, 2, 21, 3], [3, 3]),
    ([2, 31, 3], [3]),
  ]


documents_strategy = st.lists(
  st.lists(st.integers(10, 99), max_size=40), max_size=30
)


@hypothesis.given(documents_strategy, st.integers(3, 20), st.booleans())
@hypothesis.settings(deadline=None, derandomize=True)
def test_every_token_is_packed_once(documents, length, shared):
  framing = Framing((2,), (3,), shared)
  rows = list(pack(documents, framing=framing, length=length))
  pieces = []
  for row in rows:
    assert row.tokens.dtype == row.segment_lengths.dtype == np.int32
    assert len(row.tokens) == row.segment_lengths.sum() <= length
    assert shared or len(row.segment_lengths) == 1
    pieces += np.split(row.tokens, np.cumsum(row.segment_lengths)[:-1])
  assert all(piece[0] == 2 and piece[-1] == 3 for piece in pieces)
  texts = sorted(tuple(piece[1:-1]) for piece in pieces)
  step = length - 2
  assert texts == sorted(
    tuple(document[i : i + step])
    for document in documents
    for i in range(0, len(document), step)
  )


@hypothesis.given(documents_strategy, st.integers(1, 5), st.integers(0, 6))
@hypothesis.settings(deadline=None, derandomize=True)
def test_work_can_be_taken_up_at_a_block(documents, block, blocks_done):
  def rows(part):
    return _lists(pack(part, framing=FRAMING, length=16, block_documents=block))

  cut = block * blocks_done
  assert rows(documents) == rows(documents[:cut]) + rows(documents[cut:])


def test_length_without_room_is_refused():
  with pytest.raises(ValueError, match=r"rows of 2 .*TASK_FEATURE_LENGTHS"):
    list(pack([[11]], framing=FRAMING, length=2))
