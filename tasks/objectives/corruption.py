"""Rows to UL2 examples: how much of a row fits, and its corruption."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from raptr_jax.tasks.objectives.denoising import Denoiser, corrupt
from raptr_jax.tasks.objectives.layouts import FeatureLayout, Pair
from raptr_jax.tasks.objectives.packing import Row


class Costs(NamedTuple):
  """What a text of n tokens costs with one denoiser, for n = 0, 1, ..., N - 1.

  All arrays are non-decreasing.

  Attributes:
    hidden: int64[N], number of hidden tokens.
    spans: int64[N], number of hidden spans.
    slots: int64[N] for each feature of the layout, slots that the text takes.
  """

  hidden: np.ndarray
  spans: np.ndarray
  slots: tuple[np.ndarray, ...]

  def most(self, room: Sequence[int]) -> int:
    """The most tokens that fit into `room`, each feature's free slots."""
    return min(
      int(np.searchsorted(slots, left, side="right")) - 1
      for slots, left in zip(self.slots, room)
    )

  def fill(
    self, lengths: Iterable[int], room: Sequence[int]
  ) -> Iterator[slice]:
    """Takes as much of each piece as fits, until nothing more fits.

    A piece with more spans than there are sentinels becomes several texts.
    A single token is skipped, since a text must keep one and hide one.

    Args:
      lengths: lengths of the pieces of a row.
      room: free slots of each feature.

    Yields:
      Where each text lies in the row, in order.
    """
    begin = 0
    for length in lengths:
      end = begin + length
      while end - begin > 1:
        size = min(end - begin, self.most(room))
        if size < 2:
          return
        yield slice(begin, begin + size)
        room = [left - slots[size] for left, slots in zip(room, self.slots)]
        begin += size
      begin = end


def costs(
  denoiser: Denoiser,
  rounding: np.ndarray,
  *,
  layout: FeatureLayout,
  num_tokens: int,
  num_sentinels: int,
  num_mode_ids: int,
) -> Costs:
  """Costs of texts up to `num_tokens`, or as long as the sentinels allow."""
  tokens = np.arange(num_tokens + 1)
  hidden, spans = denoiser.sizes(tokens, rounding)
  end = np.searchsorted(spans, num_sentinels, side="right")
  tokens, hidden, spans = tokens[:end], hidden[:end], spans[:end]
  inputs = num_mode_ids + tokens - hidden + spans
  targets = hidden + spans + 1  # With an end token.
  return Costs(hidden, spans, layout.slots(inputs, targets))


def corrupt_row(
  row: Row,
  rng: np.random.Generator,
  *,
  layout: FeatureLayout,
  feature_lengths: Mapping[str, int],
  denoisers: Sequence[Denoiser],
  weights: np.ndarray,
  mode_ids: Sequence[Sequence[int]],
  sentinel_ids: np.ndarray,
  pad_id: int,
  eos_id: int,
  concatenate: bool,
) -> dict[str, np.ndarray]:
  """Makes an example from a row with one of the denoisers, drawn at random.

  A denoiser with room for less than the row reads a random one of the fewest
  evenly spaced windows that cover it. (Random starts would rarely reach ends.)

  Args:
    row: a row without framing; not modified.
    rng: the only source of randomness.
    layout: how inputs and targets become features.
    feature_lengths: lengths of these features.
    denoisers: what to draw from.
    weights: float64[...], probability of each denoiser.
    mode_ids: ids that each denoiser puts before its inputs.
    sentinel_ids: int32[...], ids of <extra_id_0>, <extra_id_1>, ...
    pad_id: id of padding.
    eos_id: id that ends inputs and targets.
    concatenate: whether the pieces of a row become one text first.

  Returns:
    The layout's features, and example_kind: int32[1], number of the denoiser.
  """
  if concatenate:
    row = Row(row.tokens, np.array([len(row.tokens)]))
  kind = rng.choice(len(denoisers), p=weights)
  mode = np.array(mode_ids[kind], np.int32)
  room = [feature_lengths[name] for name in layout.feature_names]
  table = costs(
    denoisers[kind],
    rng.random(3),
    layout=layout,
    num_tokens=sum(room),
    num_sentinels=len(sentinel_ids),
    num_mode_ids=len(mode),
  )
  pairs = [
    _corrupted(text, rng, table, mode, sentinel_ids, eos_id)
    for text in _texts(row, table, room, rng)
  ]
  example = layout.join(pairs, feature_lengths, pad_id=pad_id, eos_id=eos_id)
  return {**example, "example_kind": np.array([kind], np.int32)}


def _texts(
  row: Row, table: Costs, room: Sequence[int], rng: np.random.Generator
) -> list[np.ndarray]:
  """The texts of a window of the row, drawn as `corrupt_row` says."""
  start = _window_start(row, table, room, rng)
  ends = np.maximum(np.cumsum(row.segment_lengths) - start, 0)
  tokens = row.tokens[start:]
  places = table.fill(np.diff(ends, prepend=0), room)
  return [tokens[place] for place in places]


def _window_start(
  row: Row, table: Costs, room: Sequence[int], rng: np.random.Generator
) -> int:
  length = len(row.tokens)
  taken = max(
    (place.stop for place in table.fill(row.segment_lengths, room)),
    default=length,
  )
  windows = -(-length // taken)
  if windows == 1:
    return 0
  return int(rng.integers(windows)) * (length - taken) // (windows - 1)


def _corrupted(
  text: np.ndarray,
  rng: np.random.Generator,
  table: Costs,
  mode: np.ndarray,
  sentinel_ids: np.ndarray,
  eos_id: int,
) -> Pair:
  inputs, targets = corrupt(
    text,
    rng,
    num_hidden=table.hidden[len(text)],
    num_spans=table.spans[len(text)],
    sentinel_ids=sentinel_ids,
    eos_id=eos_id,
  )
  return Pair(np.concatenate((mode, inputs)), targets)
