"""Progress of a long job: a bar on a terminal, lines in a log."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from raptr_jax.tasks.heartbeat import Heartbeat

STDERR = 2


class Progress(contextlib.AbstractContextManager["Progress"]):
  """Shows work done, a status, and the time left.

  On a terminal it draws a bar with the status below. In a log it prints lines,
  such as `step 20/60  loss 5.95  eta 0:00:12`.
  """

  def __init__(
    self,
    total: int,
    *,
    done: float = 0,
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
    self._seconds_left: float | None = None
    self._log_seconds, self._logged = log_seconds, -math.inf
    self._console = Console(highlight=False, soft_wrap=True)
    self._bar = _Bar(self._console) if self._console.is_terminal else None
    self._heartbeat = Heartbeat(self._say_that_it_lives)
    self._activity = "starting"
    self._ask: Callable[[], float] = lambda: self._done

  def __enter__(self) -> "Progress":
    if self._bar:
      self._bar.activity = ("starting", time.monotonic())
      self._move(self._done)
      self._bar.live.start()
    else:
      self._heartbeat.__enter__()
    return self

  def __exit__(self, *error: object) -> None:
    if self._bar:
      self._bar.live.stop()
    else:
      self._heartbeat.__exit__()

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
    self._seconds_left = seconds_left
    self._done, self._activity = done, ""
    if self._bar:
      self._bar.status, self._bar.activity = status, None
      self._move(done)
    elif (
      done >= self._total
      or time.monotonic() - self._logged >= self._log_seconds
    ):
      self._logged = time.monotonic()
      self.note(f"{self._count(done)}  {status}  {self._eta()}")

  def follow(self, done: Callable[[], float]) -> None:
    """Lets the bar ask for the units done whenever it is drawn.

    A log asks when it has nothing else to say.
    """
    self._ask = done
    if self._bar:
      self._bar.before_drawing = lambda: self._move(done())

  def _move(self, done: float) -> None:
    """Moves the bar, and keeps the status."""
    self._done = done
    if self._bar:
      share = done / self._total if self._total else 0.0
      self._bar.show(f"{self._count(done)}  {self._eta()}", share)

  @contextlib.contextmanager
  def activity(self, name: str, *, in_log: bool = False) -> Iterator[None]:
    """Shows that the work waits for something, and for how long already.

    Args:
      name: what it waits for.
      in_log: whether a log gets a line, too.
    """
    self._activity = name
    if self._bar:
      self._bar.activity = (name, time.monotonic())
    elif in_log:
      self.note(f"{name} ...")
    try:
      yield
    finally:
      self._activity = ""
      if self._bar:
        self._bar.activity = None

  def announce(self, text: str) -> None:
    """Shows a text at once, even from a signal handler, until the end."""
    if self._bar:
      self._bar.announcement = text  # Drawn by another thread.
    else:
      # Not by print, which may have been interrupted itself.
      os.write(STDERR, f"{text}\n".encode())

  def note(self, text: str) -> None:
    """Prints lines without disturbing the bar."""
    if self._bar:
      self._console.print(text, markup=False)
    else:
      print(text, flush=True)
      self._heartbeat.heard()

  def _say_that_it_lives(self, silence: float) -> None:
    """A line of a log after `silence` seconds without one."""
    doing = f", {self._activity}" if self._activity else ""
    print(
      f"{self._count(self._ask())}  nothing new for {clock(silence)}{doing}",
      flush=True,
    )

  def _count(self, done: float) -> str:
    width = len(str(self._total))
    return f"{self._unit} {math.floor(done):>{width}}/{self._total}"

  def _eta(self) -> str:
    return f"eta {clock(self._seconds_left):>7}"


class _Bar:
  """A progress bar with a line of text below it, on a terminal.

  Attributes:
    status: the line, unless there is an activity or an announcement.
    activity: what the work waits for, and since when; None if it does not.
    announcement: takes the line for good; "" for none.
    before_drawing: called in the thread that draws.
    live: draws both, four times a second.
  """

  def __init__(self, console: Console):
    self.status = "training"
    self.activity: tuple[str, float] | None = None
    self.announcement = ""
    self.before_drawing: Callable[[], None] = lambda: None
    self._bar = RichProgress(
      BarColumn(bar_width=None),
      TextColumn("{task.percentage:>3.0f}%"),
      TextColumn("{task.description}"),
      console=console,
      expand=True,
    )
    self._task = self._bar.add_task("", total=1.0)
    self.live = Live(
      get_renderable=self._draw,
      console=console,
      refresh_per_second=4,
      transient=True,  # What is printed last, such as the result, stays last.
    )

  def show(self, head: str, share: float) -> None:
    """Replaces the text beside the bar, and fills this share of it."""
    self._bar.update(self._task, description=head, completed=share)

  def _draw(self) -> Group:
    self.before_drawing()
    line = self.status
    if self.activity:
      name, since = self.activity
      line = f"{name}, {clock(time.monotonic() - since)}"
    text = Text(self.announcement or line, no_wrap=True, overflow="ellipsis")
    return Group(self._bar, text)


def clock(seconds: float | None) -> str:
  """A duration as h:mm:ss, from 100 hours on in days; "n/a" if unknown."""
  if seconds is None or not math.isfinite(seconds):
    return "n/a"
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours >= 100:
    return f"{hours // 24}d {hours % 24:02}h"
  return f"{hours}:{minutes:02}:{seconds:02}"
