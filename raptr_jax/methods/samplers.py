"""Samplers: how a mask is drawn from each layer's probability to run."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num

Sampler = Callable[[Key[Array, ""], Float[Array, "L"]], Bool[Array, "L"]]


def bernoulli(
  key: Key[Array, ""], keep_probabilities: Float[Array, "L"]
) -> Bool[Array, "L"]:
  """Draws each layer independently."""
  return jax.random.uniform(key, keep_probabilities.shape) < keep_probabilities


def exact(
  key: Key[Array, ""], keep_probabilities: Float[Array, "L"]
) -> Bool[Array, "L"]:
  """Draws uniformly among the subsets of the expected size.

  Layers of probability 1 are always in, those of probability 0 never. The
  others must share one probability, which is then their marginal. A fractional
  expected size is rounded up or down at random, so that it holds on average.
  """
  layer_key, size_key = jax.random.split(key)
  # Probabilities are float32: a size of 6 may read 6.0000005.
  size = keep_probabilities.sum()
  size = jnp.where(jnp.abs(size - jnp.rint(size)) < 1e-3, jnp.rint(size), size)
  extra = jax.random.uniform(size_key) < size - jnp.floor(size)
  uniform = jax.random.uniform(layer_key, keep_probabilities.shape)
  certain = jnp.where(keep_probabilities <= 0, -1, uniform)
  score = jnp.where(keep_probabilities >= 1, 2.0, certain)
  # Ranks by comparing all pairs: to sort takes 30 times as long on a CPU.
  index, score = jnp.arange(score.size)[None], score[None]
  ahead = (score > score.T) | ((score == score.T) & (index < index.T))
  rank = ahead.sum(axis=1)
  return rank < jnp.floor(size) + extra


SAMPLERS: dict[str, Sampler] = {"bernoulli": bernoulli, "exact": exact}


def path_keep_probabilities(
  path_length: float | Num[Array, ""], fixed: Bool[Array, "L"]
) -> Float[Array, "L"]:
  """RaPTr's keep probabilities for a path of this expected length.

  Fixed layers always run; all others share one probability.
  """
  num_free = (~fixed).sum()
  p = (path_length - fixed.sum()) / jnp.maximum(num_free, 1)
  return jnp.where(fixed, 1.0, p.astype(jnp.float32))


def fixed_mask(
  fixed_layers: Sequence[int], num_layers: int
) -> Bool[Array, "L"]:
  """Mask of the layers that always run, from their indices.

  Raises:
    ValueError: if an index is out of range.
  """
  for layer in fixed_layers:
    if not -num_layers <= layer < num_layers:
      raise ValueError(
        f"fixed_layers has {layer}, expected {-num_layers} to {num_layers - 1}"
        f" for a model of {num_layers} layers."
      )
  indices = [layer % num_layers for layer in fixed_layers]
  return jnp.asarray([layer in indices for layer in range(num_layers)])
