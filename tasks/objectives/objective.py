"""The interface of objectives: rows of tokens to examples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Int

from raptr_jax.tasks.objectives.layouts import FeatureLayout, Pair
from raptr_jax.tasks.objectives.packing import Framing, Row
from raptr_jax.tasks.text.vocabulary import Vocabulary

# (row, rng) -> the features of an example; all randomness comes from `rng`.
Corruption: TypeAlias = Callable[
  [Row, np.random.Generator], dict[str, np.ndarray]
]


class Objective(Protocol):
  """What a model learns from text: how rows are made and corrupted."""

  @property
  def example_kinds(self) -> tuple[str, ...]:
    """Names of the example kinds that feature `example_kind` numbers.

    Empty if all examples are of one kind.
    """

  def extra_pieces(self, feature_lengths: Mapping[str, int]) -> tuple[str, ...]:
    """Pieces that end a vocabulary trained for it, by ascending id."""

  def framing(self, vocabulary: Vocabulary) -> Framing:
    """The tokens around each piece of a row."""

  def row_length(self, feature_lengths: Mapping[str, int]) -> int:
    """Most tokens in a row, given the lengths of a batch's features."""

  def features(
    self, feature_lengths: Mapping[str, int]
  ) -> dict[str, tuple[int, type]]:
    """Length and type of each feature of an example."""

  def corruption(
    self, vocabulary: Vocabulary, feature_lengths: Mapping[str, int]
  ) -> Corruption:
    """The function (row, rng) -> example for a vocabulary."""


@runtime_checkable
class GenerativeObjective(Objective, Protocol):
  """An objective that teaches a model to write: it reads, then continues."""

  @property
  def feature_layout(self) -> FeatureLayout:
    """How inputs and targets become the features of a batch."""

  def continuation(
    self, tokens: Sequence[int], vocabulary: Vocabulary
  ) -> Int[np.ndarray, "..."]:
    """Inputs whose targets continue `tokens`: `lead`, then the text."""

  def lead(self, vocabulary: Vocabulary) -> tuple[int, ...]:
    """The tokens that a model writes before it continues a text."""

  def written_text(
    self, targets: Sequence[int] | np.ndarray, vocabulary: Vocabulary
  ) -> list[int]:
    """The tokens of the text in what a model has written to continue one."""


@runtime_checkable
class InfillingObjective(GenerativeObjective, Protocol):
  """An objective that also teaches a model to fill blanks."""

  def infill_pair(
    self,
    tokens: Sequence[int],
    rng: np.random.Generator,
    vocabulary: Vocabulary,
  ) -> Pair:
    """A text with blanks, and what was in them, to show what was learned."""

  def infill_prompt(
    self, pair: Pair, vocabulary: Vocabulary
  ) -> Int[np.ndarray, "..."]:
    """What a model reads in order to fill the blanks of such a text."""
