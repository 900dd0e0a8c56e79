"""What a suite is given, and what it gives back."""

import dataclasses
import random
from pathlib import Path

from chaos_suites.program import Program


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
