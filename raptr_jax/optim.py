"""Optimizers and learning rates.

Skipped layers have zero gradients, but their moments decay and weight decay
still acts on them: that is the plain optimizer, and the default, since the
paper (arXiv 2402.05913) says nothing else of its own. `freeze_skipped` leaves a
skipped layer, its moments included, as it was.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool

from raptr_jax.contracts import Params, in_layer_stack, key_names, of_stack
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
      `kept_layers` has the mask [L] of the layers that ran of each stack.
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
  adam = optax.adamw(
    learning_rate, b1, b2, epsilon, weight_decay=weight_decay, mask=_decayed
  )
  return _optimizer(adam, learning_rate, clip_norm, freeze_skipped)


def adafactor(
  *,
  learning_rate: optax.Schedule,
  decay_exponent: float = 0.8,
  clipping_threshold: float = 1.0,
  multiply_by_parameter_scale: bool = True,
  momentum: float | None = None,
  weight_decay: float = 0.0,
  clip_norm: float | None = None,
  min_dim_size_to_factor: int = 128,
  freeze_skipped: bool = False,
) -> Optimizer:
  """Adafactor (arXiv 1804.04235), by default as T5 pretrains with it.

  Each layer of a stack has statistics of its own, so that a skipped one leaves
  the others' updates alone. Kernels with several output axes are factored as
  the matrices [input, product of outputs] that they are in the model. Momentum
  and weight decay act before the learning rate, as they do in `adamw`; optax's
  Adafactor has them after it.

  Args:
    learning_rate: step -> learning rate, one of the factories below.
    decay_exponent: the second moment decays by 1 - t^-decay_exponent in the
      t-th update.
    clipping_threshold: largest root mean square of an update, before what
      follows.
    multiply_by_parameter_scale: whether updates are multiplied by the root mean
      square of their parameter, at least 0.001.
    momentum: decay of the mean of updates; None has no such mean.
    weight_decay: times the learning rate, off the parameters in `DECAYED`.
    clip_norm: largest global norm of the gradient; None does not clip.
    min_dim_size_to_factor: matrices that are smaller than this in either
      direction keep their whole second moment.
    freeze_skipped: whether skipped layers keep parameters and moments.
  """
  steps = [
    optax.scale_by_factored_rms(
      decay_rate=decay_exponent, min_dim_size_to_factor=min_dim_size_to_factor
    ),
    optax.clip_by_block_rms(clipping_threshold),
  ]
  if multiply_by_parameter_scale:
    steps.append(optax.scale_by_param_block_rms())
  steps = [_by_matrix(optax.chain(*steps))]
  if momentum is not None:
    steps.append(optax.ema(momentum, debias=False))
  factored = optax.chain(
    *steps,
    optax.add_decayed_weights(weight_decay, mask=_decayed),
    optax.scale_by_learning_rate(learning_rate),
  )
  return _optimizer(factored, learning_rate, clip_norm, freeze_skipped)


def _optimizer(
  transformation: optax.GradientTransformation,
  learning_rate: optax.Schedule,
  clip_norm: float | None,
  freeze_skipped: bool,
) -> Optimizer:
  """The transformation after clipping, with what both optimizers can do."""
  steps = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
  optimizer = optax.with_extra_args_support(optax.chain(*steps, transformation))
  if freeze_skipped:
    optimizer = _freeze_skipped(optimizer)
  return Optimizer(optimizer.init, optimizer.update, learning_rate)


def _decayed(params: Params) -> Params:
  return jax.tree_util.tree_map_with_path(
    lambda path, _: bool(key_names(path) & set(DECAYED)), params
  )


def _by_matrix(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Applies a transformation to each matrix of parameters by itself.

  A parameter [D, ...] is the matrix [D, product of the rest], and each layer of
  a stack has its own. So has the state: a leaf in a stack has a row, even of
  step counts, for each layer. It carries no axis names, since it has other
  axes than the parameter: it is on every device.
  """

  def as_matrix(x):
    return x.reshape(x.shape[0], -1) if x.ndim > 2 else x

  def init_matrix(param):
    return inner.init(as_matrix(param))

  def update_matrix(grad, state, param):
    update, state = inner.update(as_matrix(grad), state, as_matrix(param))
    return update.reshape(grad.shape), state

  def map_matrices(function, *trees):
    def apply(path, *leaves):
      by_layer = jax.vmap(function) if in_layer_stack(path) else function
      return by_layer(*leaves)

    return jax.tree_util.tree_map_with_path(apply, *trees)

  def init(params):
    return map_matrices(init_matrix, nn.unbox(params))

  def update(grads, state, params=None):
    pairs = map_matrices(update_matrix, grads, state, params)
    updates = jax.tree.map(lambda _, pair: pair[0], grads, pairs)
    return updates, jax.tree.map(lambda _, pair: pair[1], grads, pairs)

  return optax.GradientTransformation(init, update)


