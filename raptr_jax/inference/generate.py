"""Text from any `Generator`: greedy, sampled, or by beam search.

A search sees only logits and a cache that it may rearrange, so it works for any
model family. Any fixed path of layers can write; each path length compiles its
own program. N is the most tokens to write, E the number of beams.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from raptr_jax.contracts import Cache, LayerPath, Model, Params
from raptr_jax.inference import beam_search, hugging_face_beams
from raptr_jax.inference.decoding import Decoding, Extend, text_lengths


@runtime_checkable
class Generator(Model, Protocol):
  """A model that writes token by token, with any path of its layers.

  A cache is a pytree. Its leaves are scalars, or have the examples on axis 1
  for a search to rearrange.
  """

  def start(
    self,
    params: Params,
    prompts: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    paths: Mapping[str, LayerPath],
    max_new_tokens: int,
  ) -> tuple[Float[Array, "B V"], Any]:
    """Reads prompts.

    Args:
      params: parameters without boxes.
      prompts: tokens, padded on the right.
      lengths: number of tokens in each prompt, at least 1.
      paths: the layers that run, for each stack.
      max_new_tokens: room to leave in the cache.

    Returns:
      Logits of the first new token, float32, and a cache for `extend`.
    """

  def extend(
    self,
    params: Params,
    tokens: Int[Array, "B"],
    cache: Any,
    paths: Mapping[str, LayerPath],
  ) -> tuple[Float[Array, "B V"], Any]:
    """Reads the tokens just chosen; returns the next logits, and a cache."""


@flax.struct.dataclass
class Generated:
  """What was written.

  Attributes:
    tokens: without `lead`; including what ended the text, and 0 after it.
    lengths: number of these tokens.
    scores: their log-likelihood, in nats, without temperature, truncation or
      length penalty.
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
  eos_id: int | Int[Array, ""],
  keys: Key[Array, "B"] | None = None,
  lead: Sequence[int | Int[Array, ""]] = (),
  stops: Int[Array, "S ids"] | None = None,
) -> Generated:
  """Continues prompts until all have ended, or N tokens are written.

  Compiles once for each model, decoding, and argument shapes.

  Args:
    model: any `Generator` that is hashable, such as a frozen dataclass.
    params: parameters without boxes.
    prompts: tokens, padded on the right.
    lengths: number of tokens in each prompt, at least 1.
    paths: the layers that run, for each stack.
    decoding: how tokens are chosen.
    eos_id: the token that ends a text; not 0, which is padding.
    keys: one per row, needed to draw tokens. A row's draws depend on its key
      alone, not on its batch.
    lead: tokens that every text begins with; the model need not choose them.
    stops: `stop_strings.stop_table` of the decoding's stop strings, if any.

  Raises:
    ValueError: `decoding` draws tokens, but there are no keys.
  """
  if decoding.temperature > 0 and keys is None:
    raise ValueError(
      f"Decoding.temperature = {decoding.temperature} draws tokens and needs a"
      " key for each row: expected keys, or Decoding.temperature = 0."
    )

  def extend(tokens, cache):
    return model.extend(params, tokens, cache, paths)

  room = len(lead) + decoding.max_new_tokens
  logits, cache = model.start(params, prompts, lengths, paths, room)
  for token in lead:
    logits, cache = extend(jnp.full(len(prompts), token), cache)
  if decoding.num_beams > 1:
    is_ours = decoding.early_stopping is None
    rule = beam_search if is_ours else hugging_face_beams
    tokens, scores = rule.search_beams(extend, logits, cache, decoding, eos_id)
    return Generated(tokens, text_lengths(tokens, eos_id), scores)
  texts = _write(extend, logits, cache, decoding, eos_id, keys, stops)
  return Generated(texts.tokens, texts.lengths, texts.scores)


class _Texts(NamedTuple):
  """State of writing without a search.

  Attributes:
    tokens: what is written, and 0 where nothing is.
    lengths: number of tokens.
    scores: their log-likelihood.
    states: how much of a stop string each text ends in; see `stop_table`.
    ended: whether a text has its end token, or a stop string.
  """

  tokens: Int[Array, "B N"]
  lengths: Int[Array, "B"]
  scores: Float[Array, "B"]
  states: Int[Array, "B"]
  ended: Bool[Array, "B"]


def _write(
  extend: Extend,
  logits: Float[Array, "B V"],
  cache: Cache,
  decoding: Decoding,
  eos_id: Any,
  keys: Key[Array, "B"] | None,
  stops: Int[Array, "S ids"] | None,
) -> _Texts:
  """Writes one token after another."""

  def append(step, logits, texts):
    new = _choose(logits, decoding, keys, step)
    likelihood = jax.nn.log_softmax(logits)
    gained = jnp.take_along_axis(likelihood, new[:, None], axis=-1)[:, 0]
    ended, states = new == eos_id, texts.states
    if stops is not None:
      # Ids beyond the vocabulary's, if the model has any, spell nothing.
      states = stops.at[states, new].get(mode="fill", fill_value=0)
      ended |= states == len(stops) - 1
    return _Texts(
      texts.tokens.at[:, step].set(jnp.where(texts.ended, 0, new)),
      texts.lengths + ~texts.ended,
      texts.scores + jnp.where(texts.ended, 0.0, gained),
      states,
      texts.ended | ended,
    )

  def unfinished(state):
    step, texts, _ = state
    return (step < decoding.max_new_tokens) & ~texts.ended.all()

  def body(state):
    step, texts, cache = state
    logits, cache = extend(texts.tokens[:, step - 1], cache)
    return step + 1, append(step, logits, texts), cache

  batch = len(logits)
  none = jnp.zeros(batch, jnp.int32)
  tokens = jnp.zeros((batch, decoding.max_new_tokens), jnp.int32)
  nothing = _Texts(tokens, none, jnp.zeros(batch), none, none > 0)
  first = append(0, logits, nothing)
  _, texts, _ = lax.while_loop(unfinished, body, (1, first, cache))
  return texts


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
