"""What the eight tasks of SuperGLUE (arXiv 1905.00537) have in common."""

from collections.abc import Iterator, Sequence
from typing import Any

from raptr_jax.tasks.downstream import metrics
from raptr_jax.tasks.downstream.task import Example, Record, Scores


def files(official: str, name: str) -> dict[str, tuple[str, ...]]:
  """Where a task's files may be: one per split, or one for all splits.

  Args:
    official: the task's folder in the official release, such as "BoolQ".
    name: name of a single file, such as "boolq".
  """
  return {
    "train": (f"{official}/train.jsonl", f"{name}.jsonl"),
    "validation": (f"{official}/val.jsonl", f"{name}.jsonl"),
  }


def single_record(row: Record) -> Iterator[Record]:
  """A line that already is a record."""
  yield row


def choice_example(
  prompt: str,
  *,
  choices: tuple[str, ...],
  label: Any,
  label_names: tuple[str, ...] = (),
  group: str = "",
) -> Example:
  """An example with one right choice.

  Args:
    prompt: what the model reads.
    choices: texts to choose from, in the order of the labels.
    label: a number, a truth value, or (in original files) a name.
    label_names: names of the labels, in order.
    group: what a metric groups by.

  Raises:
    ValueError: the label is unknown.
  """
  number = label_names.index(label) if isinstance(label, str) else int(label)
  if number not in range(len(choices)):
    raise ValueError(f"label {label!r} is not one of the {len(choices)} labels")
  return Example(
    prompt=prompt,
    answer=choices[number],
    choices=choices,
    label=number,
    group=group,
  )


def labels_of(examples: Sequence[Example]) -> list[int]:
  """The right choice of each example."""
  return [e.label for e in examples if e.label is not None]


def accuracy_scores(
  examples: Sequence[Example], chosen: Sequence[int]
) -> Scores:
  """Accuracy, the only metric of five of the tasks."""
  return {"accuracy": 100 * metrics.accuracy(labels_of(examples), chosen)}