def _freeze_skipped(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Undoes what an optimizer does to the rows of skipped layers."""

  def update(
    updates,
    state,
    params=None,
    *,
    kept_layers: Mapping[str, Bool[Array, "L"]],
  ):
    """The inner update, with rows of skipped layers as they were."""

    def keep_rows(path, new, old):
      kept = of_stack(path, kept_layers)
      if kept is None:
        return new
      return jnp.where(kept.reshape(-1, *[1] * (new.ndim - 1)), new, old)

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
  decay = optax.linear_schedule(peak, 0.0, total_steps - warmup_steps)
  return _after_warmup(decay, peak, warmup_steps)


def cosine(
  *,
  peak: float,
  warmup_steps: int,
  total_steps: int,
  final_share: float = 0.0,
) -> optax.Schedule:
  """Linear warm-up, then half a cosine down to the end (arXiv 1608.03983).

  Args:
    peak: the rate after the warm-up.
    warmup_steps: steps until it is reached.
    total_steps: the decay ends there.
    final_share: part of `peak` that is left then, and stays.

  Raises:
    ValueError: if the warm-up does not end before `total_steps`.
  """
  _check_warmup("cosine", warmup_steps, total_steps)
  decay_steps = total_steps - warmup_steps
  decay = optax.cosine_decay_schedule(peak, decay_steps, final_share)
  return _after_warmup(decay, peak, warmup_steps)


def inverse_square_root(*, peak: float, warmup_steps: int) -> optax.Schedule:
  """Linear warm-up to `peak`, then decay by 1 / sqrt(step), without an end.

  T5 (arXiv 1910.10683, section 3.1.2) has `peak` from the first step on, where
  we warm up, and then the same.
  """

  def rate(step):
    share = (step + 1) / (warmup_steps + 1)
    return peak * jnp.minimum(share, share**-0.5)

  return rate


def constant(*, peak: float, warmup_steps: int) -> optax.Schedule:
  """Linear warm-up to `peak`, which then stays."""
  return _after_warmup(optax.constant_schedule(peak), peak, warmup_steps)


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
  growth: GrowthPlan | Mapping[str, GrowthPlan] | None,
  warmup_steps: int,
) -> optax.Schedule:
  """Another linear warm-up of the same schedule after each growth.

  As gradual stacking has it at the start of each stage (Reddi et al., 2023).

  Args:
    learning_rate: step -> learning rate.
    growth: of all stacks, or of each; None leaves the schedule as it is.
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


def _after_warmup(
  schedule: optax.Schedule, peak: float, warmup_steps: int
) -> optax.Schedule:
  # Step 0 already learns: at a rate of 0 its FLOPs would be spent for nothing.
  def warmup(step):
    return peak * jnp.minimum(1, (step + 1) / (warmup_steps + 1))

  return optax.join_schedules([warmup, schedule], [warmup_steps])


def _check_warmup(name: str, warmup_steps: int, end: int) -> None:
  if not 0 <= warmup_steps < end:
    raise ValueError(
      f"{name}.warmup_steps = {warmup_steps}, expected 0 to {end - 1}: the"
      f" decay {'ends' if name in ('linear', 'cosine') else 'begins'} at step {end}."
    )
