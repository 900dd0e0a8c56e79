"""What the eight tasks of SuperGLUE (arXiv:1905.00537) have in common."""

from collections.abc import Iterator, Sequence
from typing import Any

from tasks.downstream import metrics
from tasks.downstream.task import Example, Record, Scores


def files(official: str, name: str) -> dict[str, tuple[str, ...]]:
  """Files of a task: the official ones, or one for all splits.

  Args:
    official: folder of the official release, such as "BoolQ".
    name: the other file's name, such as "boolq".
  """
  return {
    "train": (f"{official}/train.jsonl", f"{name}.jsonl"),
    "validation": (f"{official}/val.jsonl", f"{name}.jsonl"),
  }


def single_record(row: Record) -> Iterator[Record]:
  """The record of a line that is one already."""
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
    prompt: see `Example`.
    choices: in the order of the labels.
    label: a number or a truth value; in original files also a name.
    label_names: the names, in the order of the labels.
    group: see `Example`.

  Raises:
    ValueError: there is no such label.
  """
  number = label_names.index(label) if isinstance(label, str) else int(label)
  if number not in range(len(choices)):
    raise ValueError(f"label {label!r} is none of {len(choices)}")
  return Example(
    prompt=prompt,
    answer=choices[number],
    choices=choices,
    label=number,
    group=group,
  )


def labels_of(examples: Sequence[Example]) -> list[int]:
  """The right choices of examples that have one each."""
  return [e.label for e in examples if e.label is not None]


def accuracy_scores(
  examples: Sequence[Example], chosen: Sequence[int]
) -> Scores:
  """The metric of five of the tasks."""
  return {"accuracy": 100 * metrics.accuracy(labels_of(examples), chosen)}
