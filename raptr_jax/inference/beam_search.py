"""Beam search: approximates the most likely text."""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from raptr_jax.contracts import Cache
from raptr_jax.inference.beams import at_rows, extended, take
from raptr_jax.inference.decoding import Decoding, Extend, text_lengths


class _Beams(NamedTuple):
  """State of a beam search.

  Attributes:
    tokens: texts that have not ended.
    scores: their log-likelihoods, best first.
    rows: row of the cache that each of them continues.
    best_tokens: the best text that has ended.
    best_scores: its log-likelihood; -inf if none has ended.
  """

  tokens: Int[Array, "B E N"]
  scores: Float[Array, "B E"]
  rows: Int[Array, "rows"]
  best_tokens: Int[Array, "B N"]
  best_scores: Float[Array, "B"]


def search_beams(
  extend: Extend,
  logits: Float[Array, "B V"],
  cache: Cache,
  decoding: Decoding,
  eos_id: Any,
) -> tuple[Int[Array, "B N"], Float[Array, "B"]]:
  """The best text that ended, and its log-likelihood.

  A row is done when no open text can still beat its best ended one. An open
  text is returned only if none ended.
  """
  batch, size, room = len(logits), decoding.num_beams, decoding.max_new_tokens
  advance = functools.partial(_advance, decoding=decoding, eos_id=eos_id)

  def best_value(beams):
    lengths = text_lengths(beams.best_tokens, eos_id)
    return beams.best_scores / _penalty(lengths, decoding)

  def unfinished(state):
    step, beams, _ = state
    # An upper bound: log-likelihoods only fall, and no text exceeds N tokens.
    hope = beams.scores[:, 0] / _penalty(room, decoding)
    return (step < room) & (hope > best_value(beams)).any()

  def body(state):
    step, beams, cache = state
    last = beams.tokens[:, :, step - 1].reshape(-1)
    logits, cache = extend(last, at_rows(cache, beams.rows))
    return step + 1, advance(step, logits, beams), cache

  # All beams of a row start equal, so only the first may score.
  first = _Beams(
    jnp.zeros((batch, size, room), jnp.int32),
    jnp.full((batch, size), -jnp.inf).at[:, 0].set(0.0),
    jnp.repeat(jnp.arange(batch), size),
    jnp.zeros((batch, room), jnp.int32),
    jnp.full(batch, -jnp.inf),
  )
  cache = at_rows(cache, first.rows)
  beams = advance(0, logits[first.rows], first)
  _, beams, _ = lax.while_loop(unfinished, body, (1, beams, cache))
  ended = jnp.isfinite(beams.best_scores)
  return (
    jnp.where(ended[:, None], beams.best_tokens, beams.tokens[:, 0]),
    jnp.where(ended, beams.best_scores, beams.scores[:, 0]),
  )


def _advance(
  step: int | Int[Array, ""],
  logits: Float[Array, "rows V"],
  beams: _Beams,
  *,
  decoding: Decoding,
  eos_id: Any,
) -> _Beams:
  """Adds a token; keeps the E most likely open texts and the best ended one."""
  batch, size = beams.scores.shape
  tokens, scores, parents = extended(step, logits, beams.tokens, beams.scores)
  ended = tokens[:, :, step] == eos_id

  ended_scores = jnp.where(ended, scores, -jnp.inf)
  best_tokens = take(tokens, ended_scores.argmax(1)[:, None])[:, 0]
  best_scores = ended_scores.max(1)
  value = best_scores / _penalty(step + 1, decoding)
  lengths = text_lengths(beams.best_tokens, eos_id)
  better = value > beams.best_scores / _penalty(lengths, decoding)

  scores, kept = lax.top_k(jnp.where(ended, -jnp.inf, scores), size)
  rows = jnp.arange(batch)[:, None] * size + take(parents, kept)
  return _Beams(
    take(tokens, kept),
    scores,
    rows.reshape(-1),
    jnp.where(better[:, None], best_tokens, beams.best_tokens),
    jnp.where(better, best_scores, beams.best_scores),
  )


def _penalty(length: Any, decoding: Decoding) -> Any:
  """The divisor of the log-likelihood of a text of this length."""
  return ((5 + length) / 6) ** decoding.length_penalty
