"""What a BERT expects in place of each [MASK] of a text."""

import functools
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array, Float

from raptr_jax.contracts import Batch, DeviceBatch, LayerPath, Model, Params
from raptr_jax.models.bert import BertMaskedLM
from raptr_jax.tasks.objectives.objective import Objective
from raptr_jax.tasks.objectives.packing import pad
from raptr_jax.tasks.text.vocabulary import MASK, Vocabulary
from raptr_jax.training.partitioning import Partitioner

WORD_START = "▁"


def fill_masks(
  model: Model,
  params: Params,
  text: str,
  paths: Mapping[str, LayerPath],
  *,
  objective: Objective,
  vocabulary: Vocabulary,
  partitioner: Partitioner,
  length: int,
  top: int,
) -> list[list[tuple[str, float]]]:
  """The likeliest tokens for each [MASK], and their probabilities.

  Args:
    model: a BERT.
    params: parameters without boxes.
    text: with at least one "[MASK]", which stands for one token.
    paths: the layers that run.
    objective: says which tokens are around a text.
    vocabulary: the model's vocabulary.
    partitioner: places the text on the devices.
    length: shorter texts are padded to so many tokens, to share a program.
    top: number of tokens to list.

  Raises:
    TypeError: `text` is no text.
    ValueError: the model is no BERT, the text has no [MASK], or there are fewer
      tokens than `top`.
  """
  if not isinstance(model, BertMaskedLM):
    raise ValueError(
      f"{type(model).__name__} does not fill {MASK}, which only BertMaskedLM"
      " does: have it write(prompt)."
    )
  if not 1 <= top <= vocabulary.size:
    raise ValueError(
      f"top = {top}, expected 1 to {vocabulary.size}, the size of the"
      " vocabulary."
    )
  batch = _masked_batch(text, objective, vocabulary, length)
  put = partitioner.put_replicated
  chances = _probabilities(model, params, put(batch), put(paths))
  best, ids = jax.lax.top_k(chances[0], top)
  return [
    [(_shown(token, vocabulary), p) for p, token in zip(*slot)]
    for slot in zip(best.tolist(), ids.tolist())
  ]


def _masked_batch(
  text: str, objective: Objective, vocabulary: Vocabulary, length: int
) -> Batch:
  """A batch of one text, as a BERT reads it."""
  if not isinstance(text, str):
    raise TypeError(
      f"text = {text!r}, expected one text: fill each of several by itself."
    )
  first, *others = map(vocabulary.encode, text.split(MASK))
  if not others:
    raise ValueError(f"The text {text!r} has no {MASK}, expected at least one.")
  mask_id = vocabulary.mask_id
  tokens = first + [t for part in others for t in (mask_id, *part)]
  frame = objective.framing(vocabulary)
  row = np.array([*frame.prefix, *tokens, *frame.suffix], np.int32)
  length = max(length, len(row))
  example: dict[str, np.ndarray] = {
    "tokens": pad([row], length, fill=vocabulary.pad_id),
    "segment_ids": pad([np.ones_like(row)], length),
    "positions": pad([np.arange(len(row))], length),
    "target_positions": np.flatnonzero(row == mask_id),
  }
  return {name: x[None].astype(np.int32) for name, x in example.items()}


def _shown(token: int, vocabulary: Vocabulary) -> str:
  """A token's text; the name of a special one, and of the start of a word."""
  return vocabulary.decode([token]) or vocabulary.spell([token]) or WORD_START


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(
  model: BertMaskedLM,
  params: Params,
  batch: DeviceBatch,
  paths: Mapping[str, LayerPath],
) -> Float[Array, "1 P V"]:
  """Of all tokens at each target position."""
  return jax.nn.softmax(model.logits(params, batch, paths))
