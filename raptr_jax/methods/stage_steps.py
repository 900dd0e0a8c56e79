"""How long each stage of a schedule lasts."""

import math
from collections.abc import Sequence

import numpy as np
import scipy.optimize


def stage_exponent(
  path_lengths: Sequence[float], mean_length: float, flop_factor: float
) -> float:
  """The a for which stages that last s^a have this mean path length."""
  numbers = np.arange(1, len(path_lengths) + 1, dtype=np.float64)

  def mean(exponent: float) -> float:
    return float(np.average(path_lengths, weights=numbers**exponent))

  limit = 50.0  # Here the longest stage takes all the time.
  low, high = sorted((mean(-limit), mean(limit)))
  if math.isclose(low, high) and math.isclose(mean_length, low):
    return 0.0
  if not low < mean_length < high:
    raise ValueError(
      f"FLOP_FACTOR = {flop_factor:g} needs a mean path length of"
      f" {mean_length:.4g}, but the stages {path_lengths} reach only"
      f" {low:.4g} to {high:.4g}: set other path lengths."
    )
  exponent: float = scipy.optimize.brentq(
    lambda a: mean(a) - mean_length, -limit, limit
  )
  return round(exponent, 9) + 0.0  # Equal stages have exactly 0.


def power_stages(
  exponent: float, num_stages: int, total_steps: int
) -> list[int]:
  """Steps of stages that last s^exponent; they add up to `total_steps`."""
  weights = np.arange(1, num_stages + 1, dtype=np.float64) ** exponent
  ends = np.rint(np.cumsum(weights) / weights.sum() * total_steps)
  return [int(n) for n in np.diff(ends, prepend=0)]


def steps_of_stages(
  stage_steps: str | Sequence[int], num_stages: int, total_steps: int
) -> list[int]:
  """Steps of each stage; they add up to `total_steps`."""
  if isinstance(stage_steps, str):
    exponent = {"equal": 0.0, "proportional": 1.0}.get(stage_steps)
    if exponent is None:
      raise ValueError(
        f"schedule.stage_schedule.stage_steps = {stage_steps!r}, expected"
        " 'equal', 'proportional' or the number of steps of each stage."
      )
    return power_stages(exponent, num_stages, total_steps)
  steps = [int(n) for n in stage_steps]
  if len(steps) != num_stages or sum(steps) != total_steps:
    raise ValueError(
      f"schedule.stage_schedule.stage_steps = {steps}, a sum of {sum(steps)},"
      f" expected {num_stages} stages that add up to {total_steps} steps"
      " (total_steps - full_model_steps)."
    )
  return steps
