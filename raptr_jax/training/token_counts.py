"""Tokens of a batch: positions that a model reads, and those that hold text."""

from typing import Any

from raptr_jax.contracts import AnyBatch, Batch, DeviceBatch

# Features that hold tokens, and those that number the text they belong to: 0 is
# padding. A batch without the second has no padding.
TOKENS = {"tokens": "segment_ids", "encoder_tokens": "encoder_segment_ids"}


def token_positions(batch: AnyBatch) -> int:
  """Number of positions of a batch, padding included."""
  return sum(batch[name].size for name in TOKENS if name in batch)


def real_tokens(batch: Batch | DeviceBatch) -> Any:
  """Number of tokens of a batch, without padding; an integer scalar."""
  return sum(
    (batch[segments] > 0).sum() if segments in batch else batch[tokens].size
    for tokens, segments in TOKENS.items()
    if tokens in batch
  )


def padding(tokens: float, positions: float) -> float | None:
  """Share of positions without a token; None if there are no positions."""
  return 1 - tokens / positions if positions else None
