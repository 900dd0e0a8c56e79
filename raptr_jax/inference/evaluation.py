"""Evaluates a trained run: held-out loss, and tasks by prompt."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
from rich.console import Console
from rich.table import Table

from raptr_jax.contracts import Params
from raptr_jax.inference.generate import Generator
from raptr_jax.inference.minimal_pairs import pair_scores, pairs_table
from raptr_jax.inference.prompt_length import longest_prompt, usual_prompt
from raptr_jax.inference.prompting import (
  Questions,
  Result,
  downstream_table,
  evaluate_by_prompt,
  mean_scores,
)
from raptr_jax.inference.sentence_scores import (
  SentenceScorer,
  masked_scorer,
  written_scorer,
)
from raptr_jax.inference.text_predictor import TextPredictor
from raptr_jax.inference.trained_params import trained_params
from raptr_jax.models.bert import BertMaskedLM
from raptr_jax.models.masked_stack import full_paths
from raptr_jax.reports.provenance import provenance
from raptr_jax.tasks import files
from raptr_jax.tasks.downstream.registry import select_tasks
from raptr_jax.tasks.downstream.task import DownstreamTask, Example
from raptr_jax.tasks.labelled.minimal_pairs import MinimalPair, read_pairs
from raptr_jax.tasks.mixture import Mixture
from raptr_jax.tasks.objectives.objective import GenerativeObjective
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text.vocabulary import Vocabulary
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.held_out import held_out_evaluator
from raptr_jax.training.plan import make_plan

RESULTS_FILE = "results.json"
PREDICTIONS_FOLDER = "predictions"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """An evaluation of a run, ready to start.

  Attributes:
    experiment: the run; its latest checkpoint is evaluated.
    task: what the run was trained on; provides objective and vocabulary.
    data_dir: folder of all prepared tasks.
    feature_lengths: lengths of the features that it was trained on.
    downstream_tasks: names of tasks or suites; () for held-out loss alone.
    shots: numbers of solved examples before a question.
    folder: folder of the tasks' original files; None reads TFDS.
    tfds_data_dir: folder of the prepared TFDS sets; None for TFDS's default.
    num_examples: evaluates only this many examples of each task, the first
      ones; None for all.
    batch_size: texts at once.
    max_prompt_tokens: room for prompts; drops shots that do not fit, and the
      beginning of a question that is too long by itself. None for as many as
      the model was trained on, with room for an answer.
    seed: seed of the draw of shots.
    minimal_pairs: file or folder of minimal pairs, such as BLiMP's, to judge
      which sentence of each is likelier; None for none.
    pairs_per_paradigm: the first so many; None for all.

  Raises:
    ValueError: a task is unknown, the model cannot write, or a number is out of
      range.
  """

  experiment: Experiment
  task: TextTask | Mixture
  data_dir: str
  feature_lengths: Mapping[str, int]
  downstream_tasks: Sequence[str] = ()
  shots: Sequence[int] = (0, 1, 5)
  folder: str | None = None
  tfds_data_dir: str | None = None
  num_examples: int | None = None
  batch_size: int = 32
  max_prompt_tokens: int | None = None
  seed: int = 0
  minimal_pairs: str | None = None
  pairs_per_paradigm: int | None = None

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
    if self.downstream_tasks and not isinstance(
      self.task.objective, GenerativeObjective
    ):
      raise ValueError(
        f"DOWNSTREAM_TASKS = {self.downstream_tasks!r} needs an objective that"
        " teaches a model to write, such as UL2, but that of"
        f" {self.task.name} is {type(self.task.objective).__name__}: set"
        ' --gin.DOWNSTREAM_TASKS="()".'
      )
    if self.downstream_tasks and not isinstance(
      self.experiment.model, Generator
    ):
      raise ValueError(
        f"DOWNSTREAM_TASKS = {self.downstream_tasks!r} needs a model that"
        f" writes, but {type(self.experiment.model).__name__} lacks start and"
        ' extend: set --gin.DOWNSTREAM_TASKS="()".'
      )
    if self.downstream_tasks and not (
      self.shots
      and min(self.shots) >= 0
      and (self.num_examples is None or self.num_examples > 0)
    ):
      raise ValueError(
        f"DOWNSTREAM_SHOTS = {self.shots!r}, expected numbers such as (0, 1),"
        f" none negative, and DOWNSTREAM_EXAMPLES = {self.num_examples!r},"
        " expected None or at least 1: set --gin.DOWNSTREAM_SHOTS or"
        " --gin.DOWNSTREAM_EXAMPLES."
      )
    devices = self.experiment.partitioner.batch_shards
    if self.batch_size < 1 or self.batch_size % devices:
      raise ValueError(
        f"evaluation.Evaluation.batch_size = {self.batch_size}, expected a"
        f" multiple of the {devices} data-parallel devices: set"
        f" --gin.evaluation.Evaluation.batch_size={devices}."
      )

  def open(self) -> None:
    """Opens the held-out text, and reads the questions.

    Raises:
      FileNotFoundError: data is missing.
      ValueError: data is malformed, or has too few examples for the shots, or
        prompts would be longer than what the model was trained on.
    """
    self.experiment.eval_dataset.open()
    _ = self._pairs
    if self._questions:
      _ = self._prompt_tokens

  def run(self) -> dict[str, Any]:
    """Evaluates, prints tables, and writes `results.json` and `predictions/`.

    The file is rewritten after each task, so an interrupted evaluation leaves
    its results so far. `predictions/` has a file of JSON lines for each.

    Returns:
      The file's content, with None for scores that are undefined.

    Raises:
      FileNotFoundError: the run has no checkpoint.
      ValueError: the run's model has not grown to all its layers.
    """
    self.open()
    questions = self._questions
    params, step = trained_params(self.experiment)
    first_host = jax.process_index() == 0  # Only this one reports.
    console = Console(soft_wrap=True, markup=False, quiet=not first_host)
    results: dict[str, Any] = {
      "model_dir": self.experiment.model_dir,
      "step": step,
      **provenance(),
      "held_out": self._held_out(params),
    }
    console.print(_held_out_table(results["held_out"]))
    if self._pairs:
      found = pair_scores(self._pairs, self._sentence_scorer(params))
      results["minimal_pairs"] = found
      console.print(pairs_table(found))
    if questions:
      results["downstream_settings"] = {
        "source": self.folder or "tfds",
        "max_prompt_tokens": self._prompt_tokens,
        "seed": self.seed,
      }
      scores: list[dict[str, Any]] = []
      for result in evaluate_by_prompt(
        self._predictor(params),
        questions,
        self.shots,
        seed=self.seed,
        console=console,
      ):
        scores.append(result.row | {"predictions": self._save(result)})
        means = mean_scores(scores)
        results |= {"downstream": scores, "downstream_mean": means}
        self._write(results)
      console.print(downstream_table(scores, results["downstream_mean"]))
    console.print(f"written: {self._write(results)}")
    return results

  def _save(self, result: Result) -> str:
    """Writes predictions; returns the file's name within the run's folder."""
    row = result.row
    name = f"{PREDICTIONS_FOLDER}/{row['task']}_{row['shots']}_shot.jsonl"
    if jax.process_index() == 0:
      path = files.path("MODEL_DIR", self.experiment.model_dir) / name
      path.parent.mkdir(parents=True, exist_ok=True)
      lines = (json.dumps(x, ensure_ascii=False) for x in result.predictions)
      files.write_text(path, "".join(f"{line}\n" for line in lines))
    return name

  def _write(self, results: Mapping[str, Any]) -> files.AnyPath:
    """Writes the file, and returns its path."""
    folder = files.path("MODEL_DIR", self.experiment.model_dir)
    path = folder / RESULTS_FILE
    if jax.process_index() == 0:
      files.write_json(path, results)
    return path

  def _held_out(self, params: Params) -> dict[str, Any]:
    """Held-out losses of the full model and of shorter paths, in nats."""
    experiment, plan = self.experiment, make_plan(self.experiment)
    evaluator = held_out_evaluator(experiment)
    key = experiment.keys()["eval"]
    return {
      **evaluator.full(params),
      "loss_by_example_kind": evaluator.by_example_kind(params),
      "loss_by_path_length": {
        str(length): losses["loss"]
        for length, losses in evaluator.by_path_lengths(
          params, plan, key
        ).items()
      },
    }

  @functools.cached_property
  def _questions(self) -> list[Questions]:
    return list(map(self._read, select_tasks(self.downstream_tasks)))

  @functools.cached_property
  def _pairs(self) -> list[MinimalPair]:
    if self.minimal_pairs is None:
      return []
    return read_pairs(self.minimal_pairs, self.pairs_per_paradigm)

  def _sentence_scorer(self, params: Params) -> SentenceScorer:
    model, partitioner = self.experiment.model, self.experiment.partitioner
    if not isinstance(model, BertMaskedLM):
      return written_scorer(self._predictor(params))
    return masked_scorer(
      model,
      params,
      full_paths(model.stacks),
      vocabulary=self.task.vocabulary(self.data_dir),
      partitioner=partitioner,
    )

  def _read(self, task: DownstreamTask) -> Questions:
    def read(split: str) -> list[Example]:
      if self.folder is None:
        return task.examples_from_tfds(split, self.tfds_data_dir)
      return task.examples_from_folder(self.folder, split)

    pool = read("train") if any(self.shots) else []
    if pool and len(pool) <= max(self.shots):
      raise ValueError(
        f"DOWNSTREAM_SHOTS = {self.shots!r}, but {task.name} has"
        f" {len(pool)} examples to draw from: set smaller numbers in"
        " --gin.DOWNSTREAM_SHOTS."
      )
    examples = read("validation")[: self.num_examples]
    return Questions(task=task, examples=examples, pool=pool)

  @property
  def _objective(self) -> GenerativeObjective:
    return cast(GenerativeObjective, self.task.objective)

  @functools.cached_property
  def _vocabulary(self) -> Vocabulary:
    return self.task.vocabulary(self.data_dir)

  @functools.cached_property
  def _prompt_tokens(self) -> int:
    """Room for prompts, without the tokens that the objective adds."""
    trained = self._objective, self._vocabulary, self.feature_lengths
    if self.max_prompt_tokens is None:
      return usual_prompt(*trained)
    most = longest_prompt(*trained)
    if not 1 <= self.max_prompt_tokens <= most:
      raise ValueError(
        f"DOWNSTREAM_PROMPT_TOKENS = {self.max_prompt_tokens}, expected 1 to"
        f" {most}, as the model was trained with TASK_FEATURE_LENGTHS ="
        f" {dict(self.feature_lengths)}: set"
        f" --gin.DOWNSTREAM_PROMPT_TOKENS={most}, or None."
      )
    return self.max_prompt_tokens

  def _predictor(self, params: Params) -> TextPredictor:
    model, partitioner = self.experiment.model, self.experiment.partitioner
    return TextPredictor(
      model=cast(Generator, model),
      params=params,
      paths=partitioner.put_replicated(full_paths(model.stacks)),
      objective=self._objective,
      vocabulary=self._vocabulary,
      partitioner=partitioner,
      batch_size=self.batch_size,
      max_prompt_tokens=self._prompt_tokens,
    )


def _held_out_table(held_out: Mapping[str, Any]) -> Table:
  table = Table("held-out text", "loss", "accuracy")
  accuracy = f"{held_out['accuracy']:.4f}"
  table.add_row("all, full model", f"{held_out['loss']:.4f}", accuracy)
  for kind, loss in held_out["loss_by_example_kind"].items():
    table.add_row(kind, f"{loss:.4f}", "")
  for length, loss in held_out["loss_by_path_length"].items():
    table.add_row(f"all, paths of {length} layers", f"{loss:.4f}", "")
  return table
