"""From sums of single steps to rows of a report."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from raptr_jax.contracts import Metrics


class IntervalMeter:
  """Sums metrics from one report to the next.

  Values stay on the device until somebody asks for them, so that the device
  never waits for the host. What an unfinished interval has summed up is part of
  a checkpoint: a resumed run reports the same means.
  """

  def __init__(self, sums: Mapping[str, float]):
    self._sums = dict(sums)
    self._pending: list[dict[str, Any]] = []

  def add(self, metrics: Metrics, path_length: int) -> None:
    """Takes a step's metrics without waiting for them."""
    self._pending.append(metrics | {"path_length": path_length, "steps": 1})

  def sums(self) -> dict[str, float]:
    """All sums of the interval so far; waits for its steps.

    A copy: a checkpoint writes it in the background, while steps go on.
    """
    for metrics in jax.device_get(self._pending):
      for name, value in metrics.items():
        self._sums[name] = self._sums.get(name, 0.0) + float(value)
    self._pending.clear()
    return dict(self._sums)

  def close(self) -> dict[str, float]:
    """Means of the interval, which ends here; waits for its steps."""
    sums = self.sums()
    self._sums = {}
    return {
      "loss": sums["loss"] / max(sums["weight"], 1.0),
      "accuracy": sums["accuracy"] / max(sums["weight"], 1.0),
      "grad_norm": sums["grad_norm"] / sums["steps"],
      "path_length": sums["path_length"] / sums["steps"],
      "steps": sums["steps"],
    }


class Stopwatch:
  """Seconds spent on training steps, other work left out.

  Both figures go on from earlier processes of the run.

  Attributes:
    seconds: up to the last lap or pause.
    lap_seconds: the same, since the last lap.
  """

  def __init__(self, seconds: float, lap_seconds: float):
    self.seconds = seconds
    self.lap_seconds = lap_seconds
    self._since = time.monotonic()

  def _count(self) -> None:
    now = time.monotonic()
    self.seconds += now - self._since
    self.lap_seconds += now - self._since
    self._since = now

  @contextmanager
  def paused(self) -> Iterator[None]:
    """Leaves out what happens inside."""
    self._count()
    yield
    self._since = time.monotonic()

  def lap(self) -> float:
    """Seconds since the last lap; begins a new one."""
    self._count()
    lap, self.lap_seconds = self.lap_seconds, 0.0
    return lap


def unigram_loss(
  counts: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> float:
  """Cross entropy, in nats, of predicting targets by training frequency.

  What a model reaches that looks at no context. Counts are raised by one, so
  that a token which the training text lacks has a probability.
  """
  smoothed = counts.astype(np.float64) + 1
  log_probabilities = np.log(smoothed / smoothed.sum())
  return float(-(log_probabilities[targets] * weights).sum() / weights.sum())
