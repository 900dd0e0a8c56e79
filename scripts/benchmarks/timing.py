"""Times of programs that take turns, so that other load affects all alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, TypeVar

Seconds: TypeAlias = Sequence[float]
Name = TypeVar("Name")


def take_turns(
  steps: Mapping[Name, Callable[[], object]], *, rounds: int, warmup: int = 2
) -> dict[Name, Seconds]:
  """Seconds of each step in each round.

  Every other round runs the steps in reverse, since a step finds the caches as
  the one before has left them.

  Args:
    steps: functions that return when their work is done.
    rounds: number of rounds that count.
    warmup: number of rounds before them.
  """
  seconds: dict[Name, list[float]] = {name: [] for name in steps}
  names = list(steps)
  for number in range(warmup + rounds):
    names.reverse()
    for name in names:
      began = time.perf_counter()
      steps[name]()
      if number >= warmup:
        seconds[name].append(time.perf_counter() - began)
  return dict(seconds)


def ratio(seconds: Seconds, base: Seconds) -> float:
  """Median over rounds of one program's time over another's."""
  return statistics.median(a / b for a, b in zip(seconds, base, strict=True))
