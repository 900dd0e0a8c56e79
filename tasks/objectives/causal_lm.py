"""Causal language modelling: every token is predicted from those before it.

A row packs pieces of documents. Each piece begins with [CLS], from which its
first token is predicted, and each document ends with [SEP], so that a model
learns where texts end.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from raptr_jax.tasks.objectives.denoising import until_end
from raptr_jax.tasks.objectives.layouts import CausalLayout, FeatureLayout, Pair
from raptr_jax.tasks.objectives.objective import Corruption
from raptr_jax.tasks.objectives.packing import Framing, Row
from raptr_jax.tasks.text.vocabulary import Vocabulary

LAYOUT = CausalLayout()


def shift_tokens(
  row: Row,
  rng: np.random.Generator,
  *,
  length: int,
  document_masks: bool,
  pad_id: int,
  eos_id: int,
) -> dict[str, np.ndarray]:
  """The example of a row; nothing is random.

  Args:
    row: a row whose pieces begin with [CLS]; not modified.
    rng: not used.
    length: T, the length to pad to.
    document_masks: whether pieces do not see each other. Otherwise the row is
      one text, in which only the first piece keeps its [CLS].
    pad_id: id of padding.
    eos_id: id that ends documents.

  Returns:
    The features of `CausalLayout`.
  """
  del rng
  ends = np.cumsum(row.segment_lengths)
  pieces = np.split(row.tokens, ends[:-1])
  if not document_masks:
    pieces = [np.concatenate([pieces[0], *(piece[1:] for piece in pieces[1:])])]
  pairs = [Pair(piece[:1], piece[1:]) for piece in pieces]
  return LAYOUT.join(pairs, {"tokens": length}, pad_id=pad_id, eos_id=eos_id)


@dataclasses.dataclass(frozen=True)
class CausalLM:
  """Predicts the next token, on rows of the feature "tokens".

  Implements `objective.GenerativeObjective`.

  Attributes:
    document_masks: whether a token reads only its own document. Otherwise it
      reads all that comes before it in the row.
    example_kinds: empty, since all examples are of one kind.
  """

  document_masks: bool = True
  example_kinds: ClassVar[tuple[str, ...]] = ()

  @property
  def feature_layout(self) -> FeatureLayout:
    return LAYOUT

  def framing(self, vocabulary: Vocabulary) -> Framing:
    """[CLS] before each piece, and [SEP] after each document."""
    return Framing(prefix=(vocabulary.cls_id,), end=(vocabulary.sep_id,))

  def extra_pieces(self, feature_lengths: Mapping[str, int]) -> tuple[str, ...]:
    del feature_lengths
    return ()

  def row_length(self, feature_lengths: Mapping[str, int]) -> int:
    """T + 1: a row's last token is never an input.

    Raises:
      ValueError: "tokens" is missing, or not the only feature.
    """
    if set(feature_lengths) != {"tokens"}:
      raise ValueError(
        f"TASK_FEATURE_LENGTHS={dict(feature_lengths)}, but causal language "
        "modelling has one feature, 'tokens': set "
        "--gin.TASK_FEATURE_LENGTHS=\"{'tokens': 128}\""
      )
    return feature_lengths["tokens"] + 1

  def features(
    self, feature_lengths: Mapping[str, int]
  ) -> dict[str, tuple[int, type]]:
    """The features of `CausalLayout`."""
    self.row_length(feature_lengths)
    return LAYOUT.features(feature_lengths)

  def corruption(
    self, vocabulary: Vocabulary, feature_lengths: Mapping[str, int]
  ) -> Corruption:
    """`shift_tokens` for a vocabulary and a row length."""
    return functools.partial(
      shift_tokens,
      length=self.row_length(feature_lengths) - 1,
      document_masks=self.document_masks,
      pad_id=vocabulary.pad_id,
      eos_id=vocabulary.eos_id,
    )

  def continuation(
    self, tokens: Sequence[int], vocabulary: Vocabulary
  ) -> np.ndarray:
    """The tokens after [CLS], int32[...]."""
    return np.array([vocabulary.cls_id, *tokens], np.int32)

  def lead(self, vocabulary: Vocabulary) -> tuple[int, ...]:
    """Nothing comes before the text that a model writes."""
    del vocabulary
    return ()

  def written_text(
    self, targets: Sequence[int] | np.ndarray, vocabulary: Vocabulary
  ) -> list[int]:
    """All tokens before the end."""
    return until_end(targets, vocabulary.eos_id)
