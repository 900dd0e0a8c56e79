"""Learning rates: pure functions of the step, made by factories."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from raptr_jax.contracts import Step
from raptr_jax.methods.growth import GrowthPlan
from raptr_jax.methods.schedule import StageSchedule


def linear(
  *, peak: float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
  """Linear warm-up to `peak`, then linear decay to 0 at `total_steps`."""
  _check_warmup("linear", warmup_steps, total_steps)
  decay = optax.linear_schedule(peak, 0.0, total_steps - warmup_steps)
  return _after_warmup("linear", decay, peak, warmup_steps)


def cosine(
  *,
  peak: float,
  warmup_steps: int,
  total_steps: int,
  final_share: float = 0.0,
) -> optax.Schedule:
  """Linear warm-up, then decay along half a cosine (arXiv 1608.03983).

  Args:
    peak: the rate after the warm-up.
    warmup_steps: length of the warm-up.
    total_steps: the step at which the decay ends.
    final_share: share of `peak` that remains from there on.

  Raises:
    ValueError: if the warm-up does not end before `total_steps`.
  """
  _check_warmup("cosine", warmup_steps, total_steps)
  decay_steps = total_steps - warmup_steps
  decay = optax.cosine_decay_schedule(peak, decay_steps, final_share)
  return _after_warmup("cosine", decay, peak, warmup_steps)


def inverse_square_root(*, peak: float, warmup_steps: int) -> optax.Schedule:
  """Linear warm-up to `peak`, then decay by 1 / sqrt(step) without end.

  T5 (arXiv 1910.10683, section 3.1.2) keeps `peak` in the steps in which we
  warm up; then the rates agree.
  """
  _check_peak("inverse_square_root", peak)

  def rate(step: Step) -> Float[Array, ""]:
    share = (step + 1) / (warmup_steps + 1)
    return peak * jnp.minimum(share, share**-0.5)

  return rate


def constant(*, peak: float, warmup_steps: int) -> optax.Schedule:
  """Linear warm-up to `peak`, then constant."""
  schedule = optax.constant_schedule(peak)
  return _after_warmup("constant", schedule, peak, warmup_steps)


def constant_then_decay(
  *, peak: float, warmup_steps: int, schedule: StageSchedule
) -> optax.Schedule:
  """Linear warm-up, then constant, then linear decay to 0 in the last stage.

  Raises:
    ValueError: if there is only one stage, or the warm-up ends in the last.
  """
  last_stage = schedule.boundaries[-1] if schedule.boundaries else 0
  _check_warmup("constant_then_decay", warmup_steps, last_stage)
  decay_steps = schedule.total_steps - last_stage
  return _stable_then_decay(peak, warmup_steps, last_stage, decay_steps)


def rewarmed(
  *,
  learning_rate: optax.Schedule,
  growth: GrowthPlan | Mapping[str, GrowthPlan] | None,
  warmup_steps: int,
) -> optax.Schedule:
  """Warms the same schedule up again, linearly, after each growth.

  Gradual stacking does so at the start of each stage (Reddi et al., 2023).

  Args:
    learning_rate: step -> learning rate.
    growth: of all stacks, or of each; None leaves the schedule unchanged.
    warmup_steps: of each further warm-up; 0 for none.

  Raises:
    ValueError: if a stage ends before its warm-up does.
  """
  if growth is None or not warmup_steps:
    return learning_rate
  plans = growth.values() if isinstance(growth, Mapping) else (growth,)
  steps = sorted({step for p in plans for step in p.schedule.boundaries})
  if not steps:
    return learning_rate
  total_steps = max(plan.schedule.total_steps for plan in plans)
  shortest = int(np.diff([*steps, total_steps]).min())
  if not 0 <= warmup_steps < shortest:
    raise ValueError(
      f"rewarmed.warmup_steps = {warmup_steps} (REWARMUP_STEPS), expected 0 to"
      f" {shortest - 1}: a stage has {shortest} steps."
    )
  boundaries = jnp.asarray(steps, jnp.int32)

  def rate(step: Step) -> Float[Array, ""]:
    since = jnp.where(step >= boundaries, step - boundaries, warmup_steps)
    factor = jnp.minimum(1, (since + 1) / (warmup_steps + 1)).min()
    rewarmed_rate: Array = learning_rate(step) * factor
    return rewarmed_rate

  return rate


def warmup_stable_decay(
  *, peak: float, warmup_steps: int, total_steps: int, decay_share: float = 0.2
) -> optax.Schedule:
  """Linear warm-up, then constant, then linear decay to 0 (WSD).

  Args:
    peak: the constant rate.
    warmup_steps: length of the warm-up.
    total_steps: the step at which the rate is 0.
    decay_share: share of `total_steps` that decays.

  Raises:
    ValueError: if the warm-up ends in the decay.
  """
  decay_steps = round(decay_share * total_steps)
  decay_begins = total_steps - decay_steps
  _check_warmup("warmup_stable_decay", warmup_steps, decay_begins)
  return _stable_then_decay(peak, warmup_steps, decay_begins, decay_steps)


def _stable_then_decay(
  peak: float, warmup_steps: int, decay_begins: int, decay_steps: int
) -> optax.Schedule:
  stable = constant(peak=peak, warmup_steps=warmup_steps)
  decay = optax.linear_schedule(peak, 0.0, decay_steps)
  return optax.join_schedules([stable, decay], [decay_begins])


def _after_warmup(
  name: str, schedule: optax.Schedule, peak: float, warmup_steps: int
) -> optax.Schedule:
  _check_peak(name, peak)

  # Step 0 already learns: at a rate of 0, its FLOPs would be wasted.
  def warmup(step: Step) -> Float[Array, ""]:
    return peak * jnp.minimum(1, (step + 1) / (warmup_steps + 1))

  return optax.join_schedules([warmup, schedule], [warmup_steps])


def _check_peak(name: str, peak: float) -> None:
  if not 0 <= peak < float("inf"):
    raise ValueError(
      f"{name}.peak = {peak}, expected 0 or more: set --gin.LEARNING_RATE."
    )


def _check_warmup(name: str, warmup_steps: int, end: int) -> None:
  if not 0 <= warmup_steps < end:
    event = "ends" if name in ("linear", "cosine") else "begins"
    raise ValueError(
      f"{name}.warmup_steps = {warmup_steps}, expected 0 to {end - 1}: the"
      f" decay {event} at step {end}; set --gin.WARMUP_STEPS."
    )
