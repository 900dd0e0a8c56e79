"""Text from any `Generator`: greedy, sampled, or by beam search.

A search sees only logits and a cache that it may rearrange, so it works for any
model family. Any fixed path of layers can write; each path length compiles its
own program. N is the most tokens to write, E the number of beams.
"""

import functools
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from raptr_jax.contracts import Cache, LayerPath, Model, Params
from raptr_jax.inference.beam_search import search_beams
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
    tokens: including the end token, if any, and 0 after it.
    lengths: number of tokens, the end token included.
    scores: log-likelihood of these tokens, in nats, without temperature,
      truncation or length penalty.
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

  room = decoding.max_new_tokens
  logits, cache = model.start(params, prompts, lengths, paths, room)
  if decoding.num_beams > 1:
    tokens, scores = search_beams(extend, logits, cache, decoding, eos_id)
  else:
    tokens, scores = _write(extend, logits, cache, decoding, eos_id, keys)
  return Generated(tokens, text_lengths(tokens, eos_id), scores)


def _write(
  extend: Extend,
  logits: Float[Array, "B V"],
  cache: Cache,
  decoding: Decoding,
  eos_id: Any,
  keys: Key[Array, "B"] | None,
) -> tuple[Int[Array, "B N"], Float[Array, "B"]]:
  """Writes one token after another; returns them and their log-likelihood."""

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
