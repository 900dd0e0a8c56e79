"""A fine-tuned model, ready to be asked."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from raptr_jax.contracts import Params
from raptr_jax.fine_tuning.form import Form, Predictor
from raptr_jax.fine_tuning.forms import form_of
from raptr_jax.fine_tuning.page import RESULTS_FILE
from raptr_jax.inference.run_config import configured_run
from raptr_jax.training.checkpoint import restore_params
from raptr_jax.training.partitioning import Partitioner
from raptr_jax.training.setup import abstract_params


class FineTuned:
  """The best model of a fine-tuning.

    judge = load_fine_tuned("runs/mine_cola")
    judge.predict("They was happy.")  # "0": not acceptable.

  Attributes:
    task: name of the task.
    params: of the model.
  """

  def __init__(self, form: Form, params: Params, predictor: Predictor):
    self._form, self.params, self._predictor = form, params, predictor
    self.task = form.name

  def __repr__(self) -> str:
    return f"FineTuned({self.task!r}, {type(self._form.model).__name__})"

  def predict(self, *texts: str) -> str:
    """The prediction for one example.

    Args:
      *texts: those of the task: a sentence; two; a question and a passage; or
        the prompt of a task by prompt.

    Returns:
      The name of a class, a number or an answer, as the task's files have it;
      of a model that writes, its choice in words.

    Raises:
      ValueError: there are too few texts, or too many.
    """
    return self.predict_all([texts])[0]

  def predict_all(self, examples: Sequence[Sequence[str]]) -> list[str]:
    """`predict` for each of several examples, which share batches."""
    read = [
      x
      for number, texts in enumerate(examples)
      for x in self._form.read(texts, number)
    ]
    return self._form.shown(read, self._predictor(self.params, read))


def load_fine_tuned(folder: str | os.PathLike[str]) -> FineTuned:
  """The best model of a fine-tuning, from the current folder's point of view.

  Args:
    folder: its MODEL_DIR; what it was fine-tuned from still has to be where it
      was, for the model's sizes and its vocabulary.

  Raises:
    FileNotFoundError: it has not finished, or the pretrained run is gone.
  """
  path = Path(folder) / RESULTS_FILE
  if not path.is_file():
    raise FileNotFoundError(
      f"{path} does not exist: expected the MODEL_DIR of a fine-tuning that has"
      " finished."
    )
  results = json.loads(path.read_text(encoding="utf-8"))
  run = configured_run(results["model_of"])
  form = form_of(
    results["task"],
    model=run.experiment.model,
    text_task=run.task,
    vocabulary=run.task.vocabulary(str(run.data_dir)),
    length=results["length"],
    folder=results["folder"],
    tfds_data_dir=results["tfds_data_dir"],
    num_examples=None,
  )
  partitioner = Partitioner()
  shapes = abstract_params(form.model, partitioner)
  found = restore_params(results["best_model"], shapes)
  if found is None:
    raise FileNotFoundError(f"{results['best_model']} has no checkpoints.")
  return FineTuned(form, found[0], form.predictor(partitioner))
