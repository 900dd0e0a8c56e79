"""Stages: how long the trained paths are at each step.

RaPTr (arXiv 2402.05913) trains short random paths first and the full network
last. A schedule is named by the expected path lengths of its stages, 6-8-10-12
for a 12-layer model.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
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
  """

  num_layers: int
  stages: tuple[Stage, ...]

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
) -> StageSchedule:
  """Builds a schedule from its path lengths.

  Equal stages are the paper's (arXiv 2402.05913); proportional ones, where
  stage s of k lasts s/(1 + ... + k) of the time, are those of gradual stacking
  with its exponent 1. With equal stages 6-8-10-12 costs 1/1.333 of the dense
  FLOPs of a 12-layer model's blocks, with proportional ones 1/1.2.

  Args:
    path_lengths: expected path length of each stage, each in [1, L].
    total_steps: steps of the whole run, `full_model_steps` included.
    num_layers: L.
    stage_steps: "equal", "proportional", or the steps of each stage, which
      must add up to `total_steps - full_model_steps`.
    full_model_steps: steps of the full model before the first stage.
    ends_with_full_model: whether the last path length has to be L. RaPTr's
      loss is that of the full model only if its last stage trains it.

  Raises:
    ValueError: if a length is out of range, a stage would be empty, explicit
      stages do not add up, or the schedule does not end at the full model.
  """
  path_lengths = tuple(path_lengths)
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
  if not 0 <= full_model_steps < total_steps:
    raise ValueError(
      f"stage_schedule.full_model_steps = {full_model_steps}, expected 0 to"
      f" total_steps - 1 = {total_steps - 1}."
    )
  lengths = _stage_steps(
    stage_steps, len(path_lengths), total_steps - full_model_steps
  )
  stages = [Stage(float(p), n) for p, n in zip(path_lengths, lengths)]
  if full_model_steps:
    stages.insert(0, Stage(float(num_layers), full_model_steps))
  return StageSchedule(num_layers, tuple(stages))


def _stage_steps(
  stage_steps: str | Sequence[int], num_stages: int, total_steps: int
) -> list[int]:
  """Steps of each stage; they add up to `total_steps`."""
  if isinstance(stage_steps, str):
    weights = {
      "equal": np.ones(num_stages),
      "proportional": np.arange(1, num_stages + 1),
    }.get(stage_steps)
    if weights is None:
      raise ValueError(
        f"stage_schedule.stage_steps = {stage_steps!r}, expected 'equal',"
        " 'proportional' or the number of steps of each stage."
      )
    ends = np.rint(np.cumsum(weights) / weights.sum() * total_steps)
    steps = [int(n) for n in np.diff(ends, prepend=0)]
  else:
    steps = [int(n) for n in stage_steps]
    if len(steps) != num_stages or sum(steps) != total_steps:
      raise ValueError(
        f"stage_schedule.stage_steps = {steps} has {len(steps)} stages of"
        f" {sum(steps)} steps, expected {num_stages} stages that add up to"
        f" {total_steps} steps (total_steps less full_model_steps)."
      )
  if min(steps) < 1:
    raise ValueError(
      f"Stages of {steps} steps: each must last at least one. Set a larger"
      " TRAIN_STEPS or fewer stage_schedule.path_lengths."
    )
  return steps
