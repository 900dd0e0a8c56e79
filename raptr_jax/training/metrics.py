"""Turns the sums of single steps into entries of a report."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from raptr_jax.contracts import Metrics

# What a run is for; the other activities have names of their own.
STEPS = "steps"


class IntervalMeter:
  """Sums metrics from one entry of the report to the next.

  Values stay on the device until they are asked for, so that the device never
  waits for the host. The sums of an unfinished interval are part of a
  checkpoint: a resumed run reports the same means.

  Attributes:
    skipped_in_a_row: steps that changed nothing, up to the last that is known.
    most_in_a_row: the most that have come one after another.
    has_spiked: whether the loss of a step was a spike.
  """

  def __init__(self, sums: Mapping[str, float], skipped_in_a_row: int = 0):
    """Continues.

    Args:
      sums: of the interval so far.
      skipped_in_a_row: up to now.
    """
    self._sums = dict(sums)
    self.skipped_in_a_row = self.most_in_a_row = skipped_in_a_row
    self.has_spiked = False
    self._pending: list[dict[str, Array | int]] = []

  def add(self, metrics: Metrics, path_length: int) -> None:
    """Takes a step's metrics without waiting for them."""
    self._pending.append(metrics | {"path_length": path_length, "steps": 1})

  def unfinished(self) -> int:
    """Number of added steps that the device has yet to finish; never waits."""
    losses = [metrics["loss"] for metrics in list(self._pending)]
    return sum(not loss.is_ready() for loss in losses)  # type: ignore[union-attr]

  def sums(self) -> dict[str, float]:
    """All sums of the interval so far; waits for its steps.

    A copy, which a checkpoint writes in the background while training goes on.
    """
    for metrics in jax.device_get(self._pending):
      in_a_row = self.skipped_in_a_row + 1 if metrics["skipped"] else 0
      self.skipped_in_a_row = in_a_row
      self.most_in_a_row = max(self.most_in_a_row, in_a_row)
      self.has_spiked = self.has_spiked or bool(metrics["spiked"])
      for name, value in metrics.items():
        self._sums[name] = self._sums.get(name, 0.0) + float(value)
    self._pending.clear()
    return dict(self._sums)

  def close(self) -> dict[str, float]:
    """Ends the interval; waits for its steps, and returns their means.

    Of `steps`, `tokens`, `skipped` and `spiked`, it returns the sums. Losses and
    gradients are those of steps that were not skipped; NaN if all were.
    """
    sums = self.sums()
    self._sums = {}
    good = sums["steps"] - sums.get("skipped", 0.0)
    weight = max(sums["weight"], 1.0) if good else np.nan
    return {
      "loss": sums["loss"] / weight,
      "accuracy": sums["accuracy"] / weight,
      "grad_norm": sums["grad_norm"] / (good or np.nan),
      "path_length": sums["path_length"] / sums["steps"],
      "steps": sums["steps"],
      "tokens": sums["tokens"],
      "skipped": sums.get("skipped", 0.0),
      "spiked": sums.get("spiked", 0.0),
    }


class Stopwatch:
  """Seconds of a run, by what it does; it always does something.

  All figures continue those of earlier processes of the run.

  Attributes:
    seconds: by activity, up to the last change, lap or reading.
    lap_seconds: of `STEPS` since the last lap.
  """

  def __init__(
    self,
    seconds: Mapping[str, float],
    lap_seconds: float,
    *,
    activity: str,
    since: float,
  ):
    """Goes on.

    Args:
      seconds: by activity, so far.
      lap_seconds: so far.
      activity: what the run does now.
      since: when it has begun to, as `time.monotonic()` tells it.
    """
    self.seconds = {STEPS: 0.0, **seconds}
    self.lap_seconds = lap_seconds
    self._activity, self._since = activity, since

  def turn_to(self, activity: str) -> str:
    """Begins another activity; returns the one before."""
    now = time.monotonic()
    before, taken = self._activity, now - self._since
    self.seconds[before] = self.seconds.get(before, 0.0) + taken
    if before == STEPS:
      self.lap_seconds += taken
    self._activity, self._since = activity, now
    return before

  @contextmanager
  def paused(self, activity: str) -> Iterator[None]:
    """Does something else inside this context."""
    before = self.turn_to(activity)
    try:
      yield
    finally:
      self.turn_to(before)

  def lap(self) -> float:
    """Seconds of steps since the last lap; begins a new lap."""
    self.read()
    lap, self.lap_seconds = self.lap_seconds, 0.0
    return lap

  def read(self) -> dict[str, float]:
    """A copy of `seconds` that counts up to now."""
    self.turn_to(self._activity)
    return dict(self.seconds)


def unigram_loss(
  counts: Shaped[np.ndarray, "V"],
  targets: Int[np.ndarray, "*batch"],
  weights: Float[np.ndarray, "*batch"],
) -> float:
  """Cross entropy, in nats, of predicting targets by their training frequency.

  A model that ignores context reaches this loss. Counts are raised by one, so
  that tokens missing from the training text have a probability.
  """
  smoothed = counts.astype(np.float64) + 1
  log_probabilities = np.log(smoothed / smoothed.sum())
  return float(-(log_probabilities[targets] * weights).sum() / weights.sum())
