"""Notices a spike of the loss in time to leave its step out.

The limit of a step is computed from the losses of earlier ones. It leaves out
the last few, which the device may not have finished yet, so that training never
waits for the host; and it depends on nothing else, so that a run that was
stopped and goes on has the same limits.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import jax

from raptr_jax.contracts import Metrics

LAG = 8  # Steps that a device may have in its queue.


@dataclasses.dataclass(frozen=True)
class LossWatch:
  """What counts as a spike, and what to do about it.

  A step whose loss is over the mean of a window of earlier losses by more than
  some standard deviations changes nothing: neither parameters nor moments. The
  window begins anew with each stage, whose paths have other losses.

  Attributes:
    window: number of losses; none of those of steps that were left out.
    sigmas: number of standard deviations.
    stop: whether a spike ends the run, which keeps its last checkpoint.
  """

  window: int = 128
  sigmas: float = 6.0
  stop: bool = False

  def __post_init__(self) -> None:
    if self.window < 2 or not self.sigmas > 0:
      raise ValueError(
        f"loss_watch.LossWatch.window = {self.window}, expected at least 2, and"
        f" loss_watch.LossWatch.sigmas = {self.sigmas}, expected more than 0."
      )

  def limit(self, losses: Sequence[float]) -> float:
    """The highest loss that is no spike; infinite before a window is full."""
    if len(losses) < self.window:
      return math.inf
    latest = losses[-self.window :]
    return statistics.fmean(latest) + self.sigmas * statistics.pstdev(latest)


class LossLimits:
  """The limits of a run, step by step.

  Args:
    watch: of the run; None for limits that are all infinite.
    start: first step that this process runs.
    losses: of the steps before, oldest first; None for one that was left out.
  """

  def __init__(
    self, watch: LossWatch | None, start: int, losses: Sequence[float | None]
  ):
    self._watch = watch
    self._losses = dict(enumerate(losses, start - len(losses)))
    self._waiting: dict[int, Metrics] = {}

  def add(self, step: int, metrics: Metrics) -> None:
    """Takes the metrics of a step without waiting for them."""
    if self._watch is not None:
      self._waiting[step] = metrics

  def of(self, step: int, stage_begin: int) -> float:
    """The limit of a step.

    Args:
      step: that comes next.
      stage_begin: first step of its stage.
    """
    if self._watch is None:
      return math.inf
    self._learn(step - LAG)
    oldest = max(stage_begin, step - LAG - 2 * self._watch.window)
    self._losses = {s: x for s, x in self._losses.items() if s >= oldest}
    losses = [
      x for s, x in self._losses.items() if s < step - LAG and x is not None
    ]
    return self._watch.limit(losses)

  def losses(self, step: int) -> list[float | None]:
    """What a run needs to go on at a step; waits for the device."""
    if self._watch is None:
      return []
    self._learn(step)
    return list(self._losses.values())

  def _learn(self, end: int) -> None:
    """Waits for the losses of all steps before `end`."""
    known = {s: self._waiting.pop(s) for s in list(self._waiting) if s < end}
    for step, metrics in jax.device_get(known).items():
      loss = float(metrics["loss"]) / max(float(metrics["weight"]), 1.0)
      self._losses[step] = None if metrics["skipped"] else loss
