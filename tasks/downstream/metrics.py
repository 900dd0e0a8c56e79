"""Metrics of the official evaluations, on texts and labels; all from 0 to 1.

Reimplements the official scripts of SQuAD 1.1 (arXiv 1606.05250) and 2.0
(arXiv 1806.03822), TriviaQA (arXiv 1705.03551), GLUE (arXiv 1804.07461) and
SuperGLUE (arXiv 1905.00537). Correlations are from -1 to 1, and 0 where labels
or predictions are all the same.
"""

import collections
import functools
import math
import re
import string
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeAlias

TextMetric: TypeAlias = Callable[[str, str], float]

_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)
_BLANK_PUNCTUATION = str.maketrans(
  dict.fromkeys(string.punctuation + "‘’´`", " ")
)


def accuracy(labels: Sequence[int], predictions: Sequence[int]) -> float:
  """Share of correct predictions."""
  return mean(a == b for a, b in zip(labels, predictions, strict=True))


def f1(labels: Sequence[int], predictions: Sequence[int], *, of: int) -> float:
  """F1 of class `of`; 0 if it occurs neither in labels nor in predictions."""
  pairs = list(zip(labels, predictions, strict=True))
  hits = sum(label == guess == of for label, guess in pairs)
  total = sum((label == of) + (guess == of) for label, guess in pairs)
  return 2 * hits / total if total else 0.0


def macro_f1(
  labels: Sequence[int], predictions: Sequence[int], *, num_classes: int
) -> float:
  """F1 averaged over all classes."""
  return mean(f1(labels, predictions, of=of) for of in range(num_classes))


def matthews(labels: Sequence[int], predictions: Sequence[int]) -> float:
  """Matthews correlation of two classes, 0 and 1."""
  counts = collections.Counter(zip(labels, predictions, strict=True))
  hits, rejections = counts[1, 1], counts[0, 0]
  false_hits, misses = counts[0, 1], counts[1, 0]
  scale = (
    (hits + false_hits)
    * (hits + misses)
    * (rejections + false_hits)
    * (rejections + misses)
  )
  covariance = hits * rejections - false_hits * misses
  return covariance / math.sqrt(scale) if scale else 0.0


def pearson(labels: Sequence[float], predictions: Sequence[float]) -> float:
  """Pearson's correlation."""
  return _correlation("pearsonr", labels, predictions)


def spearman(labels: Sequence[float], predictions: Sequence[float]) -> float:
  """Spearman's rank correlation; equal numbers share their mean rank."""
  return _correlation("spearmanr", labels, predictions)


def _correlation(
  name: str, labels: Sequence[float], predictions: Sequence[float]
) -> float:
  """A correlation by its name in SciPy; 0 without variation."""
  import scipy.stats  # Takes half a second, which few need.

  if len(set(labels)) < 2 or len(set(predictions)) < 2:
    return 0.0
  return float(getattr(scipy.stats, name)(labels, predictions).statistic)


def grouped_exact(groups: Sequence[Hashable], right: Sequence[bool]) -> float:
  """Share of groups in which every prediction is right."""
  all_right: dict[Hashable, bool] = {}
  for group, is_right in zip(groups, right, strict=True):
    all_right[group] = all_right.get(group, True) and is_right
  return mean(all_right.values())


@functools.lru_cache(maxsize=1 << 18)
def normalize_squad(text: str) -> str:
  """Normalises an answer as SQuAD does.

  Lower-cases it, deletes ASCII punctuation (joining what it separated) and the
  words a, an and the, and reduces white space to single spaces.
  """
  return _without_articles(text.lower().translate(_DROP_PUNCTUATION))


@functools.lru_cache(maxsize=1 << 18)
def normalize_trivia_qa(text: str) -> str:
  """Normalises an answer as TriviaQA does.

  As in SQuAD, but punctuation and the marks ‘ ’ ´ become spaces.
  """
  return _without_articles(text.lower().translate(_BLANK_PUNCTUATION))


def _without_articles(text: str) -> str:
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, reference: str) -> float:
  """1 if two normalised texts are equal, else 0."""
  return float(prediction == reference)


def token_f1(prediction: str, reference: str) -> float:
  """F1 of the words of two normalised texts, counting repetitions.

  0 if they share no word, even if both are empty, as in SQuAD 1.1.
  """
  guessed, right = prediction.split(), reference.split()
  common = collections.Counter(guessed) & collections.Counter(right)
  return 2 * common.total() / max(len(guessed) + len(right), 1)


def best_match(
  metric: TextMetric,
  prediction: str,
  references: Iterable[str],
  *,
  normalize: Callable[[str], str],
) -> float:
  """The metric against the best-matching reference.

  Args:
    metric: `exact_match` or `token_f1`.
    prediction: a model's answer.
    references: right answers, at least one.
    normalize: applied to prediction and references.
  """
  guess = normalize(prediction)
  return max(metric(guess, normalize(reference)) for reference in references)


def squad_match(
  metric: TextMetric, prediction: str, references: Iterable[str]
) -> float:
  """The metric against the best-matching reference, by SQuAD's rules.

  References that normalise to nothing are ignored. If none is left, an answer
  that normalises to nothing is right.
  """
  left = [answer for answer in references if normalize_squad(answer)]
  if not left:
    return float(not normalize_squad(prediction))
  return best_match(metric, prediction, left, normalize=normalize_squad)


def exact_and_f1(
  predictions: Sequence[str],
  references: Sequence[Sequence[str]],
  *,
  normalize: Callable[[str], str],
) -> tuple[float, float]:
  """Mean exact match and mean F1, each against the best-matching reference.

  Args:
    predictions: a model's answers.
    references: right answers to each question, at least one.
    normalize: `normalize_squad` or `normalize_trivia_qa`.
  """
  exact, f1 = (
    mean(
      best_match(metric, prediction, right, normalize=normalize)
      for prediction, right in zip(predictions, references, strict=True)
    )
    for metric in (exact_match, token_f1)
  )
  return exact, f1


def best_threshold_mean(
  scores: Sequence[float],
  *,
  no_answer_scores: Sequence[float],
  answerable: Sequence[bool],
  answered: Sequence[bool],
) -> float:
  """Mean score at the best no-answer threshold, as in SQuAD 2.0.

  The model abstains where the no-answer score is above the threshold, which is
  right if the question has no answer. As in the official script, the threshold
  moves past questions one by one, even where their scores are equal.

  Args:
    scores: score of each answer, if given.
    no_answer_scores: higher means that no answer is more likely.
    answerable: whether each question has an answer.
    answered: whether the model's answer is not empty.
  """
  total = best = float(sum(not has_answer for has_answer in answerable))
  for number in sorted(range(len(scores)), key=no_answer_scores.__getitem__):
    if answerable[number]:
      total += scores[number]
    elif answered[number]:
      total -= 1.0
    best = max(best, total)
  return best / len(scores)


def mean(values: Iterable[float]) -> float:
  """The mean; NaN if there are no values."""
  listed = list(values)
  return sum(listed) / len(listed) if listed else float("nan")
