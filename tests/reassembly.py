"""Inputs and targets back to the text that they were made of."""

from collections.abc import Sequence

import numpy as np

from raptr_jax.tasks.objectives.denoising import hidden_spans


def reassemble(
  inputs: Sequence[int] | np.ndarray,
  targets: Sequence[int] | np.ndarray,
  *,
  sentinel_ids: Sequence[int] | np.ndarray,
  eos_id: int,
) -> list[int]:
  """Puts the spans of targets in the places of their sentinels in inputs.

  What targets do not give is empty, and what has no place in inputs is lost.
  """
  spans = hidden_spans(targets, sentinel_ids=sentinel_ids, eos_id=eos_id)
  sentinels = {int(i) for i in sentinel_ids}
  text: list[int] = []
  for token in map(int, inputs):
    text += spans.get(token, []) if token in sentinels else [token]
  return text
