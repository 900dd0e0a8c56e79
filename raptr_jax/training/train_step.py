"""One training step, pure: (state, batch, draws) -> (state, metrics)."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, Shaped

from raptr_jax.contracts import DeviceBatch, Draws, Metrics, Model, Params
from raptr_jax.training.optim import Optimizer
from raptr_jax.training.state import TrainState

Sums: TypeAlias = tuple[Params, Metrics]  # Gradients and metrics.


def train_step(
  state: TrainState,
  batch: DeviceBatch,
  draws: Draws,
  dropout_key: Key[Array, ""],
  *,
  model: Model,
  optimizer: Optimizer,
  num_microbatches: int = 1,
) -> tuple[TrainState, Metrics]:
  """Trains the paths of `draws` on one batch.

  Args:
    state: donated by the caller.
    batch: features [B, ...]; B is a multiple of `num_microbatches`.
    draws: layers that run, the same ones in every microbatch.
    dropout_key: folded with the step and the index of the microbatch.
    model: whose loss is minimised, as a mean over all targets of the batch.
    optimizer: updates the parameters.
    num_microbatches: parts of the batch, whose gradients are summed one after
      another.

  Returns:
    The next state, and the metrics of `model.loss_fn` with `grad_norm`, the
    norm of the gradient before clipping.
  """
  step_key = jax.random.fold_in(dropout_key, state.step)
  grad_fn = jax.grad(model.loss_fn, has_aux=True)

  def gradient(index: int | Int[Array, ""], microbatch: DeviceBatch) -> Sums:
    key = jax.random.fold_in(step_key, index)
    grads, metrics = grad_fn(state.params, microbatch, draws, key)
    return grads, metrics

  if num_microbatches == 1:
    grads, metrics = gradient(0, batch)
  else:
    grads, metrics = _sum_over_microbatches(gradient, batch, num_microbatches)

  weight = jnp.maximum(metrics["weight"], 1)
  grads = jax.tree.map(lambda g: g / weight, grads)
  kept_layers = {
    name: draws[name].kept_mask(size) for name, size in model.stacks.items()
  }
  updates, opt_state = optimizer.update(
    grads, state.opt_state, state.params, kept_layers=kept_layers
  )
  params = optax.apply_updates(state.params, updates)
  metrics = metrics | {"grad_norm": optax.tree.norm(grads)}
  return TrainState(state.step + 1, params, opt_state), metrics


def _sum_over_microbatches(
  gradient: Callable[[Int[Array, ""], DeviceBatch], Sums],
  batch: DeviceBatch,
  num_microbatches: int,
) -> Sums:
  """Sums `gradient(index, microbatch)` in the memory of one microbatch."""

  def split(
    x: Shaped[Array, "B ..."],
  ) -> Shaped[Array, "microbatches size ..."]:
    # Strided, so that each device's examples stay on it.
    return jnp.moveaxis(x.reshape(-1, num_microbatches, *x.shape[1:]), 1, 0)

  def add(
    total: Sums, part: tuple[Int[Array, ""], DeviceBatch]
  ) -> tuple[Sums, None]:
    return jax.tree.map(jnp.add, total, gradient(*part)), None

  parts = (jnp.arange(num_microbatches), jax.tree.map(split, dict(batch)))
  shapes = jax.eval_shape(gradient, *jax.tree.map(lambda x: x[0], parts))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  (grads, metrics), _ = jax.lax.scan(add, zeros, parts)
  return grads, metrics
