"""T5's relative positions: an attention bias for each bucket of distances."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from raptr_jax.models import layers


class RelativePositions(nn.Module):
  """A bias for each head and bucket of distances (arXiv 1910.10683, 2.1).

  Attributes:
    num_heads: H.
    num_buckets: half of them hold one distance each, the others ever more.
    max_distance: all distances from here on share a bucket.
    bidirectional: whether half of the buckets are for later tokens; if not,
      later tokens share bucket 0.
    stddev: of the initial biases.
  """

  num_heads: int
  num_buckets: int
  max_distance: int
  bidirectional: bool
  stddev: float

  @nn.compact
  def __call__(
    self, queries: Int[Array, "T"], keys: Int[Array, "S"]
  ) -> Float[Array, "1 H T S"]:
    """Biases between queries and keys at these positions of a row."""
    init = layers.with_axes(
      nn.initializers.normal(self.stddev), ("heads", "bucket")
    )
    shape = (self.num_heads, self.num_buckets)
    table: Array = self.param("embedding", init, shape, jnp.float32)
    return table[:, self.bucket(keys[None, :] - queries[:, None])][None]

  def bucket(self, offset: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    """The bucket of a key that is `offset` tokens after the query."""
    buckets = self.num_buckets
    if self.bidirectional:
      buckets //= 2
      later = jnp.where(offset > 0, buckets, 0)
      distance = jnp.abs(offset)
    else:
      later = jnp.zeros_like(offset)
      distance = jnp.maximum(-offset, 0)
    exact = buckets // 2
    # From `exact` to `max_distance`, evenly on a logarithmic scale.
    ratio = jnp.log(jnp.maximum(distance, 1) / exact)
    ratio = ratio / math.log(self.max_distance / exact)
    wide = exact + (ratio * (buckets - exact)).astype(jnp.int32)
    wide = jnp.minimum(wide, buckets - 1)
    return later + jnp.where(distance < exact, distance, wide)
