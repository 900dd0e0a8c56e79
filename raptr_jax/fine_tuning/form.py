"""How a model reads a task and answers it: what all forms of tasks share."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from raptr_jax.contracts import Model, Params
from raptr_jax.training.partitioning import Partitioner

TRAIN = "train"


class Form(Protocol):
  """A task in the form in which a family of models learns it.

  Attributes:
    name: of the task.
    model: what is trained: the pretrained model, or one with a head of its own.
    fresh_parts: names of the parts of its parameters that are not pretrained.
    metrics: names of the official metrics.
    validation_splits: that have labels; the first one decides.
    test_splits: without labels.
  """

  @property
  def name(self) -> str: ...

  @property
  def model(self) -> Model: ...

  @property
  def fresh_parts(self) -> tuple[str, ...]: ...

  @property
  def metrics(self) -> tuple[str, ...]: ...

  @property
  def validation_splits(self) -> tuple[str, ...]: ...

  @property
  def test_splits(self) -> tuple[str, ...]: ...

  def examples(self, split: str) -> Sequence[Any]:
    """The examples of a split, read once.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not what the task expects.
    """

  def features(self, example: Any) -> Mapping[str, np.ndarray]:
    """What a model reads and learns of an example, for a batch."""

  def predictor(self, partitioner: Partitioner) -> "Predictor":
    """Predicts for examples; compiled once for a run."""

  def scores(
    self, split: str, predictions: Sequence[Any]
  ) -> Mapping[str, float]:
    """Metrics of a split, and their mean as "score"."""

  def baseline(self) -> Mapping[str, float]:
    """Scores, on the deciding split, of the commonest label in training.

    Empty for tasks without one.
    """

  def lines(
    self, split: str, predictions: Sequence[Any]
  ) -> Sequence[Mapping[str, Any]]:
    """Predictions as JSON, one object for each example."""

  def submission(
    self, split: str, predictions: Sequence[Any]
  ) -> tuple[str, str]:
    """Name and text of the file that the task's own evaluation takes.

    The name is "" if there is none.
    """


class Predictor(Protocol):
  """Answers examples with a trained model."""

  def __call__(self, params: Params, examples: Sequence[Any]) -> list[Any]:
    """A prediction for each example."""
