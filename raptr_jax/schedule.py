"""Stages: how long the trained paths are at each step.

RaPTr (arXiv 2402.05913) trains short random paths first and the full network
last. A schedule is named by the expected path lengths of its stages, 6-8-10-12
for a 12-layer model.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Stage:
  """A run of steps with one expected path length.

  Attributes:
    path_length: expected number of layers that run in a step.
    num_steps: how many steps the stage lasts.
  """

  path_length: float
  num_steps: int


@dataclasses.dataclass(frozen=True)
class StageSchedule:
  """Expected path length as a pure function of the step.

  The last stage has no end: steps past `total_steps` belong to it.

  Attributes:
    num_layers: L, the length of the full path.
    stages: in order of time.
    solved: the number that was solved for to meet a FLOP factor, by name.
  """

  num_layers: int
  stages: tuple[Stage, ...]
  solved: Mapping[str, float] = dataclasses.field(
    default_factory=dict, hash=False
  )

  @property
  def total_steps(self) -> int:
    return sum(stage.num_steps for stage in self.stages)

  @property
  def boundaries(self) -> tuple[int, ...]:
    """First steps of all stages but the first."""
    lengths = (stage.num_steps for stage in self.stages)
    return tuple(itertools.accumulate(lengths))[:-1]

  def stage_index(self, step: Int[Array, ""]) -> Int[Array, ""]:
    """Number of the stage that `step` belongs to, from 0."""
    boundaries = jnp.asarray(self.boundaries, jnp.int32)
    return jnp.searchsorted(boundaries, step, side="right").astype(jnp.int32)

  def path_length(self, step: Int[Array, ""]) -> Float[Array, ""]:
    """Expected number of layers that run in `step`."""
    lengths = jnp.asarray([s.path_length for s in self.stages], jnp.float32)
    return lengths[self.stage_index(step)]


def stage_schedule(
  *,
  path_lengths: Sequence[float],
  total_steps: int,
  num_layers: int,
  stage_steps: str | Sequence[int] = "equal",
  full_model_steps: int = 0,
  ends_with_full_model: bool = True,
  flop_factor: float | None = None,
) -> StageSchedule:
  """Builds a schedule from its path lengths.

  Stage s of k lasts s^a / (1^a + ... + k^a) of the time, as in MidAS (Saunshi
  et al., 2024). Equal stages (a = 0) are the RaPTr paper's (arXiv 2402.05913);
  proportional ones have a = 1. With equal stages 6-8-10-12 costs 1/1.333 of
  the dense FLOPs of a 12-layer model's blocks, with proportional ones 1/1.2.

  Args:
    path_lengths: expected path length of each stage, each in [1, L].
    total_steps: steps of the whole run, `full_model_steps` included.
    num_layers: L.
    stage_steps: "equal", "proportional", or the steps of each stage, which
      must add up to `total_steps - full_model_steps`.
    full_model_steps: steps of the full model before the first stage.
    ends_with_full_model: whether the last path length has to be L. RaPTr's
      loss is that of the full model only if its last stage trains it.
    flop_factor: if set, decides the exponent a instead of `stage_steps`: the
      mean path length becomes L / flop_factor.

  Raises:
    ValueError: if a length is out of range, a stage would be empty, explicit
      stages do not add up, the schedule does not end at the full model, or no
      exponent meets the FLOP factor.
  """
  path_lengths = tuple(path_lengths)
  _check_path_lengths(path_lengths, num_layers, ends_with_full_model)
  if not 0 <= full_model_steps < total_steps:
    raise ValueError(
      f"stage_schedule.full_model_steps = {full_model_steps}, expected 0 to"
      f" total_steps - 1 = {total_steps - 1}."
    )
  staged_steps = total_steps - full_model_steps
  solved = {}
  if flop_factor is not None:
    layer_steps = num_layers * (total_steps / flop_factor - full_model_steps)
    exponent = _stage_exponent(
      path_lengths, layer_steps / staged_steps, flop_factor
    )
    solved["stage exponent"] = exponent
    steps = _power_stages(exponent, len(path_lengths), staged_steps)
  else:
    steps = _stage_steps(stage_steps, len(path_lengths), staged_steps)
  if min(steps) < 1:
    raise ValueError(
      f"Stages of {steps} steps: each must last at least one. Set a larger"
      " TRAIN_STEPS, fewer path lengths or another FLOP_FACTOR."
    )
  stages = [Stage(float(p), n) for p, n in zip(path_lengths, steps)]
  if full_model_steps:
    stages.insert(0, Stage(float(num_layers), full_model_steps))
  return StageSchedule(num_layers, tuple(stages), solved)


def expansion_schedule(
  *,
  total_steps: int,
  num_layers: int,
  initial_layers: int = 1,
  expansion_share: float = 0.8,
  flop_factor: float | None = None,
) -> StageSchedule:
  """A shallow model, expanded once to all its layers (arXiv 2511.04981).

  Args:
    total_steps: steps of the whole run.
    num_layers: L.
    initial_layers: layers before the expansion, 0 or 1 in the source.
    expansion_share: part of the steps before it; the source's is about 0.8.
    flop_factor: if set, decides the step of the expansion instead: the mean
      path length becomes L / flop_factor.

  Raises:
    ValueError: if there is no step before the expansion, or none after it, or
      nothing to expand.
  """
  if not 0 <= initial_layers < num_layers:
    raise ValueError(
      f"expansion_schedule.initial_layers = {initial_layers}, expected 0 to"
      f" {num_layers - 1}, less than the model has."
    )
  expansion_step = round(expansion_share * total_steps)
  solved = {}
  if flop_factor is not None:
    saved = (1 - 1 / flop_factor) * num_layers / (num_layers - initial_layers)
    expansion_step = round(saved * total_steps)
    solved["expansion step"] = float(expansion_step)
  if not 0 < expansion_step < total_steps:
    raise ValueError(
      f"The expansion from {initial_layers} layers would be at step"
      f" {expansion_step} of {total_steps}: set another FLOP_FACTOR or"
      " expansion_schedule.expansion_share."
    )
  stages = (
    Stage(float(initial_layers), expansion_step),
    Stage(float(num_layers), total_steps - expansion_step),
  )
  return StageSchedule(num_layers, stages, solved)


def _check_path_lengths(
  path_lengths: Sequence[float], num_layers: int, ends_with_full_model: bool
) -> None:
  if not path_lengths:
    raise ValueError("stage_schedule.path_lengths is empty: name at least one.")
  for length in path_lengths:
    if not 1 <= length <= num_layers:
      raise ValueError(
        f"stage_schedule.path_lengths has {length}, expected 1 to num_layers"
        f" = {num_layers}."
      )
  if ends_with_full_model and path_lengths[-1] != num_layers:
    raise ValueError(
      f"stage_schedule.path_lengths ends with {path_lengths[-1]}, not with the"
      f" full model's {num_layers} layers; set"
      " stage_schedule.ends_with_full_model = False if that is meant."
    )


def _stage_exponent(
  path_lengths: Sequence[float], mean_length: float, flop_factor: float
) -> float:
  """The a with which stages of s^a have this mean path length."""
  numbers = np.arange(1, len(path_lengths) + 1, dtype=np.float64)

  def mean(exponent: float) -> float:
    return float(np.average(path_lengths, weights=numbers**exponent))

  limit = 50.0  # There the longest stage is all that is left.
  low, high = sorted((mean(-limit), mean(limit)))
  if math.isclose(low, high) and math.isclose(mean_length, low):
    return 0.0
  if not low < mean_length < high:
    raise ValueError(
      f"FLOP_FACTOR = {flop_factor:g} needs a mean path length of"
      f" {mean_length:.4g} in the stages"
      f" {'-'.join(f'{length:g}' for length in path_lengths)}, whose means are"
      f" between {low:.4g} and {high:.4g}: set other path lengths."
    )
  exponent = scipy.optimize.brentq(
    lambda a: mean(a) - mean_length, -limit, limit
  )
  return round(exponent, 9) + 0.0  # Equal stages have 0, not nearly 0.


def _power_stages(
  exponent: float, num_stages: int, total_steps: int
) -> list[int]:
  """Steps of stages that last s^exponent; they add up to `total_steps`."""
  weights = np.arange(1, num_stages + 1, dtype=np.float64) ** exponent
  ends = np.rint(np.cumsum(weights) / weights.sum() * total_steps)
  return [int(n) for n in np.diff(ends, prepend=0)]


def _stage_steps(
  stage_steps: str | Sequence[int], num_stages: int, total_steps: int
) -> list[int]:
  """Steps of each stage; they add up to `total_steps`."""
  if isinstance(stage_steps, str):
    exponent = {"equal": 0.0, "proportional": 1.0}.get(stage_steps)
    if exponent is None:
      raise ValueError(
        f"stage_schedule.stage_steps = {stage_steps!r}, expected 'equal',"
        " 'proportional' or the number of steps of each stage."
      )
    return _power_stages(exponent, num_stages, total_steps)
  steps = [int(n) for n in stage_steps]
  if len(steps) != num_stages or sum(steps) != total_steps:
    raise ValueError(
      f"stage_schedule.stage_steps = {steps} has {len(steps)} stages of"
      f" {sum(steps)} steps, expected {num_stages} stages that add up to"
      f" {total_steps} steps (total_steps less full_model_steps)."
    )
  return steps
