"""Rows to UL2 examples: how much of a row fits, and its corruption."""

import dataclasses
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
    longest: the most tokens for whose spans there are sentinels.
  """

  hidden: np.ndarray
  spans: np.ndarray
  slots: tuple[np.ndarray, ...]
  longest: int

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
        size = min(end - begin, self.longest, most([self], room))
        if size < 2:
          return
        yield slice(begin, begin + size)
        room = [left - slots[size] for left, slots in zip(room, self.slots)]
        begin += size
      begin = end


def most(tables: Sequence[Costs], room: Sequence[int]) -> int:
  """The most tokens of which each denoiser has one text in the same `room`.

  Args:
    tables: the costs of these denoisers.
    room: free slots of each feature.
  """
  return min(
    int(np.searchsorted(sum(slots), left, side="right")) - 1
    for slots, left in zip(zip(*(table.slots for table in tables)), room)
  )


def fill_in_turn(
  tables: Sequence[Costs], lengths: np.ndarray, room: Sequence[int]
) -> Iterator[tuple[int, slice]]:
  """Fills a row with texts of one denoiser after another.

  Each has room for as many tokens as the others, and the last all that is left.

  Args:
    tables: the costs of these denoisers.
    lengths: lengths of the pieces of a row.
    room: slots of each feature.

  Yields:
    Number of the denoiser, and where the text lies in the row, in order.
  """
  share, begin = max(most(tables, room), 0), 0
  for number, table in enumerate(tables):
    is_last = number == len(tables) - 1
    own = room if is_last else [slots[share] for slots in table.slots]
    start = begin
    for place in table.fill(_from(lengths, start), own):
      begin, size = start + place.stop, place.stop - place.start
      yield number, slice(begin - size, begin)
      room = [left - slots[size] for left, slots in zip(room, table.slots)]


def _from(lengths: np.ndarray, start: int) -> np.ndarray:
  """What is left of pieces of such lengths, from a token on."""
  return np.diff(np.maximum(np.cumsum(lengths) - start, 0), prepend=0)


def costs(
  denoiser: Denoiser,
  rounding: np.ndarray,
  *,
  layout: FeatureLayout,
  num_tokens: int,
  num_sentinels: int,
  num_mode_ids: int,
) -> Costs:
  """Costs of texts up to `num_tokens`."""
  tokens = np.arange(num_tokens + 1)
  hidden, spans = denoiser.sizes(tokens, rounding)
  inputs = num_mode_ids + tokens - hidden + spans
  targets = hidden + spans + 1  # With an end token.
  longest = int(np.searchsorted(spans, num_sentinels, side="right")) - 1
  return Costs(hidden, spans, layout.slots(inputs, targets), longest)


@dataclasses.dataclass(frozen=True)
class KindDraw:
  """Draws the denoisers of a row, each by its weight.

  A denoiser can fill one feature; of two it fills the one that runs out first.
  So two are drawn for two features, and they are opposite: if the first is among
  those that hide most, the second is among those that hide least.

  Attributes:
    weights: float64[...], probability of each denoiser.
    rates: share of tokens that each hides.
    count: number of draws, 1 or 2.
  """

  weights: np.ndarray
  rates: Sequence[float]
  count: int

  def at(self, point: float) -> list[int]:
    """The denoisers of a row: one, if it is drawn twice.

    Args:
      point: a random number, uniform in [0, 1).
    """
    points = (point, 1 - point)[: self.count]
    places = np.searchsorted(self._ends, points, side="right")
    return list(dict.fromkeys(self._order[places].tolist()))

  def all(self) -> list[list[int]]:
    """All that a row may have."""
    edges = np.unique([0, 1, *self._ends, *(1 - self._ends)])
    return [self.at(point) for point in (edges[:-1] + edges[1:]) / 2]

  @property
  def _order(self) -> np.ndarray:
    if self.count == 1:
      return np.arange(len(self.rates))
    return np.argsort(self.rates, kind="stable")

  @property
  def _ends(self) -> np.ndarray:
    """Where the interval of each denoiser but the last ends in [0, 1)."""
    return np.cumsum(self.weights[self._order])[:-1]


def corrupt_row(
  row: Row,
  rng: np.random.Generator,
  *,
  layout: FeatureLayout,
  feature_lengths: Mapping[str, int],
  denoisers: Sequence[Denoiser],
  draw: KindDraw,
  mode_ids: Sequence[Sequence[int]],
  sentinel_ids: np.ndarray,
  pad_id: int,
  eos_id: int,
  concatenate: bool,
) -> dict[str, np.ndarray]:
  """Makes an example from a row with one or two denoisers, drawn at random.

  Denoisers with room for less than the row read a random one of the fewest
  evenly spaced windows that cover it. (Random starts would rarely reach ends.)

  Args:
    row: a row without framing; not modified.
    rng: the only source of randomness.
    layout: how inputs and targets become features.
    feature_lengths: lengths of these features.
    denoisers: what to draw from.
    draw: draws those of a row.
    mode_ids: ids that each denoiser puts before its inputs.
    sentinel_ids: int32[...], ids of <extra_id_0>, <extra_id_1>, ...
    pad_id: id of padding.
    eos_id: id that ends inputs and targets.
    concatenate: whether the pieces of a row become one text first.

  Returns:
    The layout's features, and example_kind: int32[1], number of the denoiser;
    int32[T] if two are drawn, that of each target, and 0 for padding.
  """
  if concatenate:
    row = Row(row.tokens, np.array([len(row.tokens)]))
  kinds = draw.at(rng.random())
  room = [feature_lengths[name] for name in layout.feature_names]
  tables = [
    costs(
      denoisers[kind],
      rng.random(3),
      layout=layout,
      num_tokens=sum(room),
      num_sentinels=len(sentinel_ids),
      num_mode_ids=len(mode_ids[kind]),
    )
    for kind in kinds
  ]
  texts = _texts(row, tables, room, rng)
  pairs = [
    _corrupted(
      text, rng, tables[number], mode_ids[kinds[number]], sentinel_ids, eos_id
    )
    for number, text in texts
  ]
  example = layout.join(pairs, feature_lengths, pad_id=pad_id, eos_id=eos_id)
  numbers = np.array(kinds, np.int32)
  if draw.count > 1:
    of_pairs = [0, *(kinds[number] for number, _ in texts)]
    numbers = np.array(of_pairs, np.int32)[example["segment_ids"]]
  return {**example, "example_kind": numbers}


def _texts(
  row: Row,
  tables: Sequence[Costs],
  room: Sequence[int],
  rng: np.random.Generator,
) -> list[tuple[int, np.ndarray]]:
  """Texts of a window of the row, with the numbers of their denoisers."""
  start = _window_start(row, tables, room, rng)
  places = fill_in_turn(tables, _from(row.segment_lengths, start), room)
  return [(number, row.tokens[start:][place]) for number, place in places]


def _window_start(
  row: Row,
  tables: Sequence[Costs],
  room: Sequence[int],
  rng: np.random.Generator,
) -> int:
  length = len(row.tokens)
  taken = max(
    (p.stop for _, p in fill_in_turn(tables, row.segment_lengths, room)),
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
  mode: Sequence[int],
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
  return Pair(np.concatenate((np.array(mode, np.int32), inputs)), targets)
