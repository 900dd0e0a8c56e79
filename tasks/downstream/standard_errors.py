"""How sure scores are: their standard errors over examples."""

import math
from collections.abc import Callable, Hashable, Sequence

from raptr_jax.tasks.downstream.task import Scores

MOST_PARTS = 100


def jackknife(
  score: Callable[[list[int]], Scores], groups: Sequence[Hashable]
) -> Scores:
  """The standard error of each score, in its own units.

  The scores are computed again without each part of the examples. Where a part
  is one example, the error of a mean is s / sqrt(n); unlike that formula, this
  also holds for scores that are no means, such as F1 of a class. Of more than
  100 groups each part has several.

  Args:
    score: scores of the examples of these numbers.
    groups: of each example; those of one group, such as the candidates of a
      question, are left out together.

  Returns:
    NaN where a score is undefined without one of the parts.
  """
  numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
  count = min(len(numbers), MOST_PARTS)
  if count < 2:
    return dict.fromkeys(score([*range(len(groups))]), math.nan)
  parts = [numbers[group] % count for group in groups]
  left = [
    score([number for number, part in enumerate(parts) if part != out])
    for out in range(count)
  ]
  names = dict.fromkeys(name for scores in left for name in scores)
  return {
    name: _error([scores.get(name, math.nan) for scores in left])
    for name in names
  }


def _error(values: Sequence[float]) -> float:
  mean = math.fsum(values) / len(values)
  squares = math.fsum((value - mean) ** 2 for value in values)
  return math.sqrt((len(values) - 1) / len(values) * squares)
