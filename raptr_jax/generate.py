"""Text from any `contracts.Generator`: greedy, sampled, or by beam search.

A search sees logits and a cache that it may rearrange, and knows no family of
models. Any fixed path of layers can write; a path of k layers is a program of
its own. N is the number of tokens there is room for, and E that of beams.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from raptr_jax.contracts import Generator, LayerPath, Params

Cache: TypeAlias = Any
# Tokens [B] and a cache -> logits [B, V] of the tokens after them, and a cache.
Extend: TypeAlias = Callable[[Array, Cache], tuple[Array, Cache]]


@dataclasses.dataclass(frozen=True)
class Decoding:
  """How tokens are chosen.

  Attributes:
    max_new_tokens: N, at most so many are written.
    temperature: tokens are drawn from softmax(logits / temperature); 0 takes
      the most likely one.
    top_k: draw among the k most likely tokens.
    top_p: draw from the nucleus, the fewest tokens that together have this
      probability (arXiv 1904.09751), of those that `top_k` leaves.
    num_beams: E; more than 1 searches for the most likely text.
    length_penalty: beams are compared by their log-likelihood over
      ((5 + length) / 6)^length_penalty (arXiv 1609.08144, equation 14, without
      its coverage); 0 compares log-likelihoods. T5X has 0.6.
  """

  max_new_tokens: int
  temperature: float = 0.0
  top_k: int | None = None
  top_p: float | None = None
  num_beams: int = 1
  length_penalty: float = 0.6

  def __post_init__(self):
    sampled = self.temperature > 0
    truncated = self.top_k is not None or self.top_p is not None
    checks = {
      "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
      "temperature": (
        self.temperature >= 0 and (sampled or not truncated),
        "a positive number if there is a Decoding.top_k or Decoding.top_p,"
        " else at least 0",
      ),
      "top_k": (self.top_k is None or self.top_k >= 1, "at least 1"),
      "top_p": (
        self.top_p is None or 0 < self.top_p <= 1,
        "more than 0 and at most 1",
      ),
      "num_beams": (
        self.num_beams >= 1 and not (sampled and self.num_beams > 1),
        "at least 1, and 1 if Decoding.temperature is not 0",
      ),
      "length_penalty": (self.length_penalty >= 0, "at least 0"),
    }
    for name, (holds, expected) in checks.items():
      if not holds:
        value = getattr(self, name)
        raise ValueError(f"Decoding.{name} = {value}, expected {expected}.")


@flax.struct.dataclass
class Generated:
  """What was written.

  Attributes:
    tokens: with the end, if there is one, and 0 after it.
    lengths: number of tokens, the end included.
    scores: log-likelihood of these tokens, in nats, by the model's softmax as
      it is: without temperature, truncation and length penalty.
  """

  tokens: Int[Array, "B N"]
  lengths: Int[Array, "B"]
  scores: Float[Array, "B"]


@functools.partial(jax.jit, static_argnames=("model", "decoding"))
def generate(
  model: Generator,
  params: Params,
  prompts: Int[Array, "B T"],
  lengths: Int[Array, "B"],
  paths: Mapping[str, LayerPath],
  *,
  decoding: Decoding,
  eos_id: int,
  keys: Key[Array, "B"] | None = None,
) -> Generated:
  """Continues prompts until all have ended, or N tokens are written.

  Compiled once for each model, decoding, and shape of the arguments.

  Args:
    model: hashable, as frozen dataclasses are.
    params: parameters without boxes.
    prompts: tokens, padded on the right.
    lengths: tokens of each prompt, at least 1.
    paths: the layers that run, of each stack.
    decoding: how tokens are chosen.
    eos_id: the token that ends a text; not 0, which is padding.
    keys: of each row if tokens are drawn. What a row draws depends on its own
      key alone, and not on the batch that it is in.

  Raises:
    ValueError: if tokens are to be drawn without keys.
  """
  if decoding.temperature > 0 and keys is None:
    raise ValueError(
      f"Decoding.temperature = {decoding.temperature} draws tokens, which takes"
      " a key for each row: expected keys, or Decoding.temperature = 0."
    )

  def extend(tokens, cache):
    return model.extend(params, tokens, cache, paths)

  room = decoding.max_new_tokens
  logits, cache = model.start(params, prompts, lengths, paths, room)
  if decoding.num_beams > 1:
    tokens, scores = _search_beams(extend, logits, cache, decoding, eos_id)
  else:
    tokens, scores = _write(extend, logits, cache, decoding, eos_id, keys)
  return Generated(tokens, _lengths(tokens, eos_id), scores)


def _write(
  extend: Extend,
  logits: Float[Array, "B V"],
  cache: Cache,
  decoding: Decoding,
  eos_id: Any,
  keys: Key[Array, "B"] | None,
) -> tuple[Int[Array, "B N"], Float[Array, "B"]]:
  """One token after another, and the log-likelihood of all."""

  def append(step, logits, tokens, scores):
    ended = (tokens == eos_id).any(-1)
    new = _choose(logits, decoding, keys, step)
    likelihood = jax.nn.log_softmax(logits)
    gained = jnp.take_along_axis(likelihood, new[:, None], axis=-1)[:, 0]
    tokens = tokens.at[:, step].set(jnp.where(ended, 0, new))
    return tokens, scores + jnp.where(ended, 0.0, gained)

  def unfinished(state):
    step, tokens, _, _ = state
    ended = (tokens == eos_id).any(-1)
    return (step < decoding.max_new_tokens) & ~ended.all()

  def body(state):
    step, tokens, scores, cache = state
    logits, cache = extend(tokens[:, step - 1], cache)
    return step + 1, *append(step, logits, tokens, scores), cache

  batch = len(logits)
  nothing = jnp.zeros((batch, decoding.max_new_tokens), jnp.int32)
  first = append(0, logits, nothing, jnp.zeros(batch))
  _, tokens, scores, _ = lax.while_loop(unfinished, body, (1, *first, cache))
  return tokens, scores


def _choose(
  logits: Float[Array, "B V"],
  decoding: Decoding,
  keys: Key[Array, "B"] | None,
  step: int | Int[Array, ""],
) -> Int[Array, "B"]:
  """The next token of each row."""
  if decoding.temperature == 0 or keys is None:
    return logits.argmax(-1)
  size = min(decoding.top_k or logits.shape[-1], logits.shape[-1])
  best, tokens = lax.top_k(logits / decoding.temperature, size)
  if decoding.top_p is not None:
    probabilities = jax.nn.softmax(best)
    above = jnp.cumsum(probabilities, axis=-1) - probabilities
    best = jnp.where(above < decoding.top_p, best, -jnp.inf)
  step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
  drawn = jax.vmap(jax.random.categorical)(step_keys, best)
  return jnp.take_along_axis(tokens, drawn[:, None], axis=-1)[:, 0]


class _Beams(NamedTuple):
  """State of a beam search.

  Attributes:
    tokens: the texts that have not ended.
    scores: their log-likelihoods, best first.
    rows: of the cache, that each of them goes on from.
    best_tokens: the best text that has ended.
    best_scores: its log-likelihood; -inf if none has ended.
  """

  tokens: Int[Array, "B E N"]
  scores: Float[Array, "B E"]
  rows: Int[Array, "B*E"]
  best_tokens: Int[Array, "B N"]
  best_scores: Float[Array, "B"]


def _search_beams(
  extend: Extend,
  logits: Float[Array, "B V"],
  cache: Cache,
  decoding: Decoding,
  eos_id: Any,
) -> tuple[Int[Array, "B N"], Float[Array, "B"]]:
  """The best text that ended, and its log-likelihood.

  A row is done when no text can still become better than the best that ended;
  one that did not end counts only if none did.
  """
  batch, size, room = len(logits), decoding.num_beams, decoding.max_new_tokens
  advance = functools.partial(_advance, decoding=decoding, eos_id=eos_id)

  def best_value(beams):
    lengths = _lengths(beams.best_tokens, eos_id)
    return beams.best_scores / _penalty(lengths, decoding)

  def unfinished(state):
    step, beams, _ = state
    # Log-likelihoods only fall, and no text is longer than N.
    hope = beams.scores[:, 0] / _penalty(room, decoding)
    return (step < room) & (hope > best_value(beams)).any()

  def body(state):
    step, beams, cache = state
    last = beams.tokens[:, :, step - 1].reshape(-1)
    logits, cache = extend(last, _at_rows(cache, beams.rows))
    return step + 1, advance(step, logits, beams), cache

  # At first all beams of a row are the same: one of them is enough.
  first = _Beams(
    jnp.zeros((batch, size, room), jnp.int32),
    jnp.full((batch, size), -jnp.inf).at[:, 0].set(0.0),
    jnp.repeat(jnp.arange(batch), size),
    jnp.zeros((batch, room), jnp.int32),
    jnp.full(batch, -jnp.inf),
  )
  cache = _at_rows(cache, first.rows)
  beams = advance(0, logits[first.rows], first)
  _, beams, _ = lax.while_loop(unfinished, body, (1, beams, cache))
  ended = jnp.isfinite(beams.best_scores)
  return (
    jnp.where(ended[:, None], beams.best_tokens, beams.tokens[:, 0]),
    jnp.where(ended, beams.best_scores, beams.scores[:, 0]),
  )


def _advance(
  step: int | Int[Array, ""],
  logits: Float[Array, "B*E V"],
  beams: _Beams,
  *,
  decoding: Decoding,
  eos_id: Any,
) -> _Beams:
  """The E most likely texts that have one token more and have not ended."""
  batch, size = beams.scores.shape
  vocab = logits.shape[-1]
  likelihood = jax.nn.log_softmax(logits).reshape(batch, size, vocab)
  scores = (beams.scores[..., None] + likelihood).reshape(batch, -1)
  # Each text ends in one way only, so that of twice as many E go on.
  scores, choices = lax.top_k(scores, 2 * size)
  parents, new = jnp.divmod(choices, vocab)
  tokens = _take(beams.tokens, parents).at[:, :, step].set(new)
  ended = new == eos_id

  ended_scores = jnp.where(ended, scores, -jnp.inf)
  best_tokens = _take(tokens, ended_scores.argmax(1)[:, None])[:, 0]
  best_scores = ended_scores.max(1)
  value = best_scores / _penalty(step + 1, decoding)
  lengths = _lengths(beams.best_tokens, eos_id)
  better = value > beams.best_scores / _penalty(lengths, decoding)

  scores, kept = lax.top_k(jnp.where(ended, -jnp.inf, scores), size)
  rows = jnp.arange(batch)[:, None] * size + _take(parents, kept)
  return _Beams(
    _take(tokens, kept),
    scores,
    rows.reshape(-1),
    jnp.where(better[:, None], best_tokens, beams.best_tokens),
    jnp.where(better, best_scores, beams.best_scores),
  )


def _penalty(length: Any, decoding: Decoding) -> Any:
  """What the log-likelihood of a text of this length is divided by."""
  return ((5 + length) / 6) ** decoding.length_penalty


def _lengths(tokens: Int[Array, "B N"], eos_id: Any) -> Int[Array, "B"]:
  """Number of tokens up to the end, or all."""
  ends = tokens == eos_id
  return jnp.where(ends.any(-1), ends.argmax(-1) + 1, tokens.shape[-1])


def _take(x: Array, index: Int[Array, "B M"]) -> Array:
  """x[b, index[b]] for every row b of x [B, E, ...]."""
  return jax.vmap(lambda row, chosen: row[chosen])(x, index)


def _at_rows(cache: Cache, rows: Int[Array, "R"]) -> Cache:
  """These rows of a cache; its scalars are of all rows."""
  return jax.tree.map(lambda x: x[:, rows] if x.ndim else x, cache)
