"""Schedules: how long the trained paths are at each step.

RaPTr (arXiv 2402.05913) trains short random paths first and the full network
last. We name a schedule after its expected path lengths, such as 6-8-10-12.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from raptr_jax.contracts import Step
from raptr_jax.methods.stage_steps import (
  power_stages,
  stage_exponent,
  steps_of_stages,
)


@dataclasses.dataclass(frozen=True)
class Stage:
  """A run of steps with one expected path length.

  Attributes:
    path_length: expected number of layers that run in a step.
    num_steps: length of the stage.
  """

  path_length: float
  num_steps: int


@dataclasses.dataclass(frozen=True)
class StageSchedule:
  """Expected path length as a pure function of the step.

  Attributes:
    num_layers: L, the length of the full path.
    stages: in order; steps past `total_steps` belong to the last one.
    solved_for: the number that a FLOP factor determined, by name.
  """

  num_layers: int
  stages: tuple[Stage, ...]
  solved_for: Mapping[str, float] = dataclasses.field(
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

  def stage_index(self, step: Step) -> Int[Array, ""]:
    """Index of the stage that `step` belongs to."""
    boundaries = jnp.asarray(self.boundaries, jnp.int32)
    return jnp.searchsorted(boundaries, step, side="right").astype(jnp.int32)

  def path_length(self, step: Step) -> Float[Array, ""]:
    """Expected number of layers that run in `step`."""
    lengths = jnp.asarray([s.path_length for s in self.stages], jnp.float32)
    return lengths[self.stage_index(step)]


def stage_schedule(
  *,
  path_lengths: Iterable[float],
  total_steps: int,
  num_layers: int,
  stage_steps: str | Sequence[int] = "equal",
  full_model_steps: int = 0,
  ends_with_full_model: bool = True,
  flop_factor: float | None = None,
) -> StageSchedule:
  """Builds a schedule from its path lengths.

  Stage s of k lasts s^a / (1^a + ... + k^a) of the time, as in MidAS (Saunshi
  et al., 2024). RaPTr (arXiv 2402.05913) has equal stages, a = 0; proportional
  ones have a = 1. For 12 layers, 6-8-10-12 has a FLOP factor of 1.333 with
  equal stages, and of 1.2 with proportional ones.

  Args:
    path_lengths: expected path length of each stage, each in [1, L].
    total_steps: steps of the whole run, `full_model_steps` included.
    num_layers: L.
    stage_steps: "equal", "proportional", or the steps of each stage, which
      must add up to `total_steps - full_model_steps`.
    full_model_steps: steps of the full model before the first stage.
    ends_with_full_model: whether the last path length must be L. RaPTr
      minimises the full model's loss only if its last stage trains it.
    flop_factor: if set, determines the exponent a instead of `stage_steps`: the
      mean path length becomes L / flop_factor.

  Raises:
    ValueError: if no such schedule exists; the message says why.
  """
  path_lengths = tuple(path_lengths)
  _check_path_lengths(path_lengths, num_layers, ends_with_full_model)
  _check_full_model_steps(full_model_steps, total_steps)
  staged_steps = total_steps - full_model_steps
  solved_for = {}
  if flop_factor is None:
    steps = steps_of_stages(stage_steps, len(path_lengths), staged_steps)
  else:
    layer_steps = num_layers * (total_steps / flop_factor - full_model_steps)
    mean_length = layer_steps / staged_steps
    exponent = stage_exponent(path_lengths, mean_length, flop_factor)
    solved_for["stage exponent"] = exponent
    steps = power_stages(exponent, len(path_lengths), staged_steps)
  _check_stage_steps(steps, total_steps)
  stages = [Stage(float(p), n) for p, n in zip(path_lengths, steps)]
  if full_model_steps:
    stages.insert(0, Stage(float(num_layers), full_model_steps))
  return StageSchedule(num_layers, tuple(stages), solved_for)


def _check_path_lengths(
  path_lengths: Sequence[float], num_layers: int, ends_with_full_model: bool
) -> None:
  if len(path_lengths) == 0:
    raise ValueError(
      "schedule.stage_schedule.path_lengths is empty: name at least one."
    )
  for length in path_lengths:
    if not 1 <= length <= num_layers:
      raise ValueError(
        f"schedule.stage_schedule.path_lengths = {tuple(path_lengths)} has"
        f" {length}, expected 1 to num_layers = {num_layers}."
      )
  if ends_with_full_model and path_lengths[-1] != num_layers:
    raise ValueError(
      f"schedule.stage_schedule.path_lengths = {tuple(path_lengths)}, expected"
      f" the full model's {num_layers} layers at the end: add a last stage, or"
      " set schedule.stage_schedule.ends_with_full_model = False."
    )


def _check_full_model_steps(full_model_steps: int, total_steps: int) -> None:
  if total_steps < 1:
    raise ValueError(
      f"schedule.stage_schedule.total_steps = {total_steps} (TRAIN_STEPS),"
      " expected at least 1."
    )
  if not 0 <= full_model_steps < total_steps:
    raise ValueError(
      f"schedule.stage_schedule.full_model_steps = {full_model_steps}, expected"
      f" 0 to total_steps - 1 = {total_steps - 1}."
    )


def _check_stage_steps(steps: Sequence[int], total_steps: int) -> None:
  if min(steps) < 1:
    raise ValueError(
      f"schedule.stage_schedule.total_steps = {total_steps} (TRAIN_STEPS) makes"
      f" stages of {steps} steps, expected at least one in each: set a larger"
      " TRAIN_STEPS, fewer PATH_LENGTHS or another FLOP_FACTOR."
    )
