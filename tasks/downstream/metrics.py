"""Metrics of the official evaluations, on texts and labels; 0 to 1 each.

Written from the rules of the official scripts: SQuAD 1.1 (arXiv:1606.05250)
and 2.0 (arXiv:1806.03822), TriviaQA (arXiv:1705.03551), and SuperGLUE
(arXiv:1905.00537).
"""

import collections
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
  """Share of predictions that are right."""
  return mean(a == b for a, b in zip(labels, predictions, strict=True))


def f1(labels: Sequence[int], predictions: Sequence[int], *, of: int) -> float:
  """F1 of one class; 0 where it is neither right nor predicted."""
  pairs = list(zip(labels, predictions, strict=True))
  hits = sum(label == guess == of for label, guess in pairs)
  total = sum((label == of) + (guess == of) for label, guess in pairs)
  return 2 * hits / total if total else 0.0


def macro_f1(
  labels: Sequence[int], predictions: Sequence[int], *, num_classes: int
) -> float:
  """Mean of the F1 of all classes."""
  return mean(f1(labels, predictions, of=of) for of in range(num_classes))


def grouped_exact(groups: Sequence[Hashable], right: Sequence[bool]) -> float:
  """Share of groups in which all is right."""
  all_right: dict[Hashable, bool] = {}
  for group, is_right in zip(groups, right, strict=True):
    all_right[group] = all_right.get(group, True) and is_right
  return mean(all_right.values())


def normalize_squad(text: str) -> str:
  """SQuAD's form of an answer.

  Lower case; ASCII punctuation dropped, which joins what it stood between;
  then the words a, an, the; then single spaces.
  """
  return _without_articles(text.lower().translate(_DROP_PUNCTUATION))


def normalize_trivia_qa(text: str) -> str:
  """TriviaQA's form of an answer.

  As SQuAD's, but punctuation becomes a space, and so do the marks ‘ ’ ´.
  """
  return _without_articles(text.lower().translate(_BLANK_PUNCTUATION))


def _without_articles(text: str) -> str:
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, reference: str) -> float:
  """1 if two texts, normalised before, are the same."""
  return float(prediction == reference)


def token_f1(prediction: str, reference: str) -> float:
  """F1 of the words of two texts, normalised before, counting repetitions.

  0 if they have none in common, even where both are empty, as in SQuAD 1.1.
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
  """The metric against the reference that suits a prediction best.

  Args:
    metric: `exact_match` or `token_f1`.
    prediction: a model's answer.
    references: at least one.
    normalize: applied to all of them.
  """
  guess = normalize(prediction)
  return max(metric(guess, normalize(reference)) for reference in references)


def exact_and_f1(
  predictions: Sequence[str],
  references: Sequence[Sequence[str]],
  *,
  normalize: Callable[[str], str],
) -> tuple[float, float]:
  """Means of exact match and of F1, each against the best reference.

  Args:
    predictions: answers of a model.
    references: of each, what is right; at least one.
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
  """Mean score at the threshold that suits SQuAD 2.0 best.

  A question is left without an answer where its no-answer score is above the
  threshold, which is right if it has none. As in the official script, the
  threshold passes questions one by one, also those of equal scores.

  Args:
    scores: of each answer, if it is given.
    no_answer_scores: the greater, the rather there is no answer.
    answerable: whether a question has an answer.
    answered: whether the model's answer is more than an empty text.
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
  """The mean; NaN of nothing."""
  listed = list(values)
  return sum(listed) / len(listed) if listed else float("nan")
