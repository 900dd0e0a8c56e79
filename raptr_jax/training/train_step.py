"""One training step, pure: (state, batch, draws) -> (state, metrics)."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, Shaped

from raptr_jax.contracts import (
  DeviceBatch,
  Draws,
  LayerPath,
  Metrics,
  Model,
  Params,
)
from raptr_jax.methods.layer_rows import TreePath, of_stack
from raptr_jax.models.shards import sum_over_shards
from raptr_jax.training.optim import Optimizer, OptState
from raptr_jax.training.state import TrainState
from raptr_jax.training.token_counts import real_tokens

# Parameters, draws, and the key of the step: what every shard has whole.
Whole: TypeAlias = tuple[Params, Draws, Key[Array, ""]]
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
  replica_axes: tuple[str, ...] = (),
  loss_limit: Float[Array, ""] | None = None,
) -> tuple[TrainState, Metrics]:
  """Trains the paths of `draws` on one batch.

  Args:
    state: donated by the caller.
    batch: features [B, ...]; B is a multiple of `num_microbatches`.
    draws: layers that run, the same ones in every microbatch.
    dropout_key: folded with the step and the index of the microbatch, and, if
      gradients are summed over `replica_axes`, with that of the shard.
    model: whose loss is minimised, as a mean over all targets of the batch.
    optimizer: updates the parameters.
    num_microbatches: parts of the batch, whose gradients are summed one after
      another.
    replica_axes: mesh axes along which devices have copies of the parameters.
      With several microbatches, each copy sums its own gradients, and the sums
      are added once; with one, XLA adds those of a layer as soon as it has
      them, while it computes the next.
    loss_limit: a mean loss above it is a spike; None for no limit.

  Returns:
    The next state, and the metrics of `model.loss_fn` with `grad_norm`, the
    norm of the gradient before clipping; `tokens`, those of the batch without
    padding; `spiked`, whether the loss is a spike; and `skipped`: whether it
    is, or the gradient is not finite, as that of a loss that is not. Then
    parameters and moments stay as they are, bit for bit, and the metrics of the
    model and `grad_norm` are 0.
  """
  step_key = jax.random.fold_in(dropout_key, state.step)
  gradient = functools.partial(_gradient, model)
  whole = (state.params, draws, step_key)
  if num_microbatches == 1:
    grads, metrics = gradient(whole, 0, batch)
  else:
    accumulate = functools.partial(
      _sum_over_microbatches, gradient, num_microbatches
    )
    grads, metrics = _sum_over_copies(accumulate, whole, batch, replica_axes)

  weight = jnp.maximum(metrics["weight"], 1)
  grads = jax.tree.map(lambda g: g / weight, grads)
  kept_layers = {
    name: draws[name].kept_mask(size) for name, size in model.stacks.items()
  }
  metrics = metrics | {"grad_norm": optax.tree.norm(grads)}
  spiked = jnp.zeros((), bool)
  if loss_limit is not None:
    loss = metrics["loss"] / weight
    spiked = jnp.isfinite(loss) & (loss > loss_limit)
  # A loss that is not finite has such a gradient, too.
  skipped = ~jnp.isfinite(metrics["grad_norm"]) | spiked

  def update() -> tuple[Params, OptState]:
    updates, opt_state = optimizer.update(
      grads, state.opt_state, state.params, kept_layers=kept_layers
    )
    return optax.apply_updates(state.params, updates), opt_state

  def skip() -> tuple[Params, OptState]:
    return state.params, _counted(state.opt_state)

  params, opt_state = jax.lax.cond(skipped, skip, update)
  metrics = {name: jnp.where(skipped, 0, x) for name, x in metrics.items()}
  return TrainState(state.step + 1, params, opt_state), metrics | {
    "tokens": jnp.asarray(real_tokens(batch)),
    "spiked": spiked,
    "skipped": skipped,
  }


def _counted(opt_state: OptState) -> OptState:
  """The state of an optimizer after a step that it does not take.

  Its integers count steps. They go on, so that a step has the learning rate
  that the plan has for it.
  """

  def count(x: Array) -> Array:
    return x + 1 if jnp.issubdtype(x.dtype, jnp.integer) else x

  return jax.tree.map(count, opt_state)


def _gradient(
  model: Model, whole: Whole, index: int | Int[Array, ""], batch: DeviceBatch
) -> Sums:
  """Sums over a microbatch, from (parameters, draws, key)."""
  params, draws, key = whole
  key = jax.random.fold_in(key, index)
  grad_fn = jax.grad(model.loss_fn, has_aux=True)
  grads, metrics = grad_fn(params, batch, draws, key)
  return grads, metrics


def _sum_over_microbatches(
  gradient: Callable[[Whole, Int[Array, ""], DeviceBatch], Sums],
  num_microbatches: int,
  whole: Whole,
  batch: DeviceBatch,
) -> Sums:
  """Sums of the whole batch, in the memory of one microbatch."""

  def split(
    x: Shaped[Array, "B ..."],
  ) -> Shaped[Array, "microbatches size ..."]:
    # Strided, so that each device's examples stay on it.
    return jnp.moveaxis(x.reshape(-1, num_microbatches, *x.shape[1:]), 1, 0)

  def add(
    total: Sums, part: tuple[Int[Array, ""], DeviceBatch]
  ) -> tuple[Sums, None]:
    return jax.tree.map(jnp.add, total, gradient(whole, *part)), None

  parts = (jnp.arange(num_microbatches), jax.tree.map(split, dict(batch)))
  first = jax.tree.map(lambda x: x[0], parts)
  shapes = jax.eval_shape(gradient, whole, *first)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  (grads, metrics), _ = jax.lax.scan(add, zeros, parts)
  return grads, metrics


def _sum_over_copies(
  accumulate: Callable[[Whole, DeviceBatch], Sums],
  whole: Whole,
  batch: DeviceBatch,
  axes: tuple[str, ...],
) -> Sums:
  """Sums over a batch, of which each copy of the parameters has a part.

  They travel once, and of a path's gradients only the rows of its layers.
  """
  if not axes:
    return accumulate(whole, batch)
  params, draws, _ = whole

  def of_copy(whole: Whole, batch: DeviceBatch) -> Sums:
    params, draws, key = whole
    key = jax.random.fold_in(key, jax.lax.axis_index(axes))
    grads, metrics = accumulate((params, draws, key), batch)
    rows = _map_kept(lambda grad, kept: grad[kept], draws, grads)
    return rows, metrics

  rows, metrics = sum_over_shards(of_copy, whole, dict(batch), axes)
  grads = _map_kept(
    lambda rows, kept, param: jnp.zeros_like(param).at[kept].set(rows),
    draws,
    rows,
    params,
  )
  return grads, metrics


def _map_kept(
  function: Callable[..., Array], draws: Draws, tree: Params, *trees: Params
) -> Params:
  """Calls function(leaf, kept layers, ...) on the leaves of stacks with a path.

  Other leaves of `tree` stay as they are.
  """

  def visit(path: TreePath, leaf: Array, *others: Array) -> Array:
    draw = of_stack(path, draws)
    if not isinstance(draw, LayerPath):
      return leaf
    return function(leaf, draw.indices, *others)

  mapped: Params = jax.tree_util.tree_map_with_path(visit, tree, *trees)
  return mapped
