"""What the checks of a run find: a line for each thing that is checked."""

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from raptr_jax.tasks.progress import Progress

LOG_SECONDS = 30.0  # Between two lines that a log gets about long work.
Thing = TypeVar("Thing")


class Findings:
  """Prints what is found, and keeps the names of what is wrong.

  Attributes:
    faulty: things with a fault, in order.
    blocking: those that have to be mended before the run can go on.
  """

  def __init__(self) -> None:
    self.faulty: list[str] = []
    self.blocking: list[str] = []

  def tell(self, thing: str, text: str) -> None:
    """Tells of a thing that is as it should be."""
    print(f"{thing}: {text}", flush=True)

  def fault(self, thing: str, text: str, *, blocks: bool = False) -> None:
    """Tells what is wrong with a thing.

    Args:
      thing: what was checked.
      text: what is wrong with it.
      blocks: whether the run cannot go on unless that is mended.
    """
    self.tell(thing, f"wrong: {text}")
    self.faulty.append(thing)
    if blocks:
      self.blocking.append(thing)


def one_by_one(things: Sequence[Thing], unit: str) -> Iterator[Thing]:
  """Each thing in turn, while a display says which one, and the time left.

  Args:
    things: to be read; `str` names them.
    unit: what one of them is.
  """
  begun = time.monotonic()
  with Progress(len(things), unit=unit, log_seconds=LOG_SECONDS) as progress:
    for done, thing in enumerate(things):
      each = (time.monotonic() - begun) / done if done else None
      left = None if each is None else each * (len(things) - done)
      progress.update(done, f"reading {thing}", left)
      yield thing
