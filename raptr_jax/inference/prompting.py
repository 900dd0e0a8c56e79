"""Downstream tasks by prompt: a model answers, and its answers are scored.

Nothing is fine-tuned. A model reads k solved examples and a question, and then
chooses among answers by log-likelihood, or writes one.
"""

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from raptr_jax.inference.decoding import Decoding
from raptr_jax.inference.text_predictor import TextPredictor, Watch
from raptr_jax.tasks.downstream.shots import build_prompt, draw_shots
from raptr_jax.tasks.downstream.task import (
  Answer,
  DownstreamTask,
  Example,
  RankTask,
  Scores,
)
from raptr_jax.tasks.progress import Progress

LOG_SECONDS = 60.0  # Between two lines of a log.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions:
  """The questions of one task.

  Attributes:
    task: the task.
    examples: the questions.
    pool: examples to draw shots from; may be empty for 0 shots.
  """

  task: DownstreamTask
  examples: Sequence[Example]
  pool: Sequence[Example]

  def prompts(
    self, predictor: TextPredictor, *, num_shots: int, seed: int
  ) -> list[str]:
    """The prompt of each question, with as many shots as fit."""
    return [
      build_prompt(
        example,
        draw_shots(self.pool, example, num_shots=num_shots, seed=seed),
        max_tokens=predictor.max_prompt_tokens,
        count_tokens=predictor.count_tokens,
      )
      for example in self.examples
    ]


def evaluate_by_prompt(
  predictor: TextPredictor,
  questions: Sequence[Questions],
  shots: Sequence[int],
  *,
  seed: int,
  console: Console,
) -> Iterator[dict[str, Any]]:
  """Yields the results of each task and number of shots, and prints them.

  Args:
    predictor: the model.
    questions: questions of each task.
    shots: numbers of solved examples before a question.
    seed: seed of the draw of shots.
    console: prints a line for each result.
  """
  for asked in questions:
    for num_shots in shots:
      began = time.perf_counter()
      task = asked.task
      name = f"{task.name}, {num_shots}-shot"
      prompts = asked.prompts(predictor, num_shots=num_shots, seed=seed)
      total = num_texts(task, asked.examples)
      with Progress(total, unit="text", log_seconds=LOG_SECONDS) as progress:
        watch = _ignore if console.quiet else _shown_on(progress, name, total)
        scores = answer(predictor, task, asked.examples, prompts, watch=watch)
      seconds = time.perf_counter() - began
      figures = ", ".join(f"{m} {shown(scores[m])}" for m in task.metrics)
      console.print(f"{name:<20}  {figures}  ({seconds:.0f} s)")
      yield {
        "task": task.name,
        "shots": num_shots,
        "examples": len(asked.examples),
        "metrics": task.metrics,
        "scores": {metric: _defined(x) for metric, x in scores.items()},
        "seconds": seconds,
      }


def _ignore(count: int) -> None:
  """Watches nothing."""


def _shown_on(progress: Progress, name: str, total: int) -> Watch:
  """A watch that shows how many texts of a task have been read."""
  began, done = time.perf_counter(), 0

  def watch(count: int) -> None:
    nonlocal done
    done += count
    taken = time.perf_counter() - began
    progress.update(done, name, taken / done * (total - done))

  return watch


def answer(
  predictor: TextPredictor,
  task: DownstreamTask,
  examples: Sequence[Example],
  prompts: Sequence[str],
  *,
  watch: Watch = _ignore,
) -> Scores:
  """Has a model answer questions; returns metrics of its answers.

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
    return task.score(examples, [int(part.argmax()) for part in parts])
  decoding = Decoding(max_new_tokens=task.max_new_tokens)
  texts = predictor.write(prompts, decoding, watch=watch)
  if task.no_answer is None:
    return task.score(examples, [Answer(text) for text in texts])
  withheld = [task.no_answer] * len(texts)
  given = [task.answer_in(text) for text in texts]
  margins = predictor.score(prompts, withheld, watch=watch) - predictor.score(
    prompts, given, watch=watch
  )
  answers = [Answer(text, float(m)) for text, m in zip(texts, margins)]
  return task.score(examples, answers)


def num_texts(task: DownstreamTask, examples: Sequence[Example]) -> int:
  """How many texts a model reads for `answer`."""
  if isinstance(task, RankTask):
    return sum(len(example.choices) for example in examples)
  return len(examples) * (1 if task.no_answer is None else 3)


def mean_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
  """Mean over tasks of their mean metrics, by number of shots."""
  means: dict[str, list[float]] = {}
  for row in rows:
    scores = [row["scores"][metric] for metric in row["metrics"]]
    mean = math.nan if None in scores else float(np.mean(scores))
    means.setdefault(str(row["shots"]), []).append(mean)
  return {shots: _defined(float(np.mean(x))) for shots, x in means.items()}


def downstream_table(
  rows: Sequence[Mapping[str, Any]], means: Mapping[str, float | None]
) -> Table:
  """A table with a row per metric, and a column per number of shots."""
  table = Table("task", "metric", *(f"{shots}-shot" for shots in means))
  for task in dict.fromkeys(row["task"] for row in rows):
    found = [row for row in rows if row["task"] == task]
    for metric in found[0]["metrics"]:
      scores = [shown(row["scores"][metric]) for row in found]
      table.add_row(task, metric, *scores)
  table.add_row("mean of tasks", "", *map(shown, means.values()))
  return table


def _defined(score: float) -> float | None:
  """The score; None if JSON cannot hold it."""
  return score if math.isfinite(score) else None


def shown(score: float | None) -> str:
  """The score with one decimal; "n/a" if undefined."""
  return "n/a" if score is None or math.isnan(score) else f"{score:.1f}"
