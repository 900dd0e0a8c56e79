"""Optimizers.

Skipped layers have zero gradients, but their moments decay, and weight decay
still acts on them. That is how a plain optimizer behaves, and our default,
since the paper (arXiv 2402.05913) mentions no other. `freeze_skipped` instead
leaves a skipped layer unchanged, moments included.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PyTree

from raptr_jax.contracts import Params
from raptr_jax.methods.layer_rows import (
  TreePath,
  in_layer_stack,
  key_names,
  of_stack,
)

OptState: TypeAlias = PyTree
AnyArray: TypeAlias = Float[Array | np.ndarray, "..."]

# Names of the parameters that decay; biases and norms do not.
DECAYED = ("kernel", "embedding")


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An optimizer with the learning rate that it applies.

  Attributes:
    init: params -> state.
    update: (gradients, state, params, kept_layers) -> (updates, state), where
      `kept_layers` maps each stack to the mask [L] of the layers that ran.
    learning_rate: step -> learning rate.
  """

  init: Callable[[Params], OptState]
  update: Callable[..., tuple[Params, OptState]]
  learning_rate: optax.Schedule


def adamw(
  *,
  learning_rate: float | optax.Schedule,
  b1: float = 0.9,
  b2: float = 0.999,
  epsilon: float = 1e-8,
  weight_decay: float = 0.01,
  clip_norm: float | None = 1.0,
  freeze_skipped: bool = False,
) -> Optimizer:
  """AdamW (arXiv 1711.05101) after clipping by global norm.

  Args:
    learning_rate: step -> learning rate, from `learning_rates.py`; or a number.
    b1: decay of the first moment.
    b2: decay of the second moment.
    epsilon: added to the root of the second moment.
    weight_decay: multiplied by the learning rate; applied only to `DECAYED`.
    clip_norm: largest global norm of the gradient; None does not clip.
    freeze_skipped: whether skipped layers keep parameters and moments.
  """
  rate = _schedule(learning_rate)
  adam = optax.adamw(
    rate, b1, b2, epsilon, weight_decay=weight_decay, mask=_decayed
  )
  return _optimizer(adam, rate, clip_norm, freeze_skipped)


def adafactor(
  *,
  learning_rate: float | optax.Schedule,
  decay_exponent: float = 0.8,
  clipping_threshold: float = 1.0,
  multiply_by_parameter_scale: bool = True,
  momentum: float | None = None,
  weight_decay: float = 0.0,
  clip_norm: float | None = None,
  min_dim_size_to_factor: int = 128,
  freeze_skipped: bool = False,
) -> Optimizer:
  """Adafactor (arXiv 1804.04235); the defaults are T5's for pretraining.

  Each layer of a stack has its own statistics, so that a skipped layer does not
  affect the updates of others. A kernel with several output axes is factored as
  the matrix [input, product of outputs]. Momentum and weight decay come before
  the learning rate, as in `adamw`; in optax's Adafactor they come after it.

  Args:
    learning_rate: step -> learning rate, from `learning_rates.py`; or a number.
    decay_exponent: update t decays the second moment by 1 - t^-decay_exponent.
    clipping_threshold: largest root mean square of an update, before what
      follows.
    multiply_by_parameter_scale: whether to multiply updates by the root mean
      square of their parameter, at least 0.001.
    momentum: decay of the running mean of updates; None for no mean.
    weight_decay: multiplied by the learning rate; applied only to `DECAYED`.
    clip_norm: largest global norm of the gradient; None does not clip.
    min_dim_size_to_factor: a matrix smaller than this in either direction keeps
      its whole second moment.
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
  decay = optax.add_decayed_weights(weight_decay, mask=_decayed)
  rate = _schedule(learning_rate)
  scale = optax.scale_by_learning_rate(rate)
  factored = optax.chain(*steps, decay, scale)
  return _optimizer(factored, rate, clip_norm, freeze_skipped)


def _schedule(learning_rate: float | optax.Schedule) -> optax.Schedule:
  if callable(learning_rate):
    return learning_rate
  return optax.constant_schedule(learning_rate)


def _optimizer(
  transformation: optax.GradientTransformation,
  learning_rate: optax.Schedule,
  clip_norm: float | None,
  freeze_skipped: bool,
) -> Optimizer:
  """Adds what both optimizers share: clipping, and freezing skipped layers."""
  steps = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
  optimizer = optax.with_extra_args_support(optax.chain(*steps, transformation))
  if freeze_skipped:
    optimizer = _freeze_skipped(optimizer)
  return Optimizer(optimizer.init, optimizer.update, learning_rate)


def _decayed(params: Params) -> Params:
  """True for each parameter that decays."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: bool(key_names(path) & set(DECAYED)), params
  )


def _by_matrix(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Applies a transformation to each matrix of parameters by itself.

  A parameter [D, ...] is the matrix [D, product of the rest], and each layer of
  a stack has its own. So does the state: its leaves, even step counts, have a
  row for each layer of a stack. The state carries no axis names, since its axes
  are not those of the parameter, and is replicated on all devices.
  """

  def as_matrix(x: AnyArray) -> AnyArray:
    return x.reshape(x.shape[0], -1) if x.ndim > 2 else x

  def init_matrix(param: AnyArray) -> OptState:
    return inner.init(as_matrix(param))

  def update_matrix(
    grad: AnyArray, state: OptState, param: AnyArray
  ) -> tuple[AnyArray, OptState]:
    update, state = inner.update(as_matrix(grad), state, as_matrix(param))
    return update.reshape(grad.shape), state

  def map_matrices(function: Callable[..., PyTree], *trees: PyTree) -> PyTree:
    def apply(path: TreePath, *leaves: PyTree) -> PyTree:
      by_layer = jax.vmap(function) if in_layer_stack(path) else function
      return by_layer(*leaves)

    return jax.tree_util.tree_map_with_path(apply, *trees)

  def init(params: Params) -> OptState:
    return map_matrices(init_matrix, nn.unbox(params))

  def update(
    grads: Params, state: OptState, params: Params | None = None
  ) -> tuple[Params, OptState]:
    pairs = map_matrices(update_matrix, grads, state, params)
    updates = jax.tree.map(lambda _, pair: pair[0], grads, pairs)
    return updates, jax.tree.map(lambda _, pair: pair[1], grads, pairs)

  return optax.GradientTransformation(init, update)


def _freeze_skipped(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """Undoes what an optimizer does to the rows of skipped layers."""

  def update(
    updates: Params,
    state: OptState,
    params: Params | None = None,
    *,
    kept_layers: Mapping[str, Bool[Array, "L"]],
  ) -> tuple[Params, OptState]:
    def keep_rows(path: TreePath, new: Array, old: Array) -> Array:
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
