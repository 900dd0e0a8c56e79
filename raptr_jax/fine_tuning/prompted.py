"""Tasks as prompts and answers: those by prompt, and GLUE's in words."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from raptr_jax.tasks.downstream.task import (
  DownstreamTask,
  Example,
  GenerationTask,
)
from raptr_jax.tasks.labelled.task import LabelledExample, LabelledTask

STEP = 0.2  # Between numbers to choose from, as T5 rounds those of STS-B.


class PromptSource(Protocol):
  """A task whose examples are prompts.

  Attributes:
    name: of the task.
    metrics: names of the official ones.
    validation_splits: that have labels; the first one decides.
    test_splits: without labels.
    max_new_tokens: of an answer that is written; None where there are choices.
  """

  @property
  def name(self) -> str: ...

  @property
  def metrics(self) -> tuple[str, ...]: ...

  @property
  def validation_splits(self) -> tuple[str, ...]: ...

  @property
  def test_splits(self) -> tuple[str, ...]: ...

  @property
  def max_new_tokens(self) -> int | None: ...

  def examples(self, split: str) -> list[Example]:
    """The examples of a split."""

  def scores(
    self, examples: Sequence[Example], predictions: Sequence[Any]
  ) -> Mapping[str, float]:
    """Metrics of the numbers of choices, or of what was written."""

  def submission(
    self, split: str, predictions: Sequence[Any]
  ) -> tuple[str, str]:
    """See `form.Form`."""


@dataclasses.dataclass(frozen=True)
class ByPrompt:
  """A task of evaluation by prompt, such as those of SuperGLUE.

  Attributes:
    task: the task; prompts are its own.
    folder: of its original files; None reads TFDS.
    tfds_data_dir: folder of the prepared TFDS sets; None for TFDS's default.
  """

  task: DownstreamTask
  folder: str | None
  tfds_data_dir: str | None
  validation_splits: tuple[str, ...] = ("validation",)
  test_splits: tuple[str, ...] = ()

  @property
  def name(self) -> str:
    return self.task.name

  @property
  def metrics(self) -> tuple[str, ...]:
    return self.task.metrics

  @property
  def max_new_tokens(self) -> int | None:
    if isinstance(self.task, GenerationTask):
      return self.task.max_new_tokens
    return None

  def examples(self, split: str) -> list[Example]:
    try:
      if self.folder is None:
        return self.task.examples_from_tfds(split, self.tfds_data_dir)
      return self.task.examples_from_folder(self.folder, split)
    except (FileNotFoundError, ValueError) as error:
      # The task names the macros of evaluation.
      text = str(error).replace("--gin.DOWNSTREAM_", "--gin.FINE_TUNING_")
      raise type(error)(text) from error

  def scores(
    self, examples: Sequence[Example], predictions: Sequence[Any]
  ) -> Mapping[str, float]:
    return self.task.score(examples, predictions)

  def submission(
    self, split: str, predictions: Sequence[Any]
  ) -> tuple[str, str]:
    raise NotImplementedError(f"{self.name} has no test set here")


@dataclasses.dataclass(frozen=True)
class InWords:
  """A task of labelled texts, whose classes are words to choose from.

  Prompts follow T5 (arXiv 1910.10683, appendix D): "mnli premise: ...
  hypothesis: ...". Numbers are rounded to the nearest multiple of 0.2.

  Attributes:
    task: the task.
    folder: of its original files; None reads TFDS.
    tfds_data_dir: folder of the prepared TFDS sets; None for TFDS's default.
  """

  task: LabelledTask
  folder: str | None
  tfds_data_dir: str | None
  max_new_tokens: None = None

  @property
  def name(self) -> str:
    return self.task.name

  @property
  def metrics(self) -> tuple[str, ...]:
    return tuple(self.task.metrics)

  @property
  def validation_splits(self) -> tuple[str, ...]:
    return self.task.validation_splits

  @property
  def test_splits(self) -> tuple[str, ...]:
    return self.task.test_splits

  @property
  def choices(self) -> tuple[str, ...]:
    """The classes in words, or the numbers to choose from."""
    return self.task.answers or tuple(f"{x:.1f}" for x in self._numbers)

  def examples(self, split: str) -> list[Example]:
    return [self._example(x) for x in self._labelled(split)]

  def scores(
    self, examples: Sequence[Example], predictions: Sequence[Any]
  ) -> Mapping[str, float]:
    labels = [example.references[0] for example in examples]
    if self.task.classes:
      known = [int(label) for label in labels]
      return self.task.scores(known, predictions)
    guesses = [self._numbers[number] for number in predictions]
    return self.task.scores([float(label) for label in labels], guesses)

  def submission(
    self, split: str, predictions: Sequence[Any]
  ) -> tuple[str, str]:
    rows = []
    for example, number in zip(self._labelled(split), predictions, strict=True):
      guess = number if self.task.classes else self._numbers[number]
      rows.append(f"{example.index}\t{self.task.shown(guess)}\n")
    text = "index\tprediction\n" + "".join(rows)
    return self.task.splits[split].submission, text

  @property
  def _numbers(self) -> list[float]:
    low, high = self.task.bounds
    count = round((high - low) / STEP) + 1
    return [float(x) for x in np.linspace(low, high, count)]

  def _labelled(self, split: str) -> list[LabelledExample]:
    if self.folder is None:
      return self.task.examples_from_tfds(split, self.tfds_data_dir)
    return self.task.examples_from_folder(self.folder, split)

  def _example(self, found: LabelledExample) -> Example:
    parts = (
      f"{name}: {text}" for name, text in zip(self.task.texts, found.texts)
    )
    choices, label = self.choices, found.label
    number = None if label is None else int(label)
    if label is not None and not self.task.classes:
      distances = [abs(x - label) for x in self._numbers]
      number = distances.index(min(distances))
    return Example(
      prompt=" ".join([self.task.name, *parts]),
      answer="" if number is None else choices[number],
      choices=choices,
      label=number,
      references=() if label is None else (str(label),),
    )
