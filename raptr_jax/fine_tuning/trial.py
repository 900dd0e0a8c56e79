"""One fine-tuning run of the grid: its folder, its scorer, its result."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from raptr_jax.contracts import Params
from raptr_jax.fine_tuning.form import Form, Predictor
from raptr_jax.tasks import files
from raptr_jax.tasks.files import AnyPath
from raptr_jax.training.checkpoint import FOLDER, Checkpointer
from raptr_jax.training.state import TrainState

BEST = "best"  # The model of the best evaluation, in a trial's folder.
BEST_FILE = "best.json"
RESULT_FILE = "result.json"


@dataclasses.dataclass(frozen=True)
class Trial:
  """One choice of the grid, with one seed.

  Attributes:
    model_dir: folder of the whole grid.
    learning_rate: the peak.
    batch_size: examples in a step.
    seed: of the head, the order of the examples, and dropout.
  """

  model_dir: str
  learning_rate: float
  batch_size: int
  seed: int

  @property
  def choice(self) -> tuple[float, int]:
    """What the grid is over."""
    return self.learning_rate, self.batch_size

  @property
  def name(self) -> str:
    """For display."""
    return (
      f"learning rate {self.learning_rate:g}, batch {self.batch_size}, seed"
      f" {self.seed}"
    )

  @property
  def folder(self) -> str:
    """Where it is, as a MODEL_DIR."""
    choice = f"lr_{self.learning_rate:g}_batch_{self.batch_size}"
    return f"{self.model_dir}/{choice}/seed_{self.seed}"

  def result(self) -> dict[str, Any] | None:
    """What `finish` has written; None if it has not finished."""
    path = self._path / RESULT_FILE
    if not path.is_file():
      return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found

  def finish(self, baseline: Mapping[str, float]) -> dict[str, Any]:
    """Writes its result, and drops the checkpoints that resume it."""
    result = json.loads((self._path / BEST_FILE).read_text(encoding="utf-8"))
    result |= {
      "learning_rate": self.learning_rate,
      "batch_size": self.batch_size,
      "seed": self.seed,
      "baseline": dict(baseline),
    }
    files.write_json(self._path / RESULT_FILE, result)
    files.remove_folder(self._path / FOLDER)
    return result

  @property
  def _path(self) -> AnyPath:
    return files.path("MODEL_DIR", self.folder)


class TrialScorer:
  """Scores a trial at each evaluation, and keeps what the best one has.

  Implements `experiment.Scorer`. An evaluation is the best if its score on the
  split that decides is the highest so far; of equal ones, the first. It leaves
  the parameters in `best/`, and the predictions on all splits with labels.
  """

  def __init__(self, form: Form, predict: Predictor, folder: str):
    self._form, self._predict, self._folder = form, predict, folder
    self._path = files.path("MODEL_DIR", folder)

  def __call__(self, step: int, params: Params) -> Mapping[str, float]:
    splits = self._form.validation_splits
    predictions = {
      split: self._predict(params, self._form.examples(split))
      for split in splits
    }
    scores = {
      split: dict(self._form.scores(split, predictions[split]))
      for split in splits
    }
    best = self._best()
    if best is None or scores[splits[0]]["score"] > best:
      self._keep(step, params, scores, predictions)
    return {
      f"{split}_{metric}": score
      for split, found in scores.items()
      for metric, score in found.items()
    }

  def _best(self) -> float | None:
    """The best score so far on the split that decides."""
    path = self._path / BEST_FILE
    if not path.is_file():
      return None
    found = json.loads(path.read_text(encoding="utf-8"))
    score: float = found["scores"][self._form.validation_splits[0]]["score"]
    return score

  def _keep(
    self,
    step: int,
    params: Params,
    scores: Mapping[str, Any],
    predictions: Mapping[str, Sequence[Any]],
  ) -> None:
    for split, found in predictions.items():
      lines = self._form.lines(split, found)
      text = "".join(json.dumps(line) + "\n" for line in lines)
      files.write_text(self._path / f"{split}.jsonl", text)
    state = TrainState(jnp.asarray(step), params, ())
    with Checkpointer(keep=1).open(f"{self._folder}/{BEST}") as best:
      best.save(state, step, {})
    # Last, so that what it tells of is there.
    files.write_json(
      self._path / BEST_FILE, {"step": step, "scores": dict(scores)}
    )
