"""Which tokens attend to which."""

import flax.struct
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int


@flax.struct.dataclass
class Mask:
  """Which tokens attend to which: those of their own segment.

  Padding has segment 0, and attends only to padding; nothing reads its output.

  Attributes:
    queries: segment of each token that attends; the first axis may have size 1.
    keys: segment of each token that is attended to; likewise.
    in_prefix: whether a token belongs to the inputs of its segment, which come
      first and are read from both sides. None if no token does. Read only if
      `causal`.
    causal: whether a token attends only to itself, to earlier tokens and to
      inputs. Queries and keys are then the same tokens, in order.
  """

  queries: Int[Array, "#B T"]
  keys: Int[Array, "#B S"]
  in_prefix: Bool[Array, "#B S"] | None = None
  causal: bool = flax.struct.field(pytree_node=False, default=False)

  def allowed(
    self, first: int | Int[Array, ""] = 0, rows: int | None = None
  ) -> Bool[Array, "#B 1 rows S"]:
    """Whether the queries from `first` on attend to each key.

    Args:
      first: the first query.
      rows: number of queries; all of them if None.
    """
    rows = self.queries.shape[1] if rows is None else rows
    queries = lax.dynamic_slice_in_dim(self.queries, first, rows, axis=1)
    allowed = queries[:, :, None] == self.keys[:, None, :]
    if self.causal:
      places = jnp.arange(self.keys.shape[1])[None, None]
      read = places <= (first + jnp.arange(rows))[None, :, None]
      if self.in_prefix is not None:
        read = read | self.in_prefix[:, None, :]
      allowed = allowed & read
    return allowed[:, None]
