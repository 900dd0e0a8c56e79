"""What a model answers to the questions of a task, and how that scores."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from raptr_jax.inference.decoding import Decoding
from raptr_jax.inference.text_predictor import TextPredictor, Watch
from raptr_jax.tasks.downstream.standard_errors import jackknife
from raptr_jax.tasks.downstream.task import (
  Answer,
  DownstreamTask,
  Example,
  GenerationTask,
  RankTask,
  Scores,
)

MEAN = "mean"  # The name of the mean of a task's official metrics.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
  """What a model chose in a `RankTask`.

  Attributes:
    task: the task.
    examples: its questions.
    likelihoods: log-likelihoods of the choices of each, in nats.
  """

  task: RankTask
  examples: Sequence[Example]
  likelihoods: Sequence[np.ndarray]

  @property
  def shown(self) -> tuple[str, ...]:
    """The scores that tables show."""
    task = self.task
    return *task.metrics, *task.details, *map(_by_length, task.metrics)

  def scores(self, numbers: Sequence[int]) -> Scores:
    """Scores of the examples of these numbers, from 0 to 100.

    Those called `..._norm` choose by log-likelihood per character, as
    lm-evaluation-harness does for acc_norm.
    """
    examples = [self.examples[number] for number in numbers]
    parts = [self.likelihoods[number] for number in numbers]
    scores = self.task.score(examples, [int(part.argmax()) for part in parts])
    per_character = [
      part / [max(len(choice), 1) for choice in example.choices]
      for example, part in zip(examples, parts)
    ]
    norm = self.task.score(examples, [int(p.argmax()) for p in per_character])
    return scores | {_by_length(m): norm[m] for m in self.task.metrics}

  def predictions(self) -> Iterator[dict[str, Any]]:
    """For each example what was chosen, and what is right."""
    for example, part in zip(self.examples, self.likelihoods):
      chosen = int(part.argmax())
      right = [
        choice
        for choice, meaning in zip(
          example.choices, example.candidates or example.choices
        )
        if meaning in (example.references or (example.answer,))
      ]
      yield {
        "prediction": example.choices[chosen],
        "answers": right,
        "choices": example.choices,
        "log_likelihoods": [float(x) for x in part],
        "scores": {"accuracy": 100.0 * (example.choices[chosen] in right)},
      }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
  """What a model wrote in a `GenerationTask`.

  Attributes:
    task: the task.
    examples: its questions.
    answers: what was written for each.
  """

  task: GenerationTask
  examples: Sequence[Example]
  answers: Sequence[Answer]

  @property
  def shown(self) -> tuple[str, ...]:
    """The scores that tables show."""
    return *self.task.metrics, *self.task.details

  def scores(self, numbers: Sequence[int]) -> Scores:
    """Scores of the examples of these numbers, from 0 to 100."""
    return self.task.score(
      [self.examples[number] for number in numbers],
      [self.answers[number] for number in numbers],
    )

  def predictions(self) -> Iterator[dict[str, Any]]:
    """For each example what was written, and what is right."""
    for number, example in enumerate(self.examples):
      answer = self.answers[number]
      line: dict[str, Any] = {
        "prediction": self.task.answer_in(answer.text),
        "answers": example.references,
        "scores": {
          name: score
          for name, score in self.scores([number]).items()
          if math.isfinite(score)
        },
      }
      if self.task.no_answer is not None:
        line["no_answer_score"] = answer.no_answer_score
      yield line


Answers: TypeAlias = Chosen | Written


def scores_and_errors(answers: Answers) -> tuple[Scores, Scores]:
  """All scores, with `MEAN`, that of the official metrics; standard errors."""
  task = answers.task

  def score(numbers: Sequence[int]) -> Scores:
    scores = answers.scores(numbers)
    return scores | {MEAN: float(np.mean([scores[m] for m in task.metrics]))}

  numbers = range(len(answers.examples))
  groups: Sequence[Any] = numbers
  if task.dependent_groups:
    groups = [example.group for example in answers.examples]
  return score(numbers), jackknife(score, groups)


def _by_length(metric: str) -> str:
  return f"{metric}_norm"


def _ignore(count: int) -> None:
  """Watches nothing."""


def answer(
  predictor: TextPredictor,
  task: DownstreamTask,
  examples: Sequence[Example],
  prompts: Sequence[str],
  *,
  watch: Watch = _ignore,
) -> Answers:
  """Has a model answer questions.

  Args:
    predictor: the model.
    task: the task of the examples.
    examples: the questions.
    prompts: the prompt of each, with shots.
    watch: called with the number of texts just read, of `num_texts` in all.
  """
  if isinstance(task, RankTask):
    likelihoods = predictor.score(
      [p for p, e in zip(prompts, examples) for _ in e.choices],
      [choice for example in examples for choice in example.choices],
      watch=watch,
    )
    ends = np.cumsum([len(example.choices) for example in examples])
    parts = np.split(likelihoods, ends[:-1])
    return Chosen(task=task, examples=examples, likelihoods=parts)
  texts = predictor.write(
    prompts,
    Decoding(
      max_new_tokens=task.max_new_tokens, stop_strings=task.stop_strings
    ),
    watch=watch,
  )
  answers = [Answer(text) for text in texts]
  if task.no_answer is not None:
    withheld = [task.no_answer] * len(texts)
    given = [task.answer_in(text) for text in texts]
    margins = predictor.score(prompts, withheld, watch=watch) - predictor.score(
      prompts, given, watch=watch
    )
    answers = [Answer(text, float(m)) for text, m in zip(texts, margins)]
  return Written(task=task, examples=examples, answers=answers)


def num_texts(task: DownstreamTask, examples: Sequence[Example]) -> int:
  """How many texts a model reads for `answer`."""
  if isinstance(task, RankTask):
    return sum(len(example.choices) for example in examples)
  return len(examples) * (1 if task.no_answer is None else 3)
