"""The schedule of a single late expansion: shallow, then the full model."""

from raptr_jax.methods.schedule import Stage, StageSchedule


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
    initial_layers: layers before the expansion; the source has 0 or 1.
    expansion_share: share of the steps before it; the source has about 0.8.
    flop_factor: if set, determines the step of the expansion: the mean path
      length becomes L / flop_factor.

  Raises:
    ValueError: if there is no step before the expansion, no step after it, or
      nothing to expand.
  """
  if not 0 <= initial_layers < num_layers:
    raise ValueError(
      f"late_expansion.expansion_schedule.initial_layers = {initial_layers},"
      f" expected 0 to {num_layers - 1}, fewer than the model has."
    )
  expansion_step = round(expansion_share * total_steps)
  solved_for = {}
  if flop_factor is not None:
    saved = (1 - 1 / flop_factor) * num_layers / (num_layers - initial_layers)
    expansion_step = round(saved * total_steps)
    solved_for["expansion step"] = float(expansion_step)
  if not 0 < expansion_step < total_steps:
    raise ValueError(
      f"The expansion from {initial_layers} layers would be at step"
      f" {expansion_step} of {total_steps}: set another FLOP_FACTOR or"
      " late_expansion.expansion_schedule.expansion_share."
    )
  stages = (
    Stage(float(initial_layers), expansion_step),
    Stage(float(num_layers), total_steps - expansion_step),
  )
  return StageSchedule(num_layers, stages, solved_for)
