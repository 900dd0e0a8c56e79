"""Beam search that ends texts by the rule of Hugging Face's `transformers`.

It keeps as many ended texts as there are beams, and compares them by their
log-likelihood over length^length_penalty. A text that ends has to be among the
E most likely ones of its step; one that fills all N tokens counts as ended.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from raptr_jax.contracts import Cache
from raptr_jax.inference.beams import at_rows, extended, take
from raptr_jax.inference.decoding import Decoding, Extend


class _Beams(NamedTuple):
  """State of a search.

  Attributes:
    tokens: texts that have not ended.
    scores: their log-likelihoods, best first.
    rows: row of the cache that each of them continues.
    ended_tokens: the best texts that have ended, best first.
    ended_scores: their log-likelihoods.
    ended_values: what they are compared by; -inf for those still missing.
    is_open: whether texts may still be added to them.
  """

  tokens: Int[Array, "B E N"]
  scores: Float[Array, "B E"]
  rows: Int[Array, "rows"]
  ended_tokens: Int[Array, "B E N"]
  ended_scores: Float[Array, "B E"]
  ended_values: Float[Array, "B E"]
  is_open: Bool[Array, "B"]


def search_beams(
  extend: Extend,
  logits: Float[Array, "B V"],
  cache: Cache,
  decoding: Decoding,
  eos_id: Any,
) -> tuple[Int[Array, "B N"], Float[Array, "B"]]:
  """The best text that ended, and its log-likelihood."""
  batch, size, room = len(logits), decoding.num_beams, decoding.max_new_tokens
  advance = functools.partial(_advance, decoding=decoding, eos_id=eos_id)

  def unfinished(state):
    step, beams, _ = state
    return (step < room) & beams.is_open.any()

  def body(state):
    step, beams, cache = state
    last = beams.tokens[:, :, step - 1].reshape(-1)
    logits, cache = extend(last, at_rows(cache, beams.rows))
    return step + 1, advance(step, logits, beams), cache

  nothing = jnp.zeros((batch, size, room), jnp.int32)
  none = jnp.full((batch, size), -jnp.inf)
  # All beams of a row start equal, so only the first may score.
  first = _Beams(
    nothing,
    none.at[:, 0].set(0.0),
    jnp.repeat(jnp.arange(batch), size),
    nothing,
    none,
    none,
    jnp.ones(batch, bool),
  )
  cache = at_rows(cache, first.rows)
  beams = advance(0, logits[first.rows], first)
  _, beams, _ = lax.while_loop(unfinished, body, (1, beams, cache))
  return beams.ended_tokens[:, 0], beams.ended_scores[:, 0]


def _advance(
  step: int | Int[Array, ""],
  logits: Float[Array, "rows V"],
  beams: _Beams,
  *,
  decoding: Decoding,
  eos_id: Any,
) -> _Beams:
  """Adds a token to the open texts, and those that end to the ended ones."""
  size, room = decoding.num_beams, decoding.max_new_tokens
  tokens, scores, parents = extended(step, logits, beams.tokens, beams.scores)
  new = tokens[:, :, step]
  length = jnp.asarray(step + 1, jnp.float32)
  ends = (new == eos_id) | (length == room)
  likeliest = (jnp.arange(2 * size) < size)[None]
  counts = ends & likeliest & beams.is_open[:, None]
  values = jnp.where(counts, scores / length**decoding.length_penalty, -jnp.inf)
  ended_values, best = lax.top_k(
    jnp.concatenate([beams.ended_values, values], axis=1), size
  )
  ended_tokens = take(
    jnp.concatenate([beams.ended_tokens, tokens], axis=1), best
  )
  ended_scores = take(
    jnp.concatenate([beams.ended_scores, scores], axis=1), best
  )

  scores, kept = lax.top_k(jnp.where(ends, -jnp.inf, scores), size)
  rows = jnp.arange(len(scores))[:, None] * size + take(parents, kept)
  hope = scores[:, 0] / _longest(length, decoding) ** decoding.length_penalty
  is_open = beams.is_open & (hope > ended_values[:, -1])
  if decoding.early_stopping is True:
    is_open &= ~jnp.isfinite(ended_values).all(1)
  return _Beams(
    take(tokens, kept),
    scores,
    rows.reshape(-1),
    ended_tokens,
    ended_scores,
    ended_values,
    is_open,
  )


def _longest(length: Float[Array, ""], decoding: Decoding) -> Any:
  """The length at which an open text is compared with those that ended."""
  if decoding.early_stopping == "never":
    return decoding.max_new_tokens
  return length
