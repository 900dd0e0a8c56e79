"""Rows of tokens for BERT: one text or two (arXiv 1810.04805, figure 4)."""

from collections.abc import Sequence

import numpy as np

from raptr_jax.tasks.objectives.packing import pad
from raptr_jax.tasks.text.vocabulary import Vocabulary


def shortened(
  first: list[int], second: list[int], room: int
) -> tuple[list[int], list[int]]:
  """Both texts, cut at their ends until they fit; the longer one first.

  Args:
    first: token ids.
    second: token ids.
    room: for both together.
  """
  excess = max(len(first) + len(second) - room, 0)
  # Level them, then take from both in turn, beginning with the second.
  longer = min(excess, abs(len(first) - len(second)))
  rest = excess - longer
  from_first = rest // 2 + (longer if len(first) > len(second) else 0)
  from_second = excess - from_first
  return first[: len(first) - from_first], second[: len(second) - from_second]


def token_features(
  texts: Sequence[np.ndarray], vocabulary: Vocabulary, length: int
) -> dict[str, np.ndarray]:
  """[CLS] a [SEP], or [CLS] a [SEP] b [SEP], then padding.

  Args:
    texts: token ids of one text or two; the end of what is too long is left
      out.
    vocabulary: has [CLS] and [SEP].
    length: T.

  Returns:
    tokens: int32[T].
    segment_ids: int32[T], 1; 0 is padding.
    positions: int32[T], from 0; 0 for padding.
    token_types: int32[T], 1 for the second text and its [SEP].
  """
  second = list(texts[1]) if len(texts) > 1 else []
  room = length - 1 - len(texts)
  first, second = shortened(list(texts[0]), second, room)
  head = [vocabulary.cls_id, *first, vocabulary.sep_id]
  tail = [*second, vocabulary.sep_id] if len(texts) > 1 else []
  size = len(head) + len(tail)
  return {
    "tokens": pad([np.array(head + tail)], length, fill=vocabulary.pad_id),
    "segment_ids": pad([np.ones(size)], length),
    "positions": pad([np.arange(size)], length),
    "token_types": pad([np.zeros(len(head)), np.ones(len(tail))], length),
  }
