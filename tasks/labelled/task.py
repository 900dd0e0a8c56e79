"""Tasks of texts with labels: their examples, and how predictions are scored.

A label is the number of a class, or a number to predict. The labels of test
sets are not public: predictions on them are written in the form that the task's
own evaluation takes.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from raptr_jax.tasks.downstream import sources
from raptr_jax.tasks.labelled import tables

Label: TypeAlias = int | float
# (labels, predictions) -> a score from 0 to 1, or from -1 to 1.
Metric: TypeAlias = Callable[[Sequence[Any], Sequence[Any]], float]
Scores: TypeAlias = dict[str, float]  # By metric, times 100.
TRAIN = "train"


@dataclasses.dataclass(frozen=True)
class LabelledExample:
  """One or two texts, and what they are.

  Attributes:
    texts: to read.
    label: the number of a class, or a number; None in test sets.
    index: of the example, as its set counts.
  """

  texts: tuple[str, ...]
  label: Label | None
  index: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
  """A part of a task's examples.

  Attributes:
    tfds: its name there.
    files: that may hold it, as relative paths; the first that exists is read.
    submission: name of the file of predictions on it; "" for none.
    has_labels: false for test sets.
  """

  tfds: str
  files: tuple[str, ...]
  submission: str = ""
  has_labels: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledTask:
  """A set of labelled texts.

  Attributes:
    name: of the task.
    tfds_name: the TFDS set, with its version.
    tfds_texts: its features that are the texts.
    columns: of the original files that are the texts, as their header has them.
    label_column: that of the label.
    test_columns: those of the texts in test files.
    header: of files that begin without one, for each number of columns.
    splits: by name; "train", those to validate on, those to test on.
    classes: names of the classes, in order; () for a number to predict.
    bounds: of a number to predict.
    metrics: the official ones, by name; their mean is the task's score.
    texts: names of the texts in a prompt.
    answers: the classes in words, for models that write.
    may_have_short_rows: whether rows with missing columns are left out; the
      original files of some tasks have a few.
  """

  name: str
  tfds_name: str
  tfds_texts: tuple[str, ...]
  columns: tuple[str, ...]
  label_column: str
  splits: Mapping[str, Split]
  metrics: Mapping[str, Metric]
  classes: tuple[str, ...] = ()
  bounds: tuple[float, float] = (0.0, 1.0)
  test_columns: tuple[str, ...] = ()
  header: Mapping[int, tuple[str, ...]] = dataclasses.field(
    default_factory=dict
  )
  texts: tuple[str, ...] = ()
  answers: tuple[str, ...] = ()
  may_have_short_rows: bool = False

  @property
  def validation_splits(self) -> tuple[str, ...]:
    """Splits with labels to choose by; the first one decides."""
    return tuple(
      name
      for name, split in self.splits.items()
      if split.has_labels and name != TRAIN
    )

  @property
  def test_splits(self) -> tuple[str, ...]:
    """Splits without labels."""
    return tuple(n for n, split in self.splits.items() if not split.has_labels)

  def examples_from_folder(
    self, folder: str, split: str
  ) -> list[LabelledExample]:
    """The examples of a split, from the original files.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it lacks columns, has other labels, or is empty.
    """
    part = self.splits[split]
    path = tables.find(folder, part.files)
    texts = self.columns if part.has_labels else self.test_columns
    wanted = (*texts, *((self.label_column,) if part.has_labels else ()))
    rows = tables.rows(
      path, wanted, self.header, skip_short=self.may_have_short_rows
    )
    examples = []
    for number, (line, row) in enumerate(rows):
      label = None
      if part.has_labels:
        label = self._label(row[self.label_column], f"{path}, line {line}")
      examples.append(
        LabelledExample(tuple(row[name] for name in texts), label, number)
      )
    if not examples:
      raise ValueError(
        f"{path} has no examples: correct it, or --gin.FINE_TUNING_DIR"
      )
    return examples

  def examples_from_tfds(
    self, split: str, data_dir: str | None = None
  ) -> list[LabelledExample]:
    """The examples of a split, from TensorFlow Datasets.

    Raises:
      FileNotFoundError: the set is not prepared.
    """
    part = self.splits[split]
    records = sources.tfds_records(
      self.tfds_name, part.tfds, data_dir, macros="FINE_TUNING"
    )
    examples = [self._from_record(record, part) for record in records]
    return sorted(examples, key=lambda example: example.index)

  def scores(
    self, labels: Sequence[Label], predictions: Sequence[Label]
  ) -> Scores:
    """Metrics times 100, and their mean as "score"."""
    found = {
      name: 100 * metric(labels, predictions)
      for name, metric in self.metrics.items()
    }
    return found | {"score": sum(found.values()) / len(found)}

  def shown(self, prediction: Label) -> str:
    """A prediction as the files have it."""
    if self.classes:
      return self.classes[int(prediction)]
    return f"{prediction:.3f}"

  def _from_record(
    self, record: Mapping[str, Any], part: Split
  ) -> LabelledExample:
    label = record["label"] if part.has_labels else None
    texts = tuple(record[name] for name in self.tfds_texts)
    return LabelledExample(texts, label, record["idx"])

  def _label(self, text: str, where: str) -> Label:
    """The label that a file has."""
    if self.classes:
      if text not in self.classes:
        raise ValueError(
          f"{where}: the label is {text!r}, expected one of"
          f" {', '.join(self.classes)}: correct the file, or"
          " --gin.FINE_TUNING_DIR"
        )
      return self.classes.index(text)
    low, high = self.bounds
    try:
      value = float(text)
    except ValueError:
      value = math.nan
    if not low <= value <= high:
      raise ValueError(
        f"{where}: the label is {text!r}, expected a number from {low:g} to"
        f" {high:g}: correct the file, or --gin.FINE_TUNING_DIR"
      )
    return value
