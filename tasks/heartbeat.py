"""A sign of life in a log, when a job has said nothing for a while."""

import contextlib
import threading
import time
from collections.abc import Callable

FIRST_SECONDS = 60.0
LOOK_SECONDS = 1.0


class Heartbeat(contextlib.AbstractContextManager["Heartbeat"]):
  """Speaks after 1, 2, 4, ... minutes in which nothing else was said.

  A job that hangs then shows where it hangs, in few lines however long it takes.

  Args:
    say: called in a thread of its own, with the seconds of silence.
  """

  def __init__(self, say: Callable[[float], None]):
    self._say = say
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self.heard()

  def heard(self) -> None:
    """Something else was said: silence begins anew."""
    self._since, self._next = time.monotonic(), FIRST_SECONDS

  def beat(self, now: float) -> None:
    """Speaks if it is time."""
    silence = now - self._since
    if silence >= self._next:
      self._next *= 2
      self._say(silence)

  def _run(self) -> None:
    while not self._ended.wait(LOOK_SECONDS):
      self.beat(time.monotonic())

  def __enter__(self) -> "Heartbeat":
    self._thread.start()
    return self

  def __exit__(self, *error: object) -> None:
    self._ended.set()
    self._thread.join()
