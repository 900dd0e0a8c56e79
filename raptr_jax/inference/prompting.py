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

from raptr_jax.inference.answers import (
  MEAN,
  Answers,
  answer,
  num_texts,
  scores_and_errors,
)
from raptr_jax.inference.text_predictor import TextPredictor, Watch
from raptr_jax.tasks.downstream.majority import majority_scores
from raptr_jax.tasks.downstream.shots import build_prompt, draw_shots
from raptr_jax.tasks.downstream.task import DownstreamTask, Example, Scores
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """The result of a task with a number of shots.

  Attributes:
    row: its entry of `results.json`.
    predictions: a line for each example, as JSON holds it.
  """

  row: dict[str, Any]
  predictions: list[dict[str, Any]]


def evaluate_by_prompt(
  predictor: TextPredictor,
  questions: Sequence[Questions],
  shots: Sequence[int],
  *,
  seed: int,
  console: Console,
) -> Iterator[Result]:
  """Yields the result of each task and number of shots, and prints it.

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
        answers = answer(predictor, task, asked.examples, prompts, watch=watch)
      row = {
        "task": task.name,
        "shots": num_shots,
        "examples": len(asked.examples),
        "shortened_prompts": sum(map(predictor.is_too_long, prompts)),
        **_scored(answers),
        "seconds": time.perf_counter() - began,
      }
      console.print(f"{name:<20}  {_figures(row)}  ({row['seconds']:.0f} s)")
      lines = [
        {"task": task.name, "shots": num_shots, "index": i, "prompt": p, **line}
        for i, (p, line) in enumerate(zip(prompts, answers.predictions()))
      ]
      yield Result(row=row, predictions=lines)


def _scored(answers: Answers) -> dict[str, Any]:
  """Scores of answers, their standard errors and the majority's scores."""
  scores, errors = scores_and_errors(answers)
  majority = majority_scores(answers.task, answers.examples)
  return {
    "metrics": answers.task.metrics,
    "shown": answers.shown,
    "scores": _defined(scores),
    "standard_errors": _defined(errors),
    "majority": _defined(majority),
  }


def _figures(row: Mapping[str, Any]) -> str:
  """The official metrics of a row, in a line."""
  return ", ".join(
    f"{metric} {_cell(row, metric)}" for metric in row["metrics"]
  )


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


def mean_scores(
  rows: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, float | None]]:
  """Mean over tasks of their mean metrics, and its error, by number of shots.

  The tasks' errors are independent of each other.
  """
  means = {}
  for shots in dict.fromkeys(row["shots"] for row in rows):
    found = [row for row in rows if row["shots"] == shots]
    scores, errors = (
      [math.nan if row[key][MEAN] is None else row[key][MEAN] for row in found]
      for key in ("scores", "standard_errors")
    )
    means[str(shots)] = _defined(
      {
        "score": float(np.mean(scores)),
        "standard_error": float(np.linalg.norm(errors)) / len(errors),
      }
    )
  return means


def downstream_table(
  rows: Sequence[Mapping[str, Any]],
  means: Mapping[str, Mapping[str, float | None]],
) -> Table:
  """A table with a row per metric, and a column per number of shots."""
  columns = (f"{shots}-shot" for shots in means)
  table = Table("task", "metric", "majority", *columns)
  for task in dict.fromkeys(row["task"] for row in rows):
    found = [row for row in rows if row["task"] == task]
    for metric in found[0]["shown"]:
      majority = found[0]["majority"]
      baseline = shown(majority[metric]) if metric in majority else ""
      cells = (_cell(row, metric) for row in found)
      table.add_row(task, metric, baseline, *cells)
  cells = (shown(m["score"], m["standard_error"]) for m in means.values())
  table.add_row("mean of tasks", "", "", *cells)
  return table


def _cell(row: Mapping[str, Any], metric: str) -> str:
  scores, errors = row["scores"], row["standard_errors"]
  return shown(scores.get(metric), errors.get(metric))


def _defined(scores: Scores) -> dict[str, float | None]:
  """The scores; None for those that JSON cannot hold."""
  return {m: x if math.isfinite(x) else None for m, x in scores.items()}


def shown(score: float | None, error: float | None = None) -> str:
  """The score and its standard error, or "n/a" if it is undefined."""
  if score is None:
    return "n/a"
  return f"{score:.1f}" if error is None else f"{score:.1f} ± {error:.1f}"
