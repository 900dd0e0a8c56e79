"""Metrics against the rules of the official scripts, case by case."""

import math
import random
import statistics

import pytest

from raptr_jax.tasks.downstream import metrics, squad_v2, trivia_qa
from raptr_jax.tasks.downstream.standard_errors import jackknife
from raptr_jax.tasks.downstream.task import Answer, Example

SQUAD = [  # Prediction, references, exact match, F1.
  # Articles and case.
  ("The Beatles", ["beatles"], 1, 1),
  ("a cat and an owl", ["cat and the owl"], 1, 1),
  ("theatre", ["the atre"], 0, 0),
  ("up–the–hill", ["up– –hill"], 1, 1),
  ("An", ["the"], 1, 0),  # Nothing is left: equal, without a word in common.
  # Punctuation is dropped, and joins what it divided; then come the articles.
  ("well-known", ["wellknown"], 1, 1),
  ("well-known", ["well known"], 0, 0),
  ("U.S.A.", ["USA"], 1, 1),
  ("vitamin-a", ["vitamina"], 1, 1),
  ("$5,000", ["5000"], 1, 1),
  ("it's (really) so!", ["its really so"], 1, 1),
  # Unicode: not ASCII, not dropped; spaces of any kind are one.
  ("don’t", ["don't"], 0, 0),
  ("‘quoted’", ["quoted"], 0, 0),
  ("São Paulo", ["são paulo"], 1, 1),
  ("Sao Paulo", ["São Paulo"], 0, 1 / 2),
  ("ten\u00a0 \t miles", ["ten miles"], 1, 1),
  ("1914–18", ["1914-18"], 0, 0),
  ("ΑΘΗΝΑ", ["αθηνα"], 1, 1),
  # The best of several references; words count as often as they occur.
  ("New York", ["York", "New York City"], 0, 4 / 5),
  ("York", ["New York", "york."], 1, 1),
  ("one one two", ["one two two"], 0, 2 / 3),
  ("one one two", ["one one three"], 0, 2 / 3),
  ("in 1862", ["1862"], 0, 2 / 3),
  ("", ["1862"], 0, 0),
]

TRIVIA_QA = [
  ("The Blue Heron", ["blue heron"], 1, 1),
  ("An", ["the"], 1, 0),
  # Punctuation and underscores become spaces.
  ("well-known", ["well known"], 1, 1),
  ("well-known", ["wellknown"], 0, 0),
  ("U.S.A.", ["usa"], 0, 0),
  ("U.S.A.", ["u.s."], 1, 1),  # What is left of it ends in an article.
  ("Blue_Heron", ["blue heron"], 1, 1),
  # So do these marks, but no others that are not ASCII.
  ("St Mary’s", ["st mary s"], 1, 1),
  ("‘Heron’", ["heron"], 1, 1),
  ("O´Brien`s", ["o brien s"], 1, 1),
  ("“Heron”", ["heron"], 0, 0),
  ("1914–18", ["1914 18"], 0, 0),
  ("Café", ["cafe"], 0, 0),
  # The best of the aliases.
  ("USA", ["united states", "usa", "america"], 1, 1),
  ("the states", ["united states", "usa"], 0, 2 / 3),
  ("", ["usa"], 0, 0),
]


@pytest.mark.parametrize(("prediction", "references", "exact", "f1"), SQUAD)
def test_squad_rules(prediction, references, exact, f1):
  assert metrics.exact_and_f1(
    [prediction], [references], normalize=metrics.normalize_squad
  ) == (exact, pytest.approx(f1))


@pytest.mark.parametrize(("prediction", "references", "exact", "f1"), TRIVIA_QA)
def test_trivia_qa_rules(prediction, references, exact, f1):
  example = Example(prompt="", answer="", references=tuple(references))
  scores = trivia_qa.TASK.score([example], [Answer(prediction)])
  assert scores == {"exact": 100 * exact, "f1": pytest.approx(100 * f1)}


@pytest.mark.parametrize(
  ("prediction", "no_answer_score", "references", "exact", "f1"),
  [
    # There is no answer.
    ("", 0.0, [], 1, 1),
    ("unanswerable", 0.0, [], 1, 1),
    (" Unanswerable. ", -5.0, [], 1, 1),
    ("The", 0.0, [], 1, 1),  # Nothing is left of it.
    ("Oakham", 0.0, [], 0, 0),  # 0 is not above 0.
    ("Oakham", -1.0, [], 0, 0),
    ("Oakham", 0.5, [], 1, 1),
    # There is one.
    ("unanswerable", 0.0, ["Oakham"], 0, 0),
    ("Oakham", 0.0, ["Oakham"], 1, 1),
    ("Oakham", 0.5, ["Oakham"], 0, 0),
    ("near Oakham", -1.0, ["Oakham", "Tam"], 0, 2 / 3),
    # References of which nothing is left do not count; if none does, only
    # what is nothing itself is right, and to withhold it is wrong.
    ("the", 0.0, ["a", "Oakham"], 0, 0),
    ("an", 0.0, ["the"], 1, 1),
    ("Oakham", 0.0, ["the"], 0, 0),
    ("an", 0.5, ["the"], 0, 0),
  ],
)
def test_squad_v2_rules(prediction, no_answer_score, references, exact, f1):
  example = Example(prompt="", answer="", references=tuple(references))
  answer = Answer(prediction, no_answer_score)
  scores = squad_v2.TASK.score([example], [answer])
  assert scores["exact"] == 100 * exact
  assert scores["f1"] == pytest.approx(100 * f1)


