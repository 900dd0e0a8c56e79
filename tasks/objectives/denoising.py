"""Span corruption, and the denoisers of UL2 (arXiv 2205.05131, Sec. 3).

A denoiser hides spans of a text behind sentinels, as T5 does (arXiv 1910.10683,
Sec. 3.1.4), and the model writes what was hidden: tokens a b c d e f g become
the inputs `a b <0> e f <1>` and the targets `<0> c d <1> g [EOS]`. Prefix
language modelling is the special case of one span, at the end.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from raptr_jax.tasks.text.vocabulary import NLG, NLU, S2S


@dataclasses.dataclass(frozen=True)
class Denoiser:
  """One way of hiding tokens.

  A text too short for one span of the mean length gets a shorter one.

  Attributes:
    name: as reports show it.
    mean_span: mean number of tokens in a hidden span; None hides one span, at
      the end.
    rate: share of tokens that are hidden.
    mode: token that tells the model which kind of denoiser is used.
    uniform: whether `rate` is the mean of a share that is drawn for each text,
      uniformly between 0 and twice as much.
  """

  name: str
  mean_span: float | None
  rate: float
  mode: str
  uniform: bool = False

  def __post_init__(self):
    if not 0 < self.rate < 1:
      raise ValueError(
        f"rate={self.rate} of denoiser {self.name!r} must lie between 0 and 1: "
        "set --gin.ul2.UL2.denoisers"
      )
    if self.uniform and self.rate > 0.5:
      raise ValueError(
        f"rate={self.rate} of denoiser {self.name!r} must be at most 0.5, since "
        "shares up to twice as much are drawn: set --gin.ul2.UL2.denoisers"
      )
    if self.mean_span is not None and self.mean_span < 1:
      raise ValueError(
        f"mean_span={self.mean_span} of denoiser {self.name!r} must be at "
        "least 1, or None: set --gin.ul2.UL2.denoisers"
      )

  def sizes(
    self, num_tokens: Int[np.ndarray, "n"], rounding: Float[np.ndarray, "3"]
  ) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """How many tokens of a text to hide, and in how many spans.

    Both numbers are rounded down after adding `rounding`, so a uniform
    `rounding` makes their means exact. Every span, and every stretch between
    spans, has at least one token. For fixed `rounding`, a longer text never has
    fewer hidden tokens, kept tokens or spans.

    Args:
      num_tokens: lengths of texts; sizes are meaningless below 2.
      rounding: three numbers in [0, 1), for the tokens, for the spans, and for
        the share of a denoiser that draws it.
    """
    rate = 2 * self.rate * rounding[2] if self.uniform else self.rate
    hidden = np.floor(rate * num_tokens + rounding[0]).astype(np.int64)
    hidden = np.clip(hidden, 1, num_tokens - 1)
    if self.mean_span is None:
      spans = np.ones_like(hidden)
    else:
      spans = np.floor(hidden / self.mean_span + rounding[1]).astype(np.int64)
    return hidden, np.clip(spans, 1, np.minimum(hidden, num_tokens - hidden))


def ul2_denoisers(*, uniform_suffix: bool = True) -> tuple[Denoiser, ...]:
  """The seven denoisers of UL2: R, X, and S, which hides the end of a text.

  UL2 says of S only that it has one span of a quarter of the text on average
  ("mu = L / 4, r = 0.25, n = 1"), which can be read in two ways.

  Args:
    uniform_suffix: whether the length of that span is drawn, uniformly up to
      half of the text, as T5's prefix language modelling does. Otherwise it is
      always a quarter.
  """
  return (
    Denoiser("R 3 15%", 3, 0.15, NLU),
    Denoiser("R 8 15%", 8, 0.15, NLU),
    Denoiser("X 3 50%", 3, 0.5, NLG),
    Denoiser("X 8 50%", 8, 0.5, NLG),
    Denoiser("X 64 15%", 64, 0.15, NLG),
    Denoiser("X 64 50%", 64, 0.5, NLG),
    Denoiser("S 25%", None, 0.25, S2S, uniform=uniform_suffix),
  )


UL2_DENOISERS = ul2_denoisers()


def random_lengths(
  total: int, parts: int, rng: np.random.Generator
) -> Int[np.ndarray, "parts"]:
  """Lengths of at least 1 that sum to `total`, drawn uniformly."""
  ends = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1
  return np.diff(ends, prepend=0, append=total)


def hide_spans(
  tokens: Int[np.ndarray, "n"],
  *,
  kept: Int[np.ndarray, "s"],
  hidden: Int[np.ndarray, "s"],
  sentinel_ids: Int[np.ndarray, "..."],
  eos_id: int,
) -> tuple[Int[np.ndarray, "..."], Int[np.ndarray, "..."]]:
  """Splits a text into inputs and targets, given its spans.

  Args:
    tokens: the text: kept[0] tokens, then hidden[0], then kept[1], ...
    kept: lengths of the stretches that stay.
    hidden: lengths of the spans to hide.
    sentinel_ids: ids that stand for the spans, at least s.
    eos_id: id that ends the targets.

  Returns:
    inputs: the kept stretches, each followed by a sentinel; without an end.
    targets: the hidden spans, each preceded by its sentinel, then `eos_id`.
  """
  lengths = np.stack([kept, hidden], axis=1).ravel()
  is_hidden = np.repeat(np.tile([False, True], len(hidden)), lengths)
  sentinels = sentinel_ids[: len(hidden)]
  inputs = np.insert(tokens[~is_hidden], np.cumsum(kept), sentinels)
  begins = np.cumsum(hidden) - hidden
  targets = np.insert(tokens[is_hidden], begins, sentinels)
  return inputs, np.append(targets, eos_id)


def corrupt(
  tokens: Int[np.ndarray, "n"],
  rng: np.random.Generator,
  *,
  num_hidden: int,
  num_spans: int,
  sentinel_ids: Int[np.ndarray, "..."],
  eos_id: int,
) -> tuple[Int[np.ndarray, "..."], Int[np.ndarray, "..."]]:
  """Hides random spans of a text; returns inputs and targets.

  The text begins with a kept stretch and ends with a hidden one, as in T5.
  """
  return hide_spans(
    tokens,
    kept=random_lengths(len(tokens) - num_hidden, num_spans, rng),
    hidden=random_lengths(num_hidden, num_spans, rng),
    sentinel_ids=sentinel_ids,
    eos_id=eos_id,
  )


def until_end(targets: Sequence[int] | np.ndarray, eos_id: int) -> list[int]:
  """The targets before the first end token."""
  return [
    *itertools.takewhile(lambda token: token != eos_id, map(int, targets))
  ]


def hidden_spans(
  targets: Sequence[int] | np.ndarray,
  *,
  sentinel_ids: Sequence[int] | np.ndarray,
  eos_id: int,
) -> dict[int, list[int]]:
  """The spans in targets, by the id of their sentinel.

  A model may have written the targets: tokens before the first sentinel are
  dropped, and tokens after a repeated sentinel extend its span.
  """
  sentinels = {int(i) for i in sentinel_ids}
  spans: dict[int, list[int]] = {}
  span: list[int] = []
  for token in until_end(targets, eos_id):
    if token in sentinels:
      span = spans.setdefault(token, [])
    else:
      span.append(token)
  return spans
