"""UL2's objective (arXiv 2205.05131): a mixture of denoisers.

For each row of a decoder, one denoiser is drawn by weight, and corrupts the
row's pieces one by one; for each row of an encoder-decoder, two are drawn.
Departures: denoisers take as much text as fills their features, and nothing is
cut off afterwards.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from raptr_jax.tasks.objectives.corruption import (
  Costs,
  KindDraw,
  corrupt_row,
  costs,
  most,
)
from raptr_jax.tasks.objectives.denoising import (
  UL2_DENOISERS,
  Denoiser,
  corrupt,
  hidden_spans,
)
from raptr_jax.tasks.objectives.layouts import (
  DecoderLayout,
  EncoderDecoderLayout,
  FeatureLayout,
  Pair,
)
from raptr_jax.tasks.objectives.objective import Corruption
from raptr_jax.tasks.objectives.packing import Framing
from raptr_jax.tasks.text.vocabulary import Vocabulary, sentinel

LAYOUTS: Mapping[str, FeatureLayout] = {
  "decoder": DecoderLayout(),
  "encoder_decoder": EncoderDecoderLayout(),
}
MOST_SENTINELS = 100  # As in T5.
DOWN, UP = 0.0, 1 - 1e-9  # Values for the `rounding` of `Denoiser.sizes`.


@dataclasses.dataclass(frozen=True)
class UL2:
  """A mixture of denoisers, for a decoder or an encoder-decoder.

  A decoder has the feature "tokens", an encoder-decoder "inputs" and "targets".
  A denoiser could fill only one of these two, since its ratio of inputs to
  targets is fixed; so a row has two denoisers, which take the same number of
  tokens (see `corruption.KindDraw`). They fill both best if "inputs" is twice as
  long as "targets".

  Attributes:
    layout: "decoder" or "encoder_decoder", see `layouts.py`.
    weights: relative share of each denoiser.
    denoisers: what to draw from.
    mode_tokens: whether inputs begin with the denoiser's mode token.
    concatenate: whether the pieces of documents in a row are joined before they
      are corrupted. Long spans then have room in rows of short documents.
  """

  layout: str = "decoder"
  weights: tuple[float, ...] = (0.2, 0.2, 0.1, 0.1, 0.1, 0.1, 0.2)
  denoisers: tuple[Denoiser, ...] = UL2_DENOISERS
  mode_tokens: bool = True
  concatenate: bool = False

  def __post_init__(self):
    if self.layout not in LAYOUTS:
      raise ValueError(
        f"UL2_LAYOUT={self.layout!r} must be one of {sorted(LAYOUTS)}: set "
        "--gin.UL2_LAYOUT"
      )
    if (
      len(self.weights) != len(self.denoisers)
      or min(self.weights) < 0
      or not sum(self.weights) > 0
    ):
      raise ValueError(
        f"UL2_WEIGHTS={self.weights} must be {len(self.denoisers)} numbers, "
        f"none negative and not all 0, for {self.example_kinds}: set "
        "--gin.UL2_WEIGHTS"
      )

  @property
  def example_kinds(self) -> tuple[str, ...]:
    """Names of the denoisers."""
    return tuple(denoiser.name for denoiser in self.denoisers)

  @property
  def feature_layout(self) -> FeatureLayout:
    """How inputs and targets become the features of a batch."""
    return LAYOUTS[self.layout]

  def mode_ids(
    self, denoiser: Denoiser, vocabulary: Vocabulary
  ) -> tuple[int, ...]:
    """The ids with which a denoiser's inputs begin.

    A mode without a token in the vocabulary is spelt as text, as in UL2.
    """
    return vocabulary.mode_ids(denoiser.mode) if self.mode_tokens else ()

  def continuation(
    self, tokens: Sequence[int], vocabulary: Vocabulary
  ) -> np.ndarray:
    """Inputs int32[...] whose targets continue `tokens`.

    They have the mode of S, the denoiser with one span at the end; without such
    a denoiser, that of the last one.
    """
    prefix = (d for d in self.denoisers if d.mean_span is None)
    mode = self.mode_ids(next(prefix, self.denoisers[-1]), vocabulary)
    return np.array([*mode, *tokens, vocabulary.sentinel_ids[0]], np.int32)

  def lead(self, vocabulary: Vocabulary) -> tuple[int, ...]:
    """The sentinel with which the targets of a continuation begin."""
    return (vocabulary.sentinel_ids[0],)

  def written_text(
    self, targets: Sequence[int] | np.ndarray, vocabulary: Vocabulary
  ) -> list[int]:
    """What a model has written for the first sentinel."""
    spans = hidden_spans(
      targets,
      sentinel_ids=vocabulary.sentinel_ids,
      eos_id=vocabulary.eos_id,
    )
    return spans.get(vocabulary.sentinel_ids[0], [])

  def infill_pair(
    self,
    tokens: Sequence[int],
    rng: np.random.Generator,
    vocabulary: Vocabulary,
  ) -> Pair:
    """A text with blanks made by the first denoiser, and what was in them.

    Args:
      tokens: the text, at least two tokens.
      rng: decides where the blanks are.
      vocabulary: the vocabulary of the tokens.

    Returns:
      Inputs, without a mode, and targets.
    """
    hidden, spans = self.denoisers[0].sizes(
      np.array([len(tokens)]), rng.random(3)
    )
    inputs, targets = corrupt(
      np.array(tokens, np.int32),
      rng,
      num_hidden=int(hidden[0]),
      num_spans=int(spans[0]),
      sentinel_ids=np.array(vocabulary.sentinel_ids),
      eos_id=vocabulary.eos_id,
    )
    return Pair(inputs, targets)

  def infill_prompt(self, pair: Pair, vocabulary: Vocabulary) -> np.ndarray:
    """The first denoiser's mode, then the pair's inputs, int32[...]."""
    mode = self.mode_ids(self.denoisers[0], vocabulary)
    return np.array([*mode, *pair.inputs], np.int32)

  def framing(self, vocabulary: Vocabulary) -> Framing:
    del vocabulary  # Corruption adds the end tokens.
    return Framing()

  def row_length(self, feature_lengths: Mapping[str, int]) -> int:
    """The most tokens that the denoisers of a row take.

    Raises:
      ValueError: the features are not the layout's, or too short.
    """
    return max(
      len(tables) * size
      for share in (DOWN, UP)
      for tables, size in self._capacities(
        feature_lengths, self._draw.all(), (DOWN, DOWN, share)
      )
    )

  def extra_pieces(self, feature_lengths: Mapping[str, int]) -> tuple[str, ...]:
    """Mode tokens, if used, then sentinels in descending order."""
    alone = [[kind] for kind, weight in enumerate(self.weights) if weight]
    spans = max(
      int(table.spans[size])
      for (table,), size in self._capacities(
        feature_lengths, alone, (UP, UP, UP)
      )
    )
    modes = dict.fromkeys(denoiser.mode for denoiser in self.denoisers)
    return (
      *(modes if self.mode_tokens else ()),
      *map(sentinel, reversed(range(min(spans, MOST_SENTINELS)))),
    )

  def features(
    self, feature_lengths: Mapping[str, int]
  ) -> dict[str, tuple[int, type]]:
    """The layout's features, and example_kind as `corrupt_row` says."""
    self._check(feature_lengths)
    features = self.feature_layout.features(feature_lengths)
    kinds = 1 if self._draw.count == 1 else features["targets"][0]
    return {**features, "example_kind": (kinds, np.int32)}

  def corruption(
    self, vocabulary: Vocabulary, feature_lengths: Mapping[str, int]
  ) -> Corruption:
    """`corrupt_row` for a vocabulary and feature lengths.

    Raises:
      ValueError: the features are not the layout's, or too short, or the
        vocabulary has no sentinels or no end token.
    """
    self.row_length(feature_lengths)
    if vocabulary.pad_id != 0:
      raise ValueError(
        f"the vocabulary {vocabulary.path} has padding at id "
        f"{vocabulary.pad_id}, expected 0, from which a decoder starts: set "
        "another --gin.VOCABULARY_PATH, or None to train one"
      )
    return functools.partial(
      corrupt_row,
      layout=self.feature_layout,
      feature_lengths=dict(feature_lengths),
      denoisers=self.denoisers,
      draw=self._draw,
      mode_ids=[self.mode_ids(d, vocabulary) for d in self.denoisers],
      sentinel_ids=np.array(vocabulary.sentinel_ids, np.int32),
      pad_id=vocabulary.pad_id,
      eos_id=vocabulary.eos_id,
      concatenate=self.concatenate,
    )

  @property
  def _draw(self) -> KindDraw:
    return KindDraw(
      np.array(self.weights) / math.fsum(self.weights),
      [denoiser.rate for denoiser in self.denoisers],
      count=len(self.feature_layout.feature_names),
    )

  def _capacities(
    self,
    feature_lengths: Mapping[str, int],
    draws: Sequence[Sequence[int]],
    rounding: Sequence[float],
  ) -> list[tuple[list[Costs], int]]:
    """Costs of each draw, and the most tokens that each of its denoisers takes."""
    self._check(feature_lengths)
    layout = self.feature_layout
    room = [feature_lengths[name] for name in layout.feature_names]
    tables = [
      costs(
        denoiser,
        np.array(rounding),
        layout=layout,
        num_tokens=sum(room),
        num_sentinels=sum(room),  # No limit.
        num_mode_ids=int(self.mode_tokens),
      )
      for denoiser in self.denoisers
    ]
    drawn = [[tables[kind] for kind in kinds] for kinds in draws]
    solved = [(of_draw, most(of_draw, room)) for of_draw in drawn]
    if min(size for _, size in solved) < 2:
      raise ValueError(
        f"TASK_FEATURE_LENGTHS={dict(feature_lengths)} leaves no room for two "
        "tokens of text: set larger lengths in --gin.TASK_FEATURE_LENGTHS"
      )
    return solved

  def _check(self, feature_lengths: Mapping[str, int]) -> None:
    names = self.feature_layout.feature_names
    if set(feature_lengths) != set(names):
      example = dict(zip(names, (512, 256)))
      raise ValueError(
        f"TASK_FEATURE_LENGTHS={dict(feature_lengths)}, but UL2's layout "
        f"{self.layout!r} has the features {names}: set "
        f'--gin.TASK_FEATURE_LENGTHS="{example}"'
      )
