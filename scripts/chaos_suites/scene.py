"""What a suite is given, and what it gives back."""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from chaos_suites.program import Program

Case = TypeVar("Case")


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a trial.

  Attributes:
    name: of the trial.
    failure: what did not hold; "" if everything did.
  """

  name: str
  failure: str = ""


@dataclasses.dataclass(frozen=True)
class Scene:
  """Where the trials of a suite take place.

  Attributes:
    program: starts the real program on small configurations.
    folder: for what the suite writes.
    trials: number of trials; a suite of a fixed list tries so many of it.
    random: of this suite alone, seeded.
  """

  program: Program
  folder: Path
  trials: int
  random: random.Random

  def chosen(self, cases: Sequence[Case]) -> Sequence[Case]:
    """All of a fixed list, or as many of it as there are trials, at random."""
    if self.trials >= len(cases):
      return cases
    return self.random.sample(cases, self.trials)
