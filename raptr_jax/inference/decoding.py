"""How tokens are chosen, and what all searches share."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Int

from raptr_jax.contracts import Cache

# (tokens [B], cache) -> (logits [B, V] of the next tokens, cache)
Extend: TypeAlias = Callable[[Array, Cache], tuple[Array, Cache]]


@dataclasses.dataclass(frozen=True)
class Decoding:
  """How tokens are chosen.

  Attributes:
    max_new_tokens: N, the most tokens to write.
    temperature: tokens are drawn from softmax(logits / temperature); 0 takes
      the most likely one.
    top_k: draws from the k most likely tokens.
    top_p: draws from the nucleus (arXiv 1904.09751), the fewest tokens left by
      `top_k` that together have this probability.
    num_beams: E; more than 1 searches for the most likely text.
    length_penalty: beams are compared by their log-likelihood over
      ((5 + length) / 6)^length_penalty (arXiv 1609.08144, equation 14, without
      the coverage term); 0 compares log-likelihoods. T5X uses 0.6. With
      `early_stopping`, the divisor is length^length_penalty.
    early_stopping: when beams end. None: when no open text can still beat the
      best ended one, as in T5X. False, True or "never": by the rule of Hugging
      Face for its option of this name, see `hugging_face_beams.py`; its own
      defaults are False and a `length_penalty` of 1.
    stop_strings: a text ends before the first of them, as at the end token.
  """

  max_new_tokens: int
  temperature: float = 0.0
  top_k: int | None = None
  top_p: float | None = None
  num_beams: int = 1
  length_penalty: float = 0.6
  stop_strings: tuple[str, ...] = ()
  early_stopping: bool | str | None = None

  def __post_init__(self):
    sampled = self.temperature > 0
    truncated = self.top_k is not None or self.top_p is not None
    checks = {
      "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
      "temperature": (
        self.temperature >= 0 and (sampled or not truncated),
        "a positive number if Decoding.top_k or Decoding.top_p is set,"
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
      "stop_strings": (
        isinstance(self.stop_strings, tuple)
        and all(self.stop_strings)
        and not (self.stop_strings and self.num_beams > 1),
        "a tuple of texts, none empty, and () if Decoding.num_beams is not 1",
      ),
      "early_stopping": (
        self.early_stopping in (None, False, True, "never"),
        "None, False, True or 'never'",
      ),
    }
    for name, (holds, expected) in checks.items():
      if not holds:
        value = getattr(self, name)
        raise ValueError(f"Decoding.{name} = {value!r}, expected {expected}.")


def text_lengths(tokens: Int[Array, "B N"], eos_id: Any) -> Int[Array, "B"]:
  """Number of tokens up to and including the end token, or all."""
  ends = tokens == eos_id
  return jnp.where(ends.any(-1), ends.argmax(-1) + 1, tokens.shape[-1])
