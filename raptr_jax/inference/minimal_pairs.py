"""Minimal pairs: how often a model finds the better sentence likelier."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from raptr_jax.inference.sentence_scores import SentenceScorer
from raptr_jax.tasks.labelled.minimal_pairs import MinimalPair


def pair_scores(
  pairs: Sequence[MinimalPair], scorer: SentenceScorer
) -> dict[str, Any]:
  """Accuracy, times 100, by phenomenon and of all.

  Equal likelihoods count as wrong. `all` is the mean over pairs, and
  `mean_of_paradigms` that over paradigms, as BLiMP has it.

  Returns:
    `all` and each phenomenon: accuracy, its standard error, and the number of
    pairs; and `mean_of_paradigms`.
  """
  scores = scorer([text for pair in pairs for text in (pair.good, pair.bad)])
  right = [bool(good > bad) for good, bad in zip(scores[::2], scores[1::2])]
  by_phenomenon: dict[str, list[bool]] = {}
  by_paradigm: dict[str, list[bool]] = {}
  for pair, is_right in zip(pairs, right):
    by_phenomenon.setdefault(pair.phenomenon, []).append(is_right)
    by_paradigm.setdefault(pair.paradigm, []).append(is_right)
  means = [sum(found) / len(found) for found in by_paradigm.values()]
  return {
    "all": _accuracy(right),
    "mean_of_paradigms": 100 * sum(means) / len(means),
    "phenomena": {
      name: _accuracy(found) for name, found in sorted(by_phenomenon.items())
    },
  }


def _accuracy(right: Sequence[bool]) -> dict[str, float | int]:
  share = sum(right) / len(right)
  error = math.sqrt(share * (1 - share) / len(right))
  return {
    "accuracy": 100 * share,
    "standard_error": 100 * error,
    "pairs": len(right),
  }


def pairs_table(scores: Mapping[str, Any]) -> Table:
  """The scores, as a table."""
  table = Table("minimal pairs", "accuracy", "standard error", "pairs")
  for name, found in (*scores["phenomena"].items(), ("all", scores["all"])):
    table.add_row(
      name,
      f"{found['accuracy']:.1f}",
      f"{found['standard_error']:.1f}",
      f"{found['pairs']:,}",
    )
  return table
