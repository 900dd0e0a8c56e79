"""The time that a run will still take."""

import numpy as np

# Cost of embedding, output layer and optimizer in every step, in layers. A
# rough value is good enough to predict a duration.
OVERHEAD_LAYERS = 1.0
# Decay of an entry's weight per entry. The first one, slowed by compilation, is
# forgotten after about ten.
MEMORY = 0.8


class RemainingTime:
  """Predicts the time left in a run whose paths grow longer.

  A step of n layers counts as n + `OVERHEAD_LAYERS` units of work. The time per
  unit is measured, and recent steps weigh most.

  Args:
    path_lengths: [total_steps], number of layers that each step runs.
    start_step: steps done before this process started.
  """

  def __init__(self, path_lengths: np.ndarray, start_step: int):
    self._path_lengths = path_lengths
    self._step = start_step
    self._left = self._work_of(start_step, len(path_lengths))
    self._seconds = 0.0
    self._work = 0.0

  def update(self, step: int, step_seconds: float) -> float:
    """Returns the seconds left after `step`.

    Args:
      step: steps done.
      step_seconds: mean time of the steps since the last update.
    """
    taken = (step - self._step) * step_seconds
    work = self._work_of(self._step, step)
    self._seconds = MEMORY * self._seconds + taken
    self._work = MEMORY * self._work + work
    self._left -= work
    self._step = step
    return self._seconds / self._work * self._left

  def _work_of(self, start: int, stop: int) -> float:
    """Units of work of steps `start` to `stop` - 1."""
    layers = float(self._path_lengths[start:stop].sum())
    return layers + OVERHEAD_LAYERS * (stop - start)
