"""Progress of a long job: a bar on a terminal, lines in a log."""

import contextlib
import datetime
import math
import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text


class Progress(contextlib.AbstractContextManager["Progress"]):
  """Shows work done, a status, and the time left.

  On a terminal it draws a bar with the status below. In a log it prints lines,
  such as `step 20/60  loss 5.95  eta 0:00:12`.
  """

  def __init__(
    self,
    total: int,
    *,
    done: int = 0,
    unit: str = "step",
    log_seconds: float = 0.0,
  ):
    """Starts at `done` of `total`.

    Args:
      total: amount of work, in units.
      done: units that earlier processes have done.
      unit: name of the unit, in the singular.
      log_seconds: minimum time between log lines; the last is always printed.
    """
    self._total, self._done, self._unit = total, done, unit
    self._log_seconds, self._logged = log_seconds, -math.inf
    self._console = Console(highlight=False, soft_wrap=True)
    self._bar = _Bar(self._console) if self._console.is_terminal else None

  def __enter__(self) -> "Progress":
    if self._bar:
      self._bar.show(f"{self._unit} {self._done}/{self._total}", "starting")
      self._bar.live.start()
    return self

  def __exit__(self, *error: object) -> None:
    if self._bar:
      self._bar.live.stop()

  @property
  def is_terminal(self) -> bool:
    """Whether progress is drawn as a bar."""
    return self._bar is not None

  def update(
    self,
    done: float,
    status: str,
    seconds_left: float | None = None,
    *,
    total: int | None = None,
  ) -> None:
    """Shows the state of the work.

    Args:
      done: units done.
      status: text to show with the count.
      seconds_left: time to the end; None if unknown.
      total: amount of work, if it has changed.
    """
    self._total = self._total if total is None else total
    width = len(str(self._total))
    count = f"{self._unit} {math.floor(done):>{width}}/{self._total}"
    eta = f"eta {clock(seconds_left):>8}"
    if self._bar:
      share = done / self._total if self._total else 0.0
      self._bar.show(f"{count}  {eta}", status, share)
    elif (
      done >= self._total
      or time.monotonic() - self._logged >= self._log_seconds
    ):
      self._logged = time.monotonic()
      self.note(f"{count}  {status}  {eta}")

  def note(self, text: str) -> None:
    """Prints lines without disturbing the bar."""
    if self._bar:
      self._console.print(text, markup=False)
    else:
      print(text, flush=True)


class _Bar:
  """A progress bar with a line of text below it, on a terminal."""

  def __init__(self, console: Console):
    self._bar = RichProgress(
      BarColumn(bar_width=None),
      TextColumn("{task.percentage:>3.0f}%"),
      TextColumn("{task.description}"),
      console=console,
      expand=True,
    )
    self._task = self._bar.add_task("", total=1.0)
    self._status = Text(no_wrap=True, overflow="ellipsis")
    self.live = Live(
      Group(self._bar, self._status), console=console, refresh_per_second=4
    )

  def show(self, head: str, status: str, share: float | None = None) -> None:
    """Replaces the text, and fills this share of the bar."""
    self._bar.update(self._task, description=head, completed=share)
    self._status.plain = status


def clock(seconds: float | None) -> str:
  """A duration as h:mm:ss; "n/a" if unknown."""
  if seconds is None or not math.isfinite(seconds):
    return "n/a"
  return str(datetime.timedelta(seconds=round(seconds)))
