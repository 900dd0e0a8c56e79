"""One training step, pure: (state, batch, draws) -> (state, metrics)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from raptr_jax.contracts import Draws, LayerDraw, LayerPath, Metrics, Model
from raptr_jax.optim import Optimizer
from raptr_jax.state import TrainState


def train_step(
  state: TrainState,
  batch: Mapping[str, Array],
  draws: Draws,
  *,
  model: Model,
  optimizer: Optimizer,
  dropout_key: jax.Array,
  num_microbatches: int = 1,
) -> tuple[TrainState, Metrics]:
  """Trains the paths of `draws` on one batch.

  Args:
    state: donated by the caller.
    batch: arrays [B, ...], B a multiple of `num_microbatches`.
    draws: layers that run, in every microbatch alike.
    model: whose loss is minimised, as a mean over all targets of the batch.
    optimizer: updates the parameters.
    dropout_key: folded with the step and with the microbatch.
    num_microbatches: gradients of so many parts are summed one after another.

  Returns:
    The next state, and the sums of `model.loss_fn` with `grad_norm` before
    clipping.
  """
  step_key = jax.random.fold_in(dropout_key, state.step)
  grad_fn = jax.grad(model.loss_fn, has_aux=True)

  def gradient(index, microbatch):
    key = jax.random.fold_in(step_key, index)
    return grad_fn(state.params, microbatch, key, draws)

  if num_microbatches == 1:
    grads, metrics = gradient(0, batch)
  else:
    grads, metrics = _sum_over_microbatches(gradient, batch, num_microbatches)

  weight = jnp.maximum(metrics["weight"], 1)
  grads = jax.tree.map(lambda g: g / weight, grads)
  kept = {name: _kept(draws[name], size) for name, size in model.stacks.items()}
  updates, opt_state = optimizer.update(
    grads, state.opt_state, state.params, kept_layers=kept
  )
  params = optax.apply_updates(state.params, updates)
  metrics = metrics | {"grad_norm": optax.tree.norm(grads)}
  return TrainState(state.step + 1, params, opt_state), metrics


def _sum_over_microbatches(gradient, batch, num_microbatches: int):
  """Sums `gradient(index, microbatch)` with the memory of one of them."""

  def split(x):
    # Strided, so that each device's examples stay on it.
    return jnp.moveaxis(x.reshape(-1, num_microbatches, *x.shape[1:]), 1, 0)

  def add(total, part):
    return jax.tree.map(jnp.add, total, gradient(*part)), None

  parts = (jnp.arange(num_microbatches), jax.tree.map(split, dict(batch)))
  shapes = jax.eval_shape(gradient, *jax.tree.map(lambda x: x[0], parts))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  return jax.lax.scan(add, zeros, parts)[0]


def _kept(draw: LayerDraw | LayerPath, num_layers: int) -> Bool[Array, "L"]:
  if isinstance(draw, LayerDraw):
    return jnp.asarray(draw.mask)
  return jnp.zeros(num_layers, bool).at[draw.indices].set(True)
