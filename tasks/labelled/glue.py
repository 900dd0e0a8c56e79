"""The nine tasks of GLUE (arXiv 1804.07461).

Their files come as GLUE's own downloads have them, `CoLA/train.tsv`, or in one
folder, `cola-train.tsv`. Prompts for models that write, and the answers in
words, follow T5 (arXiv 1910.10683, appendix D).
"""

from collections.abc import Mapping
from typing import Any

from raptr_jax.tasks.downstream.metrics import (
  accuracy,
  f1,
  matthews,
  pearson,
  spearman,
)
from raptr_jax.tasks.labelled.task import LabelledTask, Metric, Split

ACCURACY: Mapping[str, Metric] = {"accuracy": accuracy}
F1_AND_ACCURACY: Mapping[str, Metric] = {
  "f1": lambda labels, predictions: f1(labels, predictions, of=1),
  "accuracy": accuracy,
}
ENTAILMENT = ("entailment", "not_entailment")
BINARY = ("0", "1")
PAIR = ("sentence1", "sentence2")


def _splits(
  name: str, folder: str, validation: Mapping[str, str]
) -> dict[str, Split]:
  """Train, validation and test, as most tasks have them.

  Args:
    name: of the task.
    folder: its official folder.
    validation: official names of the files to validate on, without their end,
      by their name at TFDS.
  """

  def split(tfds: str, official: str, **fields: Any) -> Split:
    files = (f"{folder}/{official}.tsv", f"{name}-{tfds}.tsv")
    return Split(tfds=tfds, files=files, **fields)

  splits = {"train": split("train", "train")}
  splits |= {tfds: split(tfds, file) for tfds, file in validation.items()}
  for tfds in validation:
    end = tfds.removeprefix("validation")
    mark = {"_matched": "-m", "_mismatched": "-mm"}.get(end, "")
    test = f"test{end}"
    splits[test] = split(
      test, test, has_labels=False, submission=f"{folder}{mark}.tsv"
    )
  return splits


def _task(
  name: str,
  folder: str,
  columns: tuple[str, ...],
  *,
  validation: Mapping[str, str] | None = None,
  **fields: Any,
) -> LabelledTask:
  fields = {
    "tfds_texts": columns,
    "test_columns": columns,
    "label_column": "label",
    "metrics": ACCURACY,
    "texts": columns,
  } | fields
  return LabelledTask(
    name=name,
    tfds_name=f"glue/{name}:2.0.0",
    columns=columns,
    splits=_splits(name, folder, validation or {"validation": "dev"}),
    **fields,
  )


TASKS = {
  task.name: task
  for task in (
    _task(
      "cola",
      "CoLA",
      ("sentence",),
      classes=BINARY,
      header={4: ("source", "label", "mark", "sentence")},
      metrics={"matthews": matthews},
      answers=("unacceptable", "acceptable"),
    ),
    _task(
      "sst2",
      "SST-2",
      ("sentence",),
      classes=BINARY,
      answers=("negative", "positive"),
    ),
    _task(
      "mrpc",
      "MRPC",
      ("#1 String", "#2 String"),
      tfds_texts=PAIR,
      texts=PAIR,
      label_column="Quality",
      classes=BINARY,
      metrics=F1_AND_ACCURACY,
      answers=("not_equivalent", "equivalent"),
    ),
    _task(
      "stsb",
      "STS-B",
      PAIR,
      label_column="score",
      bounds=(0.0, 5.0),
      metrics={"pearson": pearson, "spearman": spearman},
    ),
    _task(
      "qqp",
      "QQP",
      ("question1", "question2"),
      label_column="is_duplicate",
      classes=BINARY,
      metrics=F1_AND_ACCURACY,
      answers=("not_duplicate", "duplicate"),
      may_have_short_rows=True,
    ),
    _task(
      "mnli",
      "MNLI",
      PAIR,
      tfds_texts=("premise", "hypothesis"),
      texts=("premise", "hypothesis"),
      label_column="gold_label",
      validation={
        "validation_matched": "dev_matched",
        "validation_mismatched": "dev_mismatched",
      },
      classes=("entailment", "neutral", "contradiction"),
      answers=("entailment", "neutral", "contradiction"),
    ),
    _task(
      "qnli",
      "QNLI",
      ("question", "sentence"),
      classes=ENTAILMENT,
      answers=ENTAILMENT,
    ),
    _task("rte", "RTE", PAIR, classes=ENTAILMENT, answers=ENTAILMENT),
    _task(
      "wnli",
      "WNLI",
      PAIR,
      classes=BINARY,
      answers=("not_entailment", "entailment"),
    ),
  )
}
