"""Log-likelihoods of sentences by themselves.

A model that writes has one. For BERT there is the pseudo-log-likelihood (Salazar
et al., arXiv 1910.14659): the sum over tokens of the log probability of each,
where it alone is hidden. Neither is divided by the length.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from raptr_jax.contracts import LayerPath, Params
from raptr_jax.inference.text_losses import stack_rows
from raptr_jax.inference.text_predictor import TextPredictor
from raptr_jax.models.bert import BertMaskedLM
from raptr_jax.tasks.labelled.bert_rows import token_features
from raptr_jax.tasks.text.vocabulary import Vocabulary
from raptr_jax.training.partitioning import Partitioner

# Sentences -> log-likelihoods [N], in nats.
SentenceScorer: TypeAlias = Callable[[Sequence[str]], Float[np.ndarray, "N"]]
MULTIPLE = 8  # Lengths of rows are multiples of it, so that programs are few.


def masked_scorer(
  model: BertMaskedLM,
  params: Params,
  paths: Mapping[str, LayerPath],
  *,
  vocabulary: Vocabulary,
  partitioner: Partitioner,
  batch_size: int = 256,
) -> SentenceScorer:
  """Pseudo-log-likelihoods of sentences by a BERT.

  Args:
    model: the model; of a sentence that is too long for it, the start is read.
    params: parameters without boxes.
    paths: the layers that run.
    vocabulary: the model's own.
    partitioner: places batches on devices.
    batch_size: rows at once, for each device; a sentence has one for each of
      its tokens.
  """
  jitted = partitioner.jit(model.score_batch)
  placed = partitioner.put_replicated(paths)
  size = batch_size * partitioner.batch_shards
  longest = model.config.max_length

  def score(sentences: Sequence[str]) -> Float[np.ndarray, "N"]:
    ids = vocabulary.encode_batch(sentences)
    ids = [tokens[: longest - 2] for tokens in ids]
    scores = np.zeros(len(ids))
    lengths = [
      min(-(-(len(tokens) + 2) // MULTIPLE) * MULTIPLE, longest)
      for tokens in ids
    ]
    order = sorted(range(len(ids)), key=lengths.__getitem__)
    for length, group in itertools.groupby(order, lengths.__getitem__):
      rows = _rows(ids, group, vocabulary, length)
      while part := list(itertools.islice(rows, size)):
        batch = stack_rows([row for _, row in part], size)
        found = np.asarray(jitted(params, partitioner.put_split(batch), placed))
        for (number, _), value in zip(part, found):
          scores[number] += value
    return scores

  return score


def _rows(
  ids: Sequence[np.ndarray],
  numbers: Iterator[int],
  vocabulary: Vocabulary,
  length: int,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
  """For each token of each sentence, its number and a row that hides it."""
  for number in numbers:
    row = token_features((ids[number],), vocabulary, length)
    for place, token in enumerate(ids[number], 1):  # After [CLS].
      tokens = row["tokens"].copy()
      tokens[place] = vocabulary.mask_id
      yield (
        number,
        row
        | {
          "tokens": tokens,
          "target_positions": np.array([place], np.int32),
          "targets": np.array([token], np.int32),
          "target_weights": np.ones(1, np.float32),
        },
      )


def written_scorer(predictor: TextPredictor) -> SentenceScorer:
  """Log-likelihoods of sentences after an empty prompt."""

  def score(sentences: Sequence[str]) -> Float[np.ndarray, "N"]:
    return predictor.score([""] * len(sentences), sentences)

  return score
