"""Masked language modelling, the objective of BERT (arXiv 1810.04805).

A model predicts 15 % of a row's tokens; of these, 80 % become [MASK], 10 %
become a random token, and 10 % stay (Sec. 3.1 and App. A.1). Departures: a row
packs pieces of documents that do not see each other, there is no next-sentence
task, and every epoch draws new masks.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from raptr_jax.tasks.objectives.objective import Corruption
from raptr_jax.tasks.objectives.packing import (
  Framing,
  Row,
  pad,
  positions,
  segment_ids,
)
from raptr_jax.tasks.text.vocabulary import Vocabulary

MASKED = 0.8  # Share of predicted tokens that become [MASK] ...
RANDOM = 0.1  # ... and share that become a random token.


def mask_tokens(
  row: Row,
  rng: np.random.Generator,
  *,
  length: int,
  num_targets: int,
  mask_rate: float,
  mask_id: int,
  pad_id: int,
  ordinary_ids: np.ndarray,
) -> dict[str, np.ndarray]:
  """Corrupts a row, and lists the tokens to predict.

  Only ordinary tokens are predicted or drawn; `mask_rate` is exact on average.

  Args:
    row: a row with framing; not modified.
    rng: the only source of randomness.
    length: T, the length to pad to.
    num_targets: P, the most tokens to predict.
    mask_rate: share of ordinary tokens to predict.
    mask_id: id of [MASK].
    pad_id: id of [PAD].
    ordinary_ids: int32[...], ascending, all ids that are not special.

  Returns:
    tokens: int32[T], corrupted, then padding.
    segment_ids: int32[T], number of the piece, counted from 1; 0 is padding.
    positions: int32[T], position within the piece; 0 for padding.
    target_positions: int32[P], ascending positions in the row; 0 if unused.
    targets: int32[P], the original tokens there; 0 if unused.
    target_weights: float32[P], 1 for used slots, 0 for unused ones.
  """
  places = np.searchsorted(ordinary_ids, row.tokens)
  places = np.minimum(places, len(ordinary_ids) - 1)
  candidates = np.flatnonzero(ordinary_ids[places] == row.tokens)
  count = math.floor(mask_rate * len(candidates) + rng.random())
  count = min(count, num_targets)
  chosen = np.sort(rng.permutation(candidates)[:count])
  targets = row.tokens[chosen]
  tokens = pad([row.tokens], length, fill=pad_id)
  tokens[chosen] = _replacements(targets, rng, mask_id, ordinary_ids)
  return {
    "tokens": tokens,
    "segment_ids": pad([segment_ids(row.segment_lengths)], length),
    "positions": pad([positions(row.segment_lengths)], length),
    "target_positions": pad([chosen], num_targets),
    "targets": pad([targets], num_targets),
    "target_weights": pad([np.ones(count)], num_targets, np.float32),
  }


def _replacements(
  targets: np.ndarray,
  rng: np.random.Generator,
  mask_id: int,
  ordinary_ids: np.ndarray,
) -> np.ndarray:
  """For each predicted token [MASK], a random token, or the token itself."""
  count = len(targets)
  draw = rng.random(count)
  random_ids = ordinary_ids[rng.integers(len(ordinary_ids), size=count)]
  replaced = np.where(draw < MASKED, mask_id, targets)
  return np.where(draw >= 1 - RANDOM, random_ids, replaced)


@dataclasses.dataclass(frozen=True)
class MaskedLM:
  """BERT's objective, on rows of the feature "inputs".

  Attributes:
    mask_rate: share of tokens to predict.
    example_kinds: empty, since all examples are of one kind.
  """

  mask_rate: float = 0.15
  example_kinds: ClassVar[tuple[str, ...]] = ()

  def __post_init__(self):
    if not 0 < self.mask_rate < 1:
      raise ValueError(
        f"mask_rate={self.mask_rate} must lie between 0 and 1: set "
        "--gin.masked_lm.MaskedLM.mask_rate"
      )

  def framing(self, vocabulary: Vocabulary) -> Framing:
    """[CLS] before and [SEP] after each piece."""
    return Framing((vocabulary.cls_id,), (vocabulary.sep_id,))

  def extra_pieces(self, feature_lengths: Mapping[str, int]) -> tuple[str, ...]:
    del feature_lengths
    return ()

  def row_length(self, feature_lengths: Mapping[str, int]) -> int:
    """T, the length of "inputs".

    Raises:
      ValueError: "inputs" is missing, or not the only feature.
    """
    if set(feature_lengths) != {"inputs"}:
      raise ValueError(
        f"TASK_FEATURE_LENGTHS={dict(feature_lengths)}, but masked language "
        "modelling has one feature, 'inputs': set "
        "--gin.TASK_FEATURE_LENGTHS=\"{'inputs': 128}\""
      )
    return feature_lengths["inputs"]

  def num_targets(self, feature_lengths: Mapping[str, int]) -> int:
    """P, the most tokens to predict in a row."""
    return math.ceil(self.mask_rate * self.row_length(feature_lengths))

  def features(
    self, feature_lengths: Mapping[str, int]
  ) -> dict[str, tuple[int, type]]:
    """Length and type of each feature that `mask_tokens` returns."""
    inputs = (self.row_length(feature_lengths), np.int32)
    targets = (self.num_targets(feature_lengths), np.int32)
    return {
      "tokens": inputs,
      "segment_ids": inputs,
      "positions": inputs,
      "target_positions": targets,
      "targets": targets,
      "target_weights": (targets[0], np.float32),
    }

  def corruption(
    self, vocabulary: Vocabulary, feature_lengths: Mapping[str, int]
  ) -> Corruption:
    """`mask_tokens` for a vocabulary and a row length.

    Raises:
      ValueError: a feature is missing, or the vocabulary has no [MASK].
    """
    length = self.row_length(feature_lengths)
    ordinary_ids = np.setdiff1d(
      np.arange(vocabulary.size), vocabulary.special_ids
    )
    return functools.partial(
      mask_tokens,
      length=length,
      num_targets=self.num_targets(feature_lengths),
      mask_rate=self.mask_rate,
      mask_id=vocabulary.mask_id,
      pad_id=vocabulary.pad_id,
      ordinary_ids=ordinary_ids.astype(np.int32),
    )
