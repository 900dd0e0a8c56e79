"""Optimizers and learning rates.

Skipped layers have zero gradients, but their moments decay and weight decay
still acts on them: that is plain AdamW, and the default, since the paper (arXiv
2402.05913) says of its optimizer nothing else. `freeze_skipped` leaves a
skipped layer, its moments included, as it was.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from raptr_jax.contracts import Params, in_layer_stack, key_names
from raptr_jax.growth import GrowthPlan
from raptr_jax.schedule import StageSchedule

# Parameters of these names are decayed; biases and norms are not.
DECAYED = ("kernel", "embedding")


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An optimizer with the learning rate that it applies.

  Attributes:
    init: params -> state.
    update: (gradients, state, params, kept_layers) -> (updates, state), where
      `kept_layers` is the mask [L] of the layers that ran.
    learning_rate: step -> learning rate.
  """

  init: Callable[[Params], Any]
  update: Callable[..., tuple[Params, Any]]
  learning_rate: optax.Schedule


def adamw(
  *,
  learning_rate: optax.Schedule,
  b1: float = 0.9,
  b2: float = 0.999,
  epsilon: float = 1e-8,
  weight_decay: float = 0.01,
  clip_norm: float | None = 1.0,
  freeze_skipped: bool = False,
) -> Optimizer:
  """AdamW (arXiv 1711.05101) after clipping by global norm.

  Args:
    learning_rate: step -> learning rate, one of the factories below.
    b1: decay of the first moment.
    b2: decay of the second moment.
    epsilon: added to the root of the second moment.
    weight_decay: times the learning rate, off the parameters in `DECAYED`.
    clip_norm: largest global norm of the gradient; None does not clip.
    freeze_skipped: whether skipped layers keep parameters and moments.
  """
  steps = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
  steps.append(
    optax.adamw(
      learning_rate, b1, b2, epsilon, weight_decay=weight_decay, mask=_decayed
    )
  )
  optimizer = optax.with_extra_args_support(optax.chain(*steps))
  if freeze_skipped:
    optimizer = _freeze_skipped(optimizer)
  return Optimizer(optimizer.init, optimizer.update, learning_rate)


def _decayed(params: Params) -> Params:
  return jax.tree_util.tree_map_with_path(
    lambda path, _: bool(key_names(path) & set(DECAYED)), params
  )


def _freeze_skipped(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Undoes what an optimizer does to the rows of skipped layers."""

  def update(updates, state, params=None, *, kept_layers: Bool[Array, "L"]):
    """The inner update, with rows of skipped layers as they were."""

    def keep_rows(path, new, old):
      if not in_layer_stack(path):
        return new
      kept = kept_layers.reshape(-1, *[1] * (new.ndim - 1))
      return jnp.where(kept, new, old)

    new_updates, new_state = optimizer.update(updates, state, params)
    frozen = jax.tree.map(jnp.zeros_like, new_updates)
    tree_map = jax.tree_util.tree_map_with_path
    return (
      tree_map(keep_rows, new_updates, frozen),
      tree_map(keep_rows, new_state, state),
    )

  return optax.GradientTransformationExtraArgs(optimizer.init, update)


def linear(
  *, peak: float, warmup_steps: int, total_steps: int
) -> optax.Schedule:
  """Linear warm-up to `peak`, then linear decay to 0 at `total_steps`."""
  _check_warmup("linear", warmup_steps, total_steps)
  return optax.join_schedules(
    [
      _warmup(peak, warmup_steps),
      optax.linear_schedule(peak, 0.0, total_steps - warmup_steps),
    ],
    [warmup_steps],
  )


def constant(*, peak: float, warmup_steps: int) -> optax.Schedule:
  """Linear warm-up to `peak`, which then stays."""
  return optax.join_schedules(
    [_warmup(peak, warmup_steps), optax.constant_schedule(peak)],
    [warmup_steps],
  )


def constant_then_decay(
  *, peak: float, warmup_steps: int, schedule: StageSchedule
) -> optax.Schedule:
  """Linear warm-up, constant, and linear decay to 0 in the last stage.

  Raises:
    ValueError: if there is no stage before the last, or the warm-up ends in it.
  """
  last_stage = schedule.boundaries[-1] if schedule.boundaries else 0
  _check_warmup("constant_then_decay", warmup_steps, last_stage)
  decay_steps = schedule.total_steps - last_stage
  return optax.join_schedules(
    [
      constant(peak=peak, warmup_steps=warmup_steps),
      optax.linear_schedule(peak, 0.0, decay_steps),
    ],
    [last_stage],
  )


def rewarmed(
  *,
  learning_rate: optax.Schedule,
  growth: GrowthPlan | None,
  warmup_steps: int,
) -> optax.Schedule:
  """Another linear warm-up of the same schedule after each growth.

  As gradual stacking has it at the start of each stage (Reddi et al., 2023).

  Args:
    learning_rate: step -> learning rate.
    growth: None leaves the schedule as it is.
    warmup_steps: of each further warm-up; 0 for none.

  Raises:
    ValueError: if a stage ends before its warm-up does.
  """
  if growth is None or not growth.schedule.boundaries or not warmup_steps:
    return learning_rate
  shortest = min(stage.num_steps for stage in growth.schedule.stages[1:])
  if not 0 <= warmup_steps < shortest:
    raise ValueError(
      f"rewarmed.warmup_steps = {warmup_steps} (REWARMUP_STEPS), expected 0 to"
      f" {shortest - 1}: a stage has {shortest} steps."
    )
  boundaries = jnp.asarray(growth.schedule.boundaries, jnp.int32)

  def rate(step):
    since = jnp.where(step >= boundaries, step - boundaries, warmup_steps)
    factor = jnp.minimum(1, (since + 1) / (warmup_steps + 1)).min()
    return learning_rate(step) * factor

  return rate


def warmup_stable_decay(
  *, peak: float, warmup_steps: int, total_steps: int, decay_share: float = 0.2
) -> optax.Schedule:
  """Linear warm-up, constant, and linear decay to 0 in the last steps (WSD).

  Args:
    peak: the constant rate.
    warmup_steps: steps until it is reached.
    total_steps: the rate is 0 there.
    decay_share: part of `total_steps` that decays.

  Raises:
    ValueError: if the warm-up ends in the decay.
  """
  decay_steps = round(decay_share * total_steps)
  decay_begins = total_steps - decay_steps
  _check_warmup("warmup_stable_decay", warmup_steps, decay_begins)
  return optax.join_schedules(
    [
      constant(peak=peak, warmup_steps=warmup_steps),
      optax.linear_schedule(peak, 0.0, decay_steps),
    ],
    [decay_begins],
  )


def _warmup(peak: float, warmup_steps: int) -> optax.Schedule:
  # Step 0 already learns: at a rate of 0 its FLOPs would be spent for nothing.
  return lambda step: peak * jnp.minimum(1, (step + 1) / (warmup_steps + 1))


def _check_warmup(name: str, warmup_steps: int, end: int) -> None:
  if not 0 <= warmup_steps < end:
    raise ValueError(
      f"{name}.warmup_steps = {warmup_steps}, expected 0 to {end - 1}: the"
      f" decay {'begins' if name != 'linear' else 'ends'} at step {end}."
    )