def _best(rows) -> float:
  scores, no_answer_scores, answerable, answered = zip(*rows)
  return metrics.best_threshold_mean(
    scores,
    no_answer_scores=no_answer_scores,
    answerable=answerable,
    answered=answered,
  )


def test_best_threshold():
  # Score, no-answer score, answerable, answered.
  right, half = (1.0, -3.0, True, True), (0.5, -1.0, True, True)
  no_answer, silent = (0.0, -2.0, False, True), (1.0, -4.0, False, False)
  assert _best([right]) == 1
  assert _best([no_answer]) == 1  # All is withheld.
  assert _best([silent]) == 1  # An empty answer is one withheld.
  # 1 + 1 with the first given; giving the second costs 1, the third earns 1/2.
  assert _best([half, right, no_answer]) == pytest.approx(2 / 3)
  assert _best([half, half, half, no_answer]) == pytest.approx(1.5 / 4)
  assert _best([half, right, silent]) == pytest.approx(2.5 / 3)
  # Of equal scores the first is passed first, as in the official script.
  tie = [(1.0, 0.0, True, True), (0.0, 0.0, False, True)]
  assert _best(tie) == 1
  assert _best(tie[::-1]) == 1 / 2


def test_best_threshold_is_the_best_of_all_thresholds():
  rows = []
  for number, no in enumerate(random.Random(0).sample(range(40), 40)):
    # Where there is an answer the no-answer score is rather small.
    answerable = 3 * number % 40 > no
    score = number % 4 / 3 if answerable else 0.0
    rows.append((score, float(no), answerable, True))
  by_threshold = [
    sum(
      float(not answerable) if no > threshold else score
      for score, no, answerable, _ in rows
    )
    for threshold in range(-1, 41)
  ]
  assert _best(rows) == pytest.approx(max(by_threshold) / len(rows))
  assert max(by_threshold) > max(by_threshold[0], by_threshold[-1])


def test_f1_by_class():
  labels, guesses = [0, 0, 1, 2, 2], [0, 1, 1, 1, 0]
  # Of 2 + 2, 1 + 3 and 2 + 0, there are 1, 1 and 0 at once.
  assert metrics.f1(labels, guesses, of=0) == 1 / 2
  assert metrics.f1(labels, guesses, of=1) == 1 / 2
  assert metrics.f1(labels, guesses, of=2) == 0
  macro = metrics.macro_f1(labels, guesses, num_classes=3)
  assert macro == pytest.approx(1 / 3)
  # A class that never occurs counts.
  assert metrics.macro_f1([0, 1], [0, 1], num_classes=3) == pytest.approx(2 / 3)
  assert metrics.accuracy(labels, guesses) == 2 / 5


def test_groups_are_exact_or_not():
  assert metrics.grouped_exact("aabca", [True, True, True, False, True]) == (
    pytest.approx(2 / 3)
  )
  assert metrics.grouped_exact("aba", [True, True, False]) == 1 / 2
  assert metrics.grouped_exact("aba", [False, True, True]) == 1 / 2


def _errors(values, groups=None):
  def score(numbers):
    return {"mean": metrics.mean(values[number] for number in numbers)}

  return jackknife(score, groups or range(len(values)))["mean"]


def test_the_error_of_a_mean():
  rng = random.Random(0)
  values = [rng.random() for _ in range(60)]
  expected = statistics.stdev(values) / math.sqrt(60)
  assert _errors(values) == pytest.approx(expected)
  # Dependent values are one each.
  repeated = [value for value in values for _ in range(3)]
  groups = [number for number in range(60) for _ in range(3)]
  assert _errors(repeated, groups) == pytest.approx(expected)
  # Of many, each part has several.
  many = [rng.random() for _ in range(3_000)]
  expected = statistics.stdev(many) / math.sqrt(3_000)
  assert _errors(many) == pytest.approx(expected, rel=0.25)


def test_the_error_of_f1_is_its_spread_over_samples():
  rng = random.Random(0)

  def sample():
    labels = [int(rng.random() < 0.4) for _ in range(200)]
    guesses = [x if rng.random() < 0.7 else 1 - x for x in labels]
    return labels, guesses

  def f1_error(labels, guesses):
    def score(numbers):
      left = [[x[n] for n in numbers] for x in (labels, guesses)]
      return {"f1": metrics.f1(*left, of=1)}

    return jackknife(score, range(200))["f1"]

  samples = [sample() for _ in range(300)]
  spread = statistics.stdev(metrics.f1(*drawn, of=1) for drawn in samples)
  errors = [f1_error(*drawn) for drawn in samples[:10]]
  assert statistics.mean(errors) == pytest.approx(spread, rel=0.15)


def test_no_error_without_a_second_example_or_a_score():
  assert math.isnan(_errors([1.0]))

  def score(numbers):
    return {"first": 1.0} if 0 in numbers else {}

  assert math.isnan(jackknife(score, range(3))["first"])
