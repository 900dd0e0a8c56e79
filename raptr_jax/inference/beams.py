"""What beam searches share: open texts, one token longer at a time."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from raptr_jax.contracts import Cache


def extended(
  step: int | Int[Array, ""],
  logits: Float[Array, "rows V"],
  tokens: Int[Array, "B E N"],
  scores: Float[Array, "B E"],
) -> tuple[Int[Array, "B 2*E N"], Float[Array, "B 2*E"], Int[Array, "B 2*E"]]:
  """The 2 E most likely texts with another token, best first.

  Each text can end in one way only, so at least E of them are open.

  Returns:
    Texts, their log-likelihoods, and the beams that they come from.
  """
  batch, size = scores.shape
  vocab = logits.shape[-1]
  likelihood = jax.nn.log_softmax(logits).reshape(batch, size, vocab)
  sums = (scores[..., None] + likelihood).reshape(batch, -1)
  best, choices = lax.top_k(sums, 2 * size)
  parents, new = jnp.divmod(choices, vocab)
  return take(tokens, parents).at[:, :, step].set(new), best, parents


def take(x: Array, index: Int[Array, "B M"]) -> Array:
  """x[b, index[b]] for every row b of x [B, E, ...]."""
  return jax.vmap(lambda row, chosen: row[chosen])(x, index)


def at_rows(cache: Cache, rows: Int[Array, "R"]) -> Cache:
  """Selects rows of a cache; its scalars belong to all rows."""
  return jax.tree.map(lambda x: x[:, rows] if x.ndim else x, cache)
