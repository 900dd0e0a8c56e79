"""T5's relative positions: an attention bias for each bucket of distances."""

import math

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from raptr_jax.models import layers


@flax.struct.dataclass
class RelativeBias:
  """An `attention.Bias` (arXiv 1910.10683, 2.1), computed where it is used.

  It depends only on the distance of key and query, so that a table is all that
  travels through the layers.

  Attributes:
    table: the bias of each head and bucket.
    max_distance: all distances from here on share a bucket.
    bidirectional: whether half of the buckets are for later tokens; if not,
      later tokens share bucket 0.
    shift: added to the place of each query, such as the slot of a new token.
  """

  table: Float[Array, "H buckets"]
  max_distance: int = flax.struct.field(pytree_node=False)
  bidirectional: bool = flax.struct.field(pytree_node=False)
  shift: int | Int[Array, ""] = 0

  def __call__(
    self, first: int | Int[Array, ""], rows: int, columns: int
  ) -> Float[Array, "1 H rows columns"]:
    """Biases of the queries from `first` on."""
    offsets = jnp.arange(rows + columns) - (rows - 1) - (first + self.shift)
    by_offset = self.table[:, self.bucket(offsets)]
    # Each row is the one above it, moved by one to the right: copies of a
    # vector of n numbers, laid out in rows of n - 1. Unlike an index of the
    # table for each pair, this has a cheap gradient.
    size = rows + columns
    copies = jnp.tile(by_offset, rows)[:, : rows * (size - 1)]
    moved = copies.reshape(-1, rows, size - 1)
    return moved[None, :, :, rows - 1 : rows - 1 + columns]

  def bucket(self, offset: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
    """The bucket of a key that is `offset` tokens after the query."""
    buckets = self.table.shape[1]
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


class RelativePositions(nn.Module):
  """The parameters of a `RelativeBias`.

  Attributes:
    num_heads: H.
    num_buckets: half of them hold one distance each, the others ever more.
    max_distance, bidirectional: see `RelativeBias`.
    stddev: of the initial biases.
  """

  num_heads: int
  num_buckets: int
  max_distance: int
  bidirectional: bool
  stddev: float

  @nn.compact
  def __call__(self, shift: int | Int[Array, ""] = 0) -> RelativeBias:
    """The bias, with each query moved by `shift` places."""
    init = layers.with_axes(
      nn.initializers.normal(self.stddev), ("heads", "bucket")
    )
    shape = (self.num_heads, self.num_buckets)
    table: Array = self.param("embedding", init, shape, jnp.float32)
    return RelativeBias(table, self.max_distance, self.bidirectional, shift)
