"""Stops a run early: SIGTERM, SIGINT, or a preemption notice."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], bool]]:
  """Yields a function that says whether to stop before a step.

  SIGTERM and SIGINT request a stop; a second signal has its usual effect.
  Several processes agree on the step through the preemption notice that
  `jax.distributed` watches for.
  """
  if jax.process_count() > 1:
    yield multihost_utils.reached_preemption_sync_point
    return
  names = (signal.SIGTERM, signal.SIGINT)
  before = {name: signal.getsignal(name) for name in names}
  received = threading.Event()

  def restore() -> None:
    for name in names:
      signal.signal(name, before[name])

  def handle(number: int, frame: FrameType | None) -> None:
    received.set()
    restore()

  for name in names:
    signal.signal(name, handle)
  try:
    yield lambda step: received.is_set()
  finally:
    restore()
