"""How much of a row a denoiser takes, and the example that it makes of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tasks.denoising import Denoiser, corrupt
from tasks.forms import Form, Pair
from tasks.packing import Row


class Costs(NamedTuple):
  """What becomes of n tokens of a text, for n = 0, 1, ...; see `Denoiser.sizes`.

  Attributes:
    hidden: int64[N], how many of them are hidden.
    spans: int64[N], in how many spans.
    slots: int64[N] for each feature of the form: what its inputs and targets
      take. No array ever decreases.
  """

  hidden: np.ndarray
  spans: np.ndarray
  slots: tuple[np.ndarray, ...]

  def most(self, room: Sequence[int]) -> int:
    """The most tokens that fit into so many slots of each feature."""
    return min(
      int(np.searchsorted(slots, left, side="right")) - 1
      for slots, left in zip(self.slots, room)
    )

  def fill(
    self, lengths: Iterable[int], room: Sequence[int]
  ) -> Iterator[slice]:
    """Takes of each piece what fits, and goes on, until nothing more fits.

    A piece that has more spans than there are sentinels gives several texts.
    A text of one token, of which nothing could be kept, is passed over.

    Args:
      lengths: of the pieces of a row.
      room: slots of each feature.

    Returns:
      Where the texts lie in the row, in order.
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
  form: Form,
  num_tokens: int,
  num_sentinels: int,
  num_mode_ids: int,
) -> Costs:
  """The costs of up to `num_tokens` tokens, or of as many as sentinels allow."""
  tokens = np.arange(num_tokens + 1)
  hidden, spans = denoiser.sizes(tokens, rounding)
  end = np.searchsorted(spans, num_sentinels, side="right")
  tokens, hidden, spans = tokens[:end], hidden[:end], spans[:end]
  inputs = num_mode_ids + tokens - hidden + spans
  targets = hidden + spans + 1  # With the token that ends them.
  return Costs(hidden, spans, form.slots(inputs, targets))


def corrupt_row(
  row: Row,
  rng: np.random.Generator,
  *,
  form: Form,
  feature_lengths: Mapping[str, int],
  denoisers: Sequence[Denoiser],
  weights: np.ndarray,
  mode_ids: Sequence[Sequence[int]],
  sentinel_ids: np.ndarray,
  pad_id: int,
  eos_id: int,
) -> dict[str, np.ndarray]:
  """Makes an example of a row by one of the denoisers.

  A denoiser that takes fewer tokens than the row has is given a window of
  it: one of the fewest that cover the row, evenly apart, all equally likely. So
  every token of a corpus is seen, in one or two of the windows, but for single
  ones that are left over. (With starts
  anywhere, the ends of rows would hardly ever be seen.)

  Args:
    row: a row, without framing; read only.
    rng: the only source of randomness.
    form: how the model takes inputs and targets.
    feature_lengths: lengths of the form's features.
    denoisers: one of them is drawn ...
    weights: float64[...], ... with these probabilities.
    mode_ids: what each denoiser puts before its inputs.
    sentinel_ids: int32[...], ids of <extra_id_0>, <extra_id_1>, ...
    pad_id: id of padding.
    eos_id: id that ends inputs and targets.

  Returns:
    The features of the form, and kind: int32[1], number of the denoiser.
  """
  kind = rng.choice(len(denoisers), p=weights)
  room = [feature_lengths[name] for name in form.feature_names]
  table = costs(
    denoisers[kind],
    rng.random(2),
    form=form,
    num_tokens=sum(room),
    num_sentinels=len(sentinel_ids),
    num_mode_ids=len(mode_ids[kind]),
  )
  start = _window(row, table, room, rng)
  ends = np.maximum(np.cumsum(row.segment_lengths) - start, 0)
  tokens = row.tokens[start:]
  mode = np.array(mode_ids[kind], np.int32)
  pairs = []
  for place in table.fill(np.diff(ends, prepend=0), room):
    text = tokens[place]
    inputs, targets = corrupt(
      text,
      rng,
      num_hidden=table.hidden[len(text)],
      num_spans=table.spans[len(text)],
      sentinel_ids=sentinel_ids,
      eos_id=eos_id,
    )
    pairs.append(Pair(np.concatenate((mode, inputs)), targets))
  example = form.join(pairs, feature_lengths, pad_id=pad_id, eos_id=eos_id)
  return {**example, "kind": np.array([kind], np.int32)}


def _window(
  row: Row, table: Costs, room: Sequence[int], rng: np.random.Generator
) -> int:
  """Where in the row to begin, see `corrupt_row`."""
  length = len(row.tokens)
  taken = max(
    (place.stop for place in table.fill(row.segment_lengths, room)),
    default=length,
  )
  windows = -(-length // taken)
  if windows == 1:
    return 0
  return int(rng.integers(windows)) * (length - taken) // (windows - 1)
