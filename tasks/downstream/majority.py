"""The majority baseline: the same answer to every question."""

import collections
from collections.abc import Sequence
from typing import TypeVar

from raptr_jax.tasks.downstream.task import (
  Answer,
  DownstreamTask,
  Example,
  RankTask,
  Scores,
)

Value = TypeVar("Value", int, str)


def majority_scores(
  task: DownstreamTask, examples: Sequence[Example]
) -> Scores:
  """Scores of the answer that is right most often among these examples.

  Where every question has choices of its own, it is the most frequent place of
  the right one.
  """
  if isinstance(task, RankTask):
    place = _most_frequent([_right_place(example) for example in examples])
    return task.score(
      examples, [min(place, len(e.choices) - 1) for e in examples]
    )
  answer = Answer(_most_frequent([example.answer for example in examples]))
  return task.score(examples, [answer] * len(examples))


def _right_place(example: Example) -> int:
  """Number of the right choice; 0 if it is none of them, as in some of ReCoRD."""
  return (*example.choices, example.answer).index(example.answer) % len(
    example.choices
  )


def _most_frequent(values: Sequence[Value]) -> Value:
  return collections.Counter(values).most_common(1)[0][0]
