"""Evaluates a trained model: on held-out text, and by prompt.

Nothing is fine-tuned: a model is shown k solved examples and a question, and
chooses among answers by their log-likelihood, or writes one.
"""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from raptr_jax import plan as plans
from raptr_jax.checkpoint import restore_params
from raptr_jax.contracts import Generator, Params
from raptr_jax.experiment import Experiment
from raptr_jax.generate import Decoding
from raptr_jax.models.masked_stack import full_path
from raptr_jax.provenance import provenance
from raptr_jax.text_model import TextModel, Watch
from raptr_jax.train import make_evaluator
from tasks import records
from tasks.downstream.registry import DownstreamTask, select_tasks
from tasks.downstream.shots import build_prompt, draw_shots
from tasks.downstream.task import Answer, Example, RankTask, Scores
from tasks.mixture import Mixture
from tasks.task import TextTask
from tasks.ul2 import UL2

RESULTS_FILE = "results.json"
# A task, its questions, and the examples that shots are drawn from.
Questions: TypeAlias = tuple[DownstreamTask, list[Example], list[Example]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """What is evaluated of a run, ready to start.

  Attributes:
    experiment: the run; its latest checkpoint is evaluated.
    task: what it was trained on: says how it reads, and has the vocabulary.
    data_dir: folder of all prepared tasks.
    downstream_tasks: names of tasks, or of suites of them; () for held-out text
      alone.
    shots: numbers of solved examples before a question.
    folder: of the original files of the downstream tasks; None takes TFDS.
    tfds_data_dir: folder of the prepared TFDS sets; None for its default.
    num_examples: of each task, the first so many; None for all.
    batch_size: texts at once.
    max_prompt_tokens: shots for which there is no room are left out, and so is
      the beginning of a question that is too long by itself.
    seed: decides which examples serve as shots.

  Raises:
    ValueError: if there is no such task, or the run's model cannot do them.
  """

  experiment: Experiment
  task: TextTask | Mixture
  data_dir: str
  downstream_tasks: Sequence[str] = ()
  shots: Sequence[int] = (0, 1, 5)
  folder: str | None = None
  tfds_data_dir: str | None = None
  num_examples: int | None = None
  batch_size: int = 32
  max_prompt_tokens: int = 1000  # A short answer more makes up to 1,024.
  seed: int = 0

  def __post_init__(self):
    macros = {
      "DOWNSTREAM_TASKS": self.downstream_tasks,
      "DOWNSTREAM_SHOTS": self.shots,
    }
    for name, value in macros.items():
      if not isinstance(value, tuple | list):
        raise ValueError(
          f"{name} = {value!r}, expected a tuple: set"
          f' --gin.{name}="({value!r},)".'
        )
    select_tasks(self.downstream_tasks)
    if self.downstream_tasks and not isinstance(self.task.objective, UL2):
      raise ValueError(
        f"DOWNSTREAM_TASKS = {self.downstream_tasks!r} need a model that writes"
        f" (tasks.ul2.UL2), but the objective of {self.task.name} is"
        f" {type(self.task.objective).__name__}: set DOWNSTREAM_TASKS = ()."
      )
    if self.downstream_tasks and not (
      self.shots and min(self.shots) >= 0 and (self.num_examples or 1) > 0
    ):
      raise ValueError(
        f"DOWNSTREAM_SHOTS = {self.shots!r} and DOWNSTREAM_EXAMPLES ="
        f" {self.num_examples!r}, expected numbers such as (0, 1), none"
        " negative, and at least 1 or None."
      )
    devices = self.experiment.partitioner.mesh.shape["data"]
    if self.batch_size < 1 or self.batch_size % devices:
      raise ValueError(
        f"Evaluation.batch_size = {self.batch_size}, expected a multiple of"
        f" the {devices} data-parallel devices: set"
        f" --gin.downstream.Evaluation.batch_size={devices}."
      )

  def open(self) -> None:
    """Opens the held-out text, and reads the questions.

    Raises:
      FileNotFoundError: if data are missing.
      ValueError: if data are not what they should be.
    """
    self.experiment.eval_dataset.open()
    _ = self._questions

  def run(self) -> dict[str, Any]:
    """Evaluates, prints tables, and writes `results.json`.

    The file is written again after each task, so that an evaluation that is
    interrupted leaves what it has found.

    Returns:
      What the file holds. A score of a task that is not defined on its
      examples is None.

    Raises:
      FileNotFoundError: if the run has no checkpoint.
      ValueError: if its model has not grown to all of its layers.
    """
    self.open()
    questions = self._questions
    params, step = self._restore()
    first_host = jax.process_index() == 0  # It reports for all.
    console = Console(soft_wrap=True, markup=False, quiet=not first_host)
    results: dict[str, Any] = {
      "model_dir": self.experiment.model_dir,
      "step": step,
      **provenance(),
      "held_out": self._held_out(params),
    }
    console.print(_held_out_table(results["held_out"]))
    if questions:
      rows: list[dict[str, Any]] = []
      results["downstream_settings"] = {
        "source": self.folder or "tfds",
        "max_prompt_tokens": self.max_prompt_tokens,
        "seed": self.seed,
      }
      for row in self._answers(params, questions, console):
        rows.append(row)
        results |= {"downstream": rows, "downstream_mean": _means(rows)}
        self._write(results)
      console.print(_downstream_table(rows, results["downstream_mean"]))
    console.print(f"written: {self._write(results)}")
    return results

  def _write(self, results: Mapping[str, Any]) -> Path:
    """Writes the file, and gives its path."""
    path = Path(self.experiment.model_dir) / RESULTS_FILE
    if jax.process_index() == 0:
      records.write_json(path, results)
    return path

  def _restore(self) -> tuple[Params, int]:
    """The latest parameters, and their step."""
    model_dir = self.experiment.model_dir
    abstract = plans.abstract_state(self.experiment)
    found = restore_params(model_dir, abstract.params)
    if found is None:
      raise FileNotFoundError(
        f"MODEL_DIR = '{model_dir}' has no checkpoints: train first, or set"
        " --gin.MODEL_DIR to the folder of a run."
      )
    for name, growth in self.experiment.growths.items():
      depth, layers = (
        growth.num_layers(found[1] - 1),
        growth.schedule.num_layers,
      )
      if depth < layers:
        raise ValueError(
          f"MODEL_DIR = '{model_dir}' has a model of step {found[1]}, whose"
          f" {name} has grown to {depth} of {layers} layers: train on first."
        )
    return found

  def _held_out(self, params: Params) -> dict[str, Any]:
    """Losses of the full model and of shorter paths, in nats."""
    experiment, plan = self.experiment, plans.make_plan(self.experiment)
    evaluator = make_evaluator(experiment)
    key = experiment.keys()["eval"]
    return {
      **evaluator.full(params),
      "loss_by_kind": evaluator.by_kind(params),
      "loss_by_path_length": {
        str(sum(lengths.values())): evaluator.by_path_length(
          params, lengths, plan.always_run, key
        )["loss"]
        for lengths in plan.evaluated_lengths()
      },
    }

  @functools.cached_property
  def _questions(self) -> list[Questions]:
    return list(map(self._read, select_tasks(self.downstream_tasks)))

  def _read(self, task: DownstreamTask) -> Questions:
    def read(split):
      if self.folder is None:
        return task.examples_from_tfds(split, self.tfds_data_dir)
      return task.examples_from_folder(self.folder, split)

    pool = read("train") if any(self.shots) else []
    if pool and len(pool) <= max(self.shots):
      raise ValueError(
        f"DOWNSTREAM_SHOTS = {self.shots!r}, but {task.name} has"
        f" {len(pool)} examples to show: set smaller numbers."
      )
    return task, read("validation")[: self.num_examples], pool

  def _answers(
    self, params: Params, questions: Sequence[Questions], console: Console
  ) -> Iterator[dict[str, Any]]:
    """A row of results for each task and number of shots."""
    reader = self._text_model(params)
    for (task, examples, pool), shots in itertools.product(
      questions, self.shots
    ):
      began = time.perf_counter()
      name = f"{task.name}, {shots}-shot"
      prompts = self._prompts(reader, examples, pool, shots)
      with Progress(
        console=console, transient=True, disable=not console.is_terminal
      ) as progress:
        bar = progress.add_task(name, total=num_texts(task, examples))
        scores = answer(
          reader,
          task,
          examples,
          prompts,
          watch=functools.partial(progress.advance, bar),
        )
      seconds = time.perf_counter() - began
      shown = ", ".join(f"{m} {_shown(scores[m])}" for m in task.metrics)
      console.print(f"{name:<20}  {shown}  ({seconds:.0f} s)")
      yield {
        "task": task.name,
        "shots": shots,
        "examples": len(examples),
        "metrics": task.metrics,
        "scores": {metric: _defined(x) for metric, x in scores.items()},
        "seconds": seconds,
      }

  def _prompts(
    self,
    reader: TextModel,
    examples: Sequence[Example],
    pool: Sequence[Example],
    num_shots: int,
  ) -> list[str]:
    return [
      build_prompt(
        example,
        draw_shots(pool, example, num_shots=num_shots, seed=self.seed),
        max_tokens=self.max_prompt_tokens,
        count_tokens=reader.count_tokens,
      )
      for example in examples
    ]

  def _text_model(self, params: Params) -> TextModel:
    model, partitioner = self.experiment.model, self.experiment.partitioner
    paths = {name: full_path(size) for name, size in model.stacks.items()}
    return TextModel(
      model=cast(Generator, model),
      params=params,
      paths=partitioner.put_replicated(paths),
      objective=cast(UL2, self.task.objective),
      vocabulary=self.task.vocabulary(self.data_dir),
      partitioner=partitioner,
      batch_size=self.batch_size,
      max_prompt_tokens=self.max_prompt_tokens,
    )


def answer(
  reader: TextModel,
  task: DownstreamTask,
  examples: Sequence[Example],
  prompts: Sequence[str],
  *,
  watch: Watch = lambda count: None,
) -> Scores:
  """Has a model answer questions, and gives the metrics of its answers.

  Args:
    reader: the model.
    task: whose examples these are.
    examples: the questions.
    prompts: of each, with the shots before it.
    watch: told how many texts more are read, of `num_texts` in all.
  """
  if isinstance(task, RankTask):
    likelihoods = reader.score(
      [p for p, e in zip(prompts, examples) for _ in e.choices],
      [choice for example in examples for choice in example.choices],
      watch=watch,
    )
    ends = np.cumsum([len(example.choices) for example in examples])
    parts = np.split(likelihoods, ends[:-1])
    return task.score(examples, [int(part.argmax()) for part in parts])
  decoding = Decoding(max_new_tokens=task.max_new_tokens)
  texts = reader.write(prompts, decoding, watch=watch)
  if task.no_answer is None:
    return task.score(examples, [Answer(text) for text in texts])
  withheld = [task.no_answer] * len(texts)
  given = [task.answer_in(text) for text in texts]
  margins = reader.score(prompts, withheld, watch=watch) - reader.score(
    prompts, given, watch=watch
  )
  answers = [Answer(text, float(m)) for text, m in zip(texts, margins)]
  return task.score(examples, answers)


def num_texts(task: DownstreamTask, examples: Sequence[Example]) -> int:
  """How many texts `answer` has a model read."""
  if isinstance(task, RankTask):
    return sum(len(example.choices) for example in examples)
  return len(examples) * (1 if task.no_answer is None else 3)


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
  """Mean over the tasks of the means of their metrics, by number of shots."""
  means: dict[str, list[float]] = {}
  for row in rows:
    scores = [row["scores"][metric] for metric in row["metrics"]]
    mean = math.nan if None in scores else float(np.mean(scores))
    means.setdefault(str(row["shots"]), []).append(mean)
  return {shots: _defined(float(np.mean(x))) for shots, x in means.items()}


def _held_out_table(held_out: Mapping[str, Any]) -> Table:
  table = Table("held-out text", "loss", "accuracy")
  accuracy = f"{held_out['accuracy']:.4f}"
  table.add_row("all, full model", f"{held_out['loss']:.4f}", accuracy)
  for kind, loss in held_out["loss_by_kind"].items():
    table.add_row(kind, f"{loss:.4f}", "")
  for length, loss in held_out["loss_by_path_length"].items():
    table.add_row(f"all, paths of {length} layers", f"{loss:.4f}", "")
  return table


def _downstream_table(
  rows: Sequence[Mapping[str, Any]], means: Mapping[str, float | None]
) -> Table:
  """Metrics down, numbers of shots across."""
  table = Table("task", "metric", *(f"{shots}-shot" for shots in means))
  for task in dict.fromkeys(row["task"] for row in rows):
    found = [row for row in rows if row["task"] == task]
    for metric in found[0]["metrics"]:
      scores = [_shown(row["scores"][metric]) for row in found]
      table.add_row(task, metric, *scores)
  table.add_row("mean of tasks", "", *map(_shown, means.values()))
  return table


def _defined(score: float) -> float | None:
  """The score as JSON can hold it."""
  return score if math.isfinite(score) else None


def _shown(score: float | None) -> str:
  return "n/a" if score is None or math.isnan(score) else f"{score:.1f}"
