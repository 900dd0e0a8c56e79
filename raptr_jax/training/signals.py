"""Stops a run early: SIGTERM, SIGINT, or a preemption notice."""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Stopped(KeyboardInterrupt):
  """A signal stopped a run early, which has saved a checkpoint.

  A `KeyboardInterrupt`, so that a script or a notebook stops, too.

  Attributes:
    step: number of steps done.
    signal_number: SIGINT or SIGTERM.
  """

  def __init__(self, step: int, signal_number: int):
    super().__init__(f"stopped after step {step}: run it again to resume")
    self.step = step
    self.signal_number = signal_number


@dataclasses.dataclass
class StopRequest:
  """Whether a run is to stop.

  Attributes:
    signal_number: of the signal that asked for it; None before it came, and
      before all processes have agreed to stop.
    received: of a signal to this process; None before it came.
  """

  signal_number: int | None = None
  received: int | None = None

  def before(self, step: int) -> bool:
    """Whether to stop before a step; several processes agree on it.

    They do so through the preemption notice that `jax.distributed` watches
    for, which SIGTERM gives to one of them.
    """
    if jax.process_count() == 1:
      self.signal_number = self.received
    elif multihost_utils.reached_preemption_sync_point(step):
      self.signal_number = self.received or signal.SIGTERM
      if _in_main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # A second one ends.
    return self.signal_number is not None


@contextlib.contextmanager
def stop_signals(announce: Callable[[str], None]) -> Iterator[StopRequest]:
  """Turns the first SIGTERM or SIGINT into a request; a second one ends.

  In a thread, which cannot handle signals, there is never a request.

  Args:
    announce: called in the signal's handler with a message for the user.
  """
  request = StopRequest()
  if not _in_main_thread():
    yield request
    return
  several = jax.process_count() > 1
  # Of several processes, `jax.distributed` watches for SIGTERM.
  names = (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
  before = {name: signal.getsignal(name) for name in names}

  def restore() -> None:
    for name in names:
      signal.signal(name, before[name])

  def handle(number: int, frame: FrameType | None) -> None:
    restore()
    request.received = number
    if several:
      os.kill(os.getpid(), signal.SIGTERM)
    announce("stopping after this step ... (again to stop without saving)")

  for name in names:
    signal.signal(name, handle)
  try:
    yield request
  finally:
    restore()


def _in_main_thread() -> bool:
  return threading.current_thread() is threading.main_thread()
