"""Fine-tunes a pretrained model on a task: a grid, then seeds of its best choice.

As for BERT (arXiv 1810.04805, appendix A.3), the choice of learning rate and
batch size is the one with the best score on validation, and each trial counts
by its best evaluation. The grid has one seed, the first; its best choice then
gets the others.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from raptr_jax.configuration import configure
from raptr_jax.contracts import Params
from raptr_jax.data.examples import ExampleDataset
from raptr_jax.fine_tuning.form import TRAIN, Form
from raptr_jax.fine_tuning.forms import form_of
from raptr_jax.fine_tuning.page import RESULTS_FILE, fine_tuning_page, spread
from raptr_jax.fine_tuning.trial import BEST, Trial, TrialScorer
from raptr_jax.inference.run_config import ConfiguredRun, configured_run
from raptr_jax.reports.provenance import provenance
from raptr_jax.tasks import files
from raptr_jax.training.alignment import check_finished
from raptr_jax.training.checkpoint import (
  Checkpointer,
  has_checkpoint,
  restore_params,
)
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.loop import train
from raptr_jax.training.setup import abstract_state

PAGE_FILE = "fine_tuning.md"
# Macros that a trial sets, and methods read.
DEPTH, STEPS = "NUM_LAYERS", "TRAIN_STEPS"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuning:
  """A grid of trials on one task, ready to start.

  Attributes:
    pretrained: MODEL_DIR of the pretrained run; gives model and vocabulary.
    task: name of the task, see `forms.form_of`.
    model_dir: folder of all trials.
    trial: builds the `Experiment` of a trial, given what differs from trial to
      trial; in gin, the configurable itself.
    folder: of the task's original files; None reads TFDS.
    tfds_data_dir: folder of the prepared TFDS sets; None for TFDS's default.
    from_scratch: whether to leave out the pretrained parameters, to compare.
    learning_rates: of the grid.
    batch_sizes: of the grid.
    num_seeds: of the best choice.
    num_epochs: passes over the training examples.
    warmup_share: of the steps, in which the learning rate rises.
    length: T, tokens of a row; longer texts are cut.
    num_examples: of training, the first ones; None for all.

  Raises:
    ValueError: a number is out of range.
  """

  pretrained: str
  task: str
  model_dir: str
  trial: Callable[..., Experiment] = Experiment
  folder: str | None = None
  tfds_data_dir: str | None = None
  from_scratch: bool = False
  learning_rates: Sequence[float] = (5e-5, 4e-5, 3e-5, 2e-5)
  batch_sizes: Sequence[int] = (16, 32)
  num_seeds: int = 5
  num_epochs: float = 3
  warmup_share: float = 0.1
  length: int = 128
  num_examples: int | None = None

  def __post_init__(self) -> None:
    for macro, values in (
      ("LEARNING_RATES", self.learning_rates),
      ("BATCH_SIZES", self.batch_sizes),
    ):
      if not isinstance(values, tuple | list) or not values or min(values) <= 0:
        raise ValueError(
          f"{macro} = {values!r}, expected a tuple of numbers above 0: set"
          f' --gin.{macro}="({values!r},)".'
        )
    for macro, value, least in (
      ("SEEDS", self.num_seeds, 1),
      ("EPOCHS", self.num_epochs, 1e-9),
      ("FINE_TUNING_LENGTH", self.length, 4),
      ("FINE_TUNING_EXAMPLES", self.num_examples or 1, 1),
    ):
      if value < least:
        raise ValueError(f"{macro} = {value}, expected at least {least:g}.")
    if not 0 <= self.warmup_share < 1:
      raise ValueError(
        f"WARMUP_SHARE = {self.warmup_share}, expected 0 or more, below 1."
      )

  def open(self) -> None:
    """Checks what can be checked before a model is read.

    Raises:
      FileNotFoundError: there is no pretrained model.
      ValueError: there are several hosts.
    """
    if jax.process_count() > 1:
      raise ValueError(
        f"fine-tuning runs in one process, not in {jax.process_count()}: leave"
        " out --multihost. It uses all devices of its machine."
      )
    if not has_checkpoint(self.pretrained):
      raise FileNotFoundError(
        f"PRETRAINED = '{self.pretrained}' has no checkpoints: expected the"
        " MODEL_DIR of a trained run."
      )

  def run(self) -> dict[str, Any]:
    """Runs the trials that have not finished; returns results.json's content.

    Raises:
      FileNotFoundError: the pretrained run, its vocabulary, or the task's data
        is missing.
      ValueError: the data is malformed, or the task does not suit the model.
      Stopped: after SIGTERM or SIGINT; the same command resumes.
    """
    config = configure.config_text()
    form = self._form(configured_run(self.pretrained))
    for split in (TRAIN, *form.validation_splits):
      form.examples(split)
    runner = _Runner(self, form, config)
    grid = [
      Trial(self.model_dir, rate, size, 0)
      for size in self.batch_sizes
      for rate in self.learning_rates
    ]
    results = [runner.result(trial) for trial in grid]
    best = max(results, key=runner.deciding)  # Of equal ones, the first.
    trials = [
      Trial(self.model_dir, best["learning_rate"], best["batch_size"], seed)
      for seed in range(self.num_seeds)
    ]
    chosen = [runner.result(trial) for trial in trials]
    winner = max(zip(chosen, trials), key=lambda x: runner.deciding(x[0]))[1]
    submitted = runner.submit(winner)
    summary = self._summary(form, results, chosen, winner, submitted)
    folder = files.path("MODEL_DIR", self.model_dir)
    files.write_json(folder / RESULTS_FILE, summary)
    page = fine_tuning_page(summary)
    files.write_text(folder / PAGE_FILE, page)
    print(f"\n{page}\nwritten: {folder / PAGE_FILE}")
    return summary

  def _form(self, run: ConfiguredRun) -> Form:
    return form_of(
      self.task,
      model=run.experiment.model,
      text_task=run.task,
      vocabulary=run.task.vocabulary(str(run.data_dir)),
      length=self.length,
      folder=self.folder,
      tfds_data_dir=self.tfds_data_dir,
      num_examples=self.num_examples,
    )

  def _summary(
    self,
    form: Form,
    grid: Sequence[dict[str, Any]],
    chosen: Sequence[dict[str, Any]],
    winner: Trial,
    submitted: Sequence[str],
  ) -> dict[str, Any]:
    splits = form.validation_splits
    return {
      "task": form.name,
      "pretrained": None if self.from_scratch else self.pretrained,
      "model_of": self.pretrained,
      "train_examples": len(form.examples(TRAIN)),
      "validation_examples": {n: len(form.examples(n)) for n in splits},
      "epochs": self.num_epochs,
      "length": self.length,
      "folder": self.folder,
      "tfds_data_dir": self.tfds_data_dir,
      "metrics": list(form.metrics),
      "baseline": dict(form.baseline()),
      "grid": list(grid),
      "seeds": list(chosen),
      "scores": {
        split: spread([result["scores"][split] for result in chosen])
        for split in splits
      },
      "best_model": f"{winner.folder}/{BEST}",
      "submissions": list(submitted),
      **provenance(),
    }


@dataclasses.dataclass
class _Runner:
  """Runs trials of a grid.

  Attributes:
    grid: what it is for.
    form: of the task.
    config: text of the configuration that trials are built from.
  """

  grid: FineTuning
  form: Form
  config: str

  def deciding(self, result: dict[str, Any]) -> float:
    """The score by which trials are compared."""
    score: float = result["scores"][self.form.validation_splits[0]]["score"]
    return score

  def result(self, trial: Trial) -> dict[str, Any]:
    """The result of a trial, which runs unless it has finished."""
    experiment = self.experiment(trial)
    found = trial.result()
    if found is not None:
      check_finished(experiment, configure.config_text())
      return found
    print(f"{self.form.name}: {trial.name}", flush=True)
    train(experiment, configure.config_text())
    return trial.finish(self.form.baseline())

  def experiment(self, trial: Trial) -> Experiment:
    """The run of a trial."""
    examples = self.form.examples(TRAIN)
    epoch = math.ceil(len(examples) / trial.batch_size)
    steps = math.ceil(len(examples) * self.grid.num_epochs / trial.batch_size)
    deciding = self.form.examples(self.form.validation_splits[0])
    self._configure(trial, steps)
    datasets = [
      ExampleDataset(
        examples=part,
        features=self.form.features,
        batch_size=trial.batch_size,
        seed=trial.seed,
        shuffle=part is examples,
      )
      for part in (examples, deciding)
    ]
    build = configure.build("TRIAL")
    bare: Experiment = build(
      model=self.form.model,
      train_dataset=datasets[0],
      eval_dataset=datasets[1],
      checkpointer=Checkpointer(
        period=epoch,
        keep=1,
        initial_checkpoint=self._initial,
        fresh_parts=self.form.fresh_parts,
      ),
      model_dir=trial.folder,
      total_steps=steps,
      random_seed=trial.seed,
      eval_period=epoch,
      num_eval_batches=math.ceil(len(deciding) / trial.batch_size),
    )
    predict = self.form.predictor(bare.partitioner)
    scorer = TrialScorer(self.form, predict, trial.folder)
    return dataclasses.replace(bare, scorer=scorer)

  @property
  def _initial(self) -> str | None:
    return None if self.grid.from_scratch else self.grid.pretrained

  def _configure(self, trial: Trial, steps: int) -> None:
    """Sets the macros that methods, rates and optimizers read."""
    depths = set(self.form.model.stacks.values())
    values = {
      DEPTH: max(depths),
      STEPS: steps,
      "LEARNING_RATE": trial.learning_rate,
      "WARMUP_STEPS": min(int(self.grid.warmup_share * steps), steps - 1),
      "BATCH_SIZE": trial.batch_size,
      "RANDOM_SEED": trial.seed,
    }
    configure.parse_text(
      self.config, [f"--gin.{name}={value!r}" for name, value in values.items()]
    )

  def submit(self, trial: Trial) -> list[str]:
    """Predicts for test sets with the best model of a trial.

    Returns:
      The files written; none where the sets are not there.
    """
    splits = [split for split in self.form.test_splits if self._has(split)]
    if not splits:
      return []
    experiment = self.experiment(trial)
    params = self.best_params(trial, experiment)
    predict = self.form.predictor(experiment.partitioner)
    folder = files.path("MODEL_DIR", self.grid.model_dir) / "submission"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for split in splits:
      predictions = predict(params, self.form.examples(split))
      name, text = self.form.submission(split, predictions)
      files.write_text(folder / name, text)
      written.append(str(folder / name))
    return written

  def best_params(self, trial: Trial, experiment: Experiment) -> Params:
    """Parameters of the best evaluation of a trial."""
    abstract = abstract_state(experiment).params
    found = restore_params(f"{trial.folder}/{BEST}", abstract)
    if found is None:
      raise FileNotFoundError(f"{trial.folder}/{BEST} has no checkpoints.")
    return found[0]

  def _has(self, split: str) -> bool:
    """Whether a test set is there."""
    try:
      self.form.examples(split)
    except FileNotFoundError:
      return False
    return True
