"""A case of bad input."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

HERE = "HERE"  # In the strings of a case: its folder.


def _nothing(here: Path) -> None:
  """Leaves the folder of a case as it is."""


@dataclasses.dataclass(frozen=True)
class Case:
  """Bad input, and what the error line must say.

  The folder of a case has the `data` and the `run` that it needs.

  Attributes:
    name: for people, and of its folder.
    flags: that follow those of a good command.
    words: that the line must have: the value, and what to change.
    arrange: makes files in the folder, or damages them.
    has_data: whether the data is prepared; other cases end before they read it.
    has_run: whether the run is finished; its data is then prepared, too.
    alone: whether there are no other flags.
    run: the good command, one of `program.RUNS`.
  """

  name: str
  flags: tuple[str, ...]
  words: tuple[str, ...]
  arrange: Callable[[Path], object] = _nothing
  has_data: bool = False
  has_run: bool = False
  alone: bool = False
  run: str = "bert"

  def flags_in(self, here: Path) -> list[str]:
    """The flags, for a case in this folder."""
    return [flag.replace(HERE, str(here)) for flag in self.flags]

  def words_in(self, here: Path) -> list[str]:
    """The words, likewise."""
    return [word.replace(HERE, str(here)) for word in self.words]


def gin(*bindings: str) -> tuple[str, ...]:
  """The flags of bindings, NAME=VALUE."""
  return tuple(f"--gin.{binding}" for binding in bindings)
