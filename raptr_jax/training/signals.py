"""Stops a run early: SIGTERM, SIGINT, or a preemption notice."""

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


@dataclasses.dataclass(frozen=True)
class Stopped:
  """How a run ended early, with a checkpoint saved.

  Attributes:
    step: number of steps done.
    signal_number: of the signal that stopped it: SIGINT or SIGTERM.
  """

  step: int
  signal_number: int


@dataclasses.dataclass
class StopRequest:
  """Whether a run is to stop.

  Attributes:
    signal_number: of the signal that asked for it; None before it came.
  """

  signal_number: int | None = None

  def before(self, step: int) -> bool:
    """Whether to stop before a step; several processes agree on it.

    They do so through the preemption notice that `jax.distributed` watches
    for, which SIGTERM gives to one of them.
    """
    several = jax.process_count() > 1
    if several and multihost_utils.reached_preemption_sync_point(step):
      self.signal_number = signal.SIGTERM
    return self.signal_number is not None


@contextlib.contextmanager
def stop_signals(announce: Callable[[str], None]) -> Iterator[StopRequest]:
  """Turns the first SIGTERM or SIGINT into a request; a second one ends.

  Args:
    announce: called in the signal's handler with a message for the user.
  """
  request = StopRequest()
  if jax.process_count() > 1:
    yield request
    return
  names = (signal.SIGTERM, signal.SIGINT)
  before = {name: signal.getsignal(name) for name in names}

  def restore() -> None:
    for name in names:
      signal.signal(name, before[name])

  def handle(number: int, frame: FrameType | None) -> None:
    restore()
    request.signal_number = number
    announce("stopping after this step ... (again to stop without saving)")

  for name in names:
    signal.signal(name, handle)
  try:
    yield request
  finally:
    restore()
