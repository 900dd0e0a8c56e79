"""Scalings: factors on the residual branches of the layers that run."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Scaling = Callable[[Bool[Array, "L"], Float[Array, "L"]], Float[Array, "L"]]


def no_scaling(
  mask: Bool[Array, "L"], keep_probabilities: Float[Array, "L"]
) -> Float[Array, "L"]:
  """1: the default of the paper's second version."""
  return jnp.ones_like(keep_probabilities)


def sqrt_gap(
  mask: Bool[Array, "L"], keep_probabilities: Float[Array, "L"]
) -> Float[Array, "L"]:
  """sqrt(g + 1) for a layer that follows g bypassed ones.

  Our reading of the paper's appendix; the authors have not confirmed it.
  """
  index = jnp.arange(mask.shape[0])
  last_kept = jax.lax.cummax(jnp.where(mask, index, -1))
  previous = jnp.concatenate([jnp.array([-1]), last_kept[:-1]])
  return jnp.sqrt((index - previous).astype(jnp.float32))


def sqrt_global(
  mask: Bool[Array, "L"], keep_probabilities: Float[Array, "L"]
) -> Float[Array, "L"]:
  """sqrt(L / k): the path keeps the variance of the full network."""
  kept = jnp.maximum(mask.sum(), 1)
  return jnp.full_like(keep_probabilities, jnp.sqrt(mask.shape[0] / kept))


def inverse_p(
  mask: Bool[Array, "L"], keep_probabilities: Float[Array, "L"]
) -> Float[Array, "L"]:
  """1 / p: the expected residual of a pre-norm layer stays the same."""
  # Finite where p = 0; the mask zeroes these scales.
  smallest = np.finfo(keep_probabilities.dtype).tiny
  return 1 / jnp.maximum(keep_probabilities, smallest)


SCALINGS: dict[str, Scaling] = {
  "none": no_scaling,
  "sqrt_gap": sqrt_gap,
  "sqrt_global": sqrt_global,
  "inverse_p": inverse_p,
}
