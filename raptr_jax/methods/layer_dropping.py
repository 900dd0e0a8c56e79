"""RaPTr's rivals: the other published ways to drop layers."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from raptr_jax.contracts import Step
from raptr_jax.methods.policies import LayerPolicy


def layerdrop(
  *,
  num_layers: int,
  drop_rate: float = 0.2,
  flop_factor: float | None = None,
) -> LayerPolicy:
  """LayerDrop (arXiv 1909.11556): every layer is dropped at the same rate.

  Kept layers are not scaled, one draw serves the batch, and evaluations run
  all layers.

  Args:
    num_layers: L.
    drop_rate: probability of each layer to be dropped.
    flop_factor: if set, determines `drop_rate`.

  Raises:
    ValueError: if the rate is not in [0, 1).
  """
  solved_for = {}
  if flop_factor is not None:
    drop_rate = solved_for["drop rate"] = 1 - 1 / flop_factor
  if not 0 <= drop_rate < 1:
    raise ValueError(
      f"layer_dropping.layerdrop.drop_rate = {drop_rate:g}, expected at least 0"
      " and below 1: set another FLOP_FACTOR or"
      " layer_dropping.layerdrop.drop_rate."
    )
  probabilities = jnp.full(num_layers, 1 - drop_rate, jnp.float32)
  return LayerPolicy(
    num_layers, lambda step: probabilities, solved_for=solved_for
  )


def progressive_layer_dropping(
  *,
  num_layers: int,
  total_steps: int,
  theta_bar: float = 0.5,
  decay: float = 100.0,
  indexing: str = "paper",
  flop_factor: float | None = None,
) -> LayerPolicy:
  """Drops more over time and with depth (PLD, arXiv 2010.13369).

  Layer i runs with probability 1 - (i / L) (1 - theta), where theta falls from
  1 to theta_bar: theta(t) = (1 - theta_bar) exp(-decay t / total_steps) +
  theta_bar. A kept layer's residual is divided by its probability. Attention
  and MLP of a block share one gate.

  Args:
    num_layers: L.
    total_steps: steps of the whole run.
    theta_bar: the limit of theta.
    decay: how far theta falls within the run; the source's gamma of 0.001 over
      100k steps is 100.
    indexing: "paper" counts i from 1 to L; "deepspeed", like the authors'
      program, from 0 to L - 1, so that the first layer always runs. Their
      program divides layer i by the probability of layer i + 1; we take that
      for a mistake, and do not follow it.
    flop_factor: if set, determines `theta_bar`.

  Raises:
    ValueError: if theta_bar is not in [0, 1], or the indexing is unknown.
  """
  depth = _relative_depth(indexing, num_layers)
  solved_for = {}
  if flop_factor is not None:
    theta_bar = _theta_bar(flop_factor, depth, total_steps, decay)
    solved_for["theta_bar"] = theta_bar
  if not 0 <= theta_bar <= 1:
    raise ValueError(
      f"layer_dropping.progressive_layer_dropping.theta_bar = {theta_bar:g},"
      " expected 0 to 1: set a smaller FLOP_FACTOR, or another theta_bar."
    )

  def keep_probabilities(step: Step) -> Float[Array, "L"]:
    fall = jnp.exp(-decay * step / total_steps)
    theta = (1 - theta_bar) * fall + theta_bar
    return (1 - jnp.asarray(depth) * (1 - theta)).astype(jnp.float32)

  return LayerPolicy(
    num_layers, keep_probabilities, scaling="inverse_p", solved_for=solved_for
  )


def _relative_depth(indexing: str, num_layers: int) -> Float[np.ndarray, "L"]:
  """The i / L of progressive layer dropping."""
  first = {"paper": 1, "deepspeed": 0}.get(indexing)
  if first is None:
    raise ValueError(
      f"layer_dropping.progressive_layer_dropping.indexing = {indexing!r},"
      " expected 'paper' or 'deepspeed'."
    )
  return np.arange(first, first + num_layers) / num_layers


def _theta_bar(
  flop_factor: float,
  depth: Float[np.ndarray, "L"],
  total_steps: int,
  decay: float,
) -> float:
  """The theta_bar at which the run meets the FLOP factor."""
  # An average step drops sum(depth) (1 - theta_bar) mean(1 - fall) layers.
  fallen = 1 - np.exp(-decay * np.arange(total_steps) / total_steps)
  dropped = len(depth) * (1 - 1 / flop_factor)
  return float(1 - dropped / (depth.sum() * fallen.mean()))


def dont_drop_dropout(
  *,
  num_layers: int,
  total_steps: int,
  max_drop_rate: float = 0.6,
  flop_factor: float | None = None,
) -> LayerPolicy:
  """Drops less over time, more with depth ("Don't Drop Dropout").

  arXiv 2609.05275. Step t of T drops layer l = 0 ... L - 1 at the rate
  max_drop_rate l / (L - 1) (1 - t / (T - 1)), which saves a quarter of
  max_drop_rate. A kept layer's residual is divided by its probability.

  We depart from the source twice. It draws a mask per sequence; ours serves
  the whole batch, so that a dropped layer costs nothing. And we scale the
  residual of a (pre-norm) block once: to scale attention and MLP by one mask,
  one after the other, does not keep the mean.

  A FLOP factor near 4/3 needs a rate near 1: at first the last layers hardly
  ever run, and are scaled by large numbers when they do.

  Args:
    num_layers: L.
    total_steps: T, steps of the whole run.
    max_drop_rate: of the last layer in the first step; 0.6 saves 15 %.
    flop_factor: if set, determines `max_drop_rate`; at most 4/3.

  Raises:
    ValueError: if the rate is not in [0, 1].
  """
  solved_for = {}
  if flop_factor is not None:
    # Rounded, so that a factor of 4/3 is not a rate above 1.
    max_drop_rate = round(4 * (1 - 1 / flop_factor), 9)
    solved_for["max drop rate"] = max_drop_rate
  if not 0 <= max_drop_rate <= 1:
    raise ValueError(
      f"layer_dropping.dont_drop_dropout.max_drop_rate = {max_drop_rate:g},"
      " expected 0 to 1: set a FLOP_FACTOR of at most 1.333, or another"
      " max_drop_rate."
    )
  depth = jnp.arange(num_layers) / max(num_layers - 1, 1)

  def keep_probabilities(step: Step) -> Float[Array, "L"]:
    left = 1 - step / max(total_steps - 1, 1)
    return (1 - max_drop_rate * depth * left).astype(jnp.float32)

  return LayerPolicy(
    num_layers, keep_probabilities, scaling="inverse_p", solved_for=solved_for
  )
