"""A trained run, loaded into Python to write, fill masks and score text."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, overload

import jax
import numpy as np
from jaxtyping import Float

from raptr_jax.contracts import Batch, LayerPath, Model, Params
from raptr_jax.inference.decoding import Decoding
from raptr_jax.inference.generate import Generator
from raptr_jax.inference.masked_words import fill_masks
from raptr_jax.inference.paths import Layers, choose_paths
from raptr_jax.inference.run_config import configured_run
from raptr_jax.inference.text_losses import (
  TextCorruption,
  text_list,
  text_losses,
)
from raptr_jax.inference.text_predictor import TextPredictor
from raptr_jax.inference.trained_params import trained_params
from raptr_jax.models.bert import BertMaskedLM
from raptr_jax.tasks.mixture import Mixture
from raptr_jax.tasks.objectives.objective import GenerativeObjective
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text.vocabulary import Vocabulary
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.plan import Plan, make_plan

BATCH_SIZE = 8  # Texts at once, or the next multiple of the devices.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Run:
  """A run's model with its trained parameters; `load` makes one.

  All methods take `layers`, the path that runs: see `path`. Each path length
  compiles programs of its own when it is first used.

  Attributes:
    experiment: the parts of the run, such as its datasets.
    task: what it was trained on.
    feature_lengths: lengths of the features of a batch.
    vocabulary: turns text into tokens and back.
    params: parameters without boxes.
    step: number of steps after which they were saved.
    config: values of the run's macros by name, such as TRAIN_STEPS. References
      are kept as text: "@optim.adamw()". Empty for a run without config.gin.
  """

  experiment: Experiment
  task: TextTask | Mixture
  feature_lengths: Mapping[str, int]
  vocabulary: Vocabulary
  params: Params
  step: int
  config: Mapping[str, Any]

  @classmethod
  def restore(
    cls,
    experiment: Experiment,
    *,
    task: TextTask | Mixture,
    feature_lengths: Mapping[str, int],
    data_dir: str,
    step: int | None = None,
    config: Mapping[str, Any] | None = None,
  ) -> "Run":
    """A run that was built in Python; the arguments are those that it had.

    Raises:
      FileNotFoundError: the vocabulary or the checkpoint does not exist.
      ValueError: the model has not grown to all its layers.
    """
    vocabulary = task.vocabulary(data_dir)
    params, step = trained_params(experiment, step)
    return cls(
      experiment=experiment,
      task=task,
      feature_lengths=feature_lengths,
      vocabulary=vocabulary,
      params=params,
      step=step,
      config=config or {},
    )

  def __repr__(self) -> str:
    layers = sum(self.model.stacks.values())
    size = sum(x.size for x in jax.tree.leaves(self.params))
    return (
      f"Run({self.experiment.model_dir!r}, {type(self.model).__name__},"
      f" {layers} layers, {size:,} parameters, step {self.step})"
    )

  @property
  def model(self) -> Model:
    """The model; its methods take `params`."""
    return self.experiment.model

  @functools.cached_property
  def plan(self) -> Plan:
    """What the run did in each step: its draws, stages and FLOPs."""
    return make_plan(self.experiment)

  def path(self, layers: Layers = None) -> dict[str, LayerPath]:
    """The path of each stack, as the model's methods take it.

    Args:
      layers: for all stacks, or a mapping by stack: a number of layers, chosen
        at even distances from the first to the last; their indices in ascending
        order; a draw; or None for all layers. See `paths.choose_paths`.

    Raises:
      TypeError: it is none of these.
      ValueError: a stack does not exist, or lacks a layer.
    """
    return choose_paths(self.model.stacks, layers)

  def loss(
    self,
    texts: str | Sequence[str],
    layers: Layers = None,
    *,
    repeats: int = 4,
    seed: int = 0,
  ) -> float:
    """Mean loss on texts, in nats per target token.

    The objective hides tokens as in training, the same ones whenever the text
    and the seed are the same; see `text_losses.TextCorruption`.

    Args:
      texts: one text, or several.
      layers: see `path`.
      repeats: how often each text is corrupted; more give a steadier mean.
      seed: of the corruption.

    Raises:
      TypeError: `texts` is no text and no sequence of texts.
      ValueError: there is no target, since all texts are too short.
    """
    loss, weight = self._text_losses(texts, layers, repeats, seed)
    if not weight.size:
      raise ValueError("texts is empty, expected at least one text.")
    if not weight.sum():
      raise ValueError(
        "The texts have no token to predict, expected longer ones or more"
        f" repeats than {repeats}."
      )
    return float(loss.sum() / weight.sum())

  def losses(
    self,
    texts: Sequence[str],
    layers: Layers = None,
    *,
    repeats: int = 4,
    seed: int = 0,
  ) -> Float[np.ndarray, "N"]:
    """`loss` of each text by itself; nan for one without a target."""
    loss, weight = self._text_losses(texts, layers, repeats, seed)
    return np.where(weight > 0, loss / np.maximum(weight, 1), np.nan)

  @overload
  def write(
    self,
    prompt: str,
    layers: Layers = None,
    *,
    max_new_tokens: int = 64,
    seed: int = 0,
    **decoding: Any,
  ) -> str: ...

  @overload
  def write(
    self,
    prompt: Sequence[str],
    layers: Layers = None,
    *,
    max_new_tokens: int = 64,
    seed: int = 0,
    **decoding: Any,
  ) -> list[str]: ...

  def write(
    self,
    prompt: str | Sequence[str],
    layers: Layers = None,
    *,
    max_new_tokens: int = 64,
    seed: int = 0,
    **decoding: Any,
  ) -> str | list[str]:
    """Continues a prompt, or each of several, until the model ends the text.

    Args:
      prompt: of a long one, only the end is read: as many tokens as the longest
        feature of the run's batches has.
      layers: see `path`.
      max_new_tokens: most tokens to write.
      seed: of the tokens that are drawn; does nothing at temperature 0.
      **decoding: further fields of `Decoding`, such as temperature and top_p;
        without them, the most likely token is taken.

    Raises:
      TypeError: `prompt` is no text and no sequence of texts.
      ValueError: the model does not write, or a field is out of range.
    """
    prompts = text_list("prompt", prompt)
    chosen = Decoding(max_new_tokens=max_new_tokens, **decoding)
    texts = self.predictor(layers).write(prompts, chosen, seed=seed)
    return texts[0] if isinstance(prompt, str) else texts

  def fill(
    self, text: str, layers: Layers = None, *, top: int = 5
  ) -> list[list[tuple[str, float]]]:
    """What BERT expects in place of each [MASK] of a text.

    Args:
      text: with at least one "[MASK]", which stands for one token.
      layers: see `path`.
      top: number of tokens to list.

    Returns:
      For each [MASK], the likeliest tokens and their probabilities; "▁" is the
      start of a word that further tokens spell.

    Raises:
      ValueError: the model is no BERT, or the text has no [MASK].
    """
    return fill_masks(
      self.model,
      self.params,
      text,
      self.path(layers),
      objective=self.task.objective,
      vocabulary=self.vocabulary,
      partitioner=self.experiment.partitioner,
      length=max(self.feature_lengths.values()),
      top=top,
    )

  @functools.cached_property
  def _score(self) -> Any:
    return self.experiment.partitioner.jit(self.model.score_batch)

  def _text_losses(
    self, texts: str | Sequence[str], layers: Layers, repeats: int, seed: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the loss of each text, and of its targets."""
    partitioner = self.experiment.partitioner
    paths = partitioner.put_replicated(self.path(layers))

    def score(batch: Batch) -> np.ndarray:
      placed = partitioner.put_split(batch)
      return np.asarray(self._score(self.params, placed, paths))

    corruption = TextCorruption(
      objective=self.task.objective,
      vocabulary=self.vocabulary,
      feature_lengths=self.feature_lengths,
      repeats=repeats,
      seed=seed,
    )
    return text_losses(
      text_list("texts", texts),
      corruption,
      score,
      batch_size=self._batch_size,
    )

  @property
  def _batch_size(self) -> int:
    devices = self.experiment.partitioner.batch_shards
    return -(-BATCH_SIZE // devices) * devices

  def predictor(
    self, layers: Layers = None, *, batch_size: int | None = None
  ) -> TextPredictor:
    """What scores and writes continuations of many texts.

    Raises:
      ValueError: the model does not write, or the batch does not split evenly.
    """
    model, objective = self.model, self.task.objective
    if isinstance(model, BertMaskedLM):
      raise ValueError("BERT fills masks; it does not write: call fill(text).")
    if not isinstance(model, Generator) or not isinstance(
      objective, GenerativeObjective
    ):
      raise ValueError(
        f"{type(model).__name__}, trained with {type(objective).__name__}, does"
        " not write: expected start and extend, and an objective such as UL2."
      )
    partitioner = self.experiment.partitioner
    return TextPredictor(
      model=model,
      params=self.params,
      paths=partitioner.put_replicated(self.path(layers)),
      objective=objective,
      vocabulary=self.vocabulary,
      partitioner=partitioner,
      batch_size=batch_size or self._batch_size,
      max_prompt_tokens=max(self.feature_lengths.values()),
    )


def load(
  folder: str | os.PathLike[str],
  *,
  step: int | None = None,
  data_dir: str | os.PathLike[str] | None = None,
) -> Run:
  """The run in a folder, from any working directory.

    run = raptr_jax.load("runs/decoder")
    run.write("In the beginning", layers=4)

  Any number of runs can be loaded into one process. Gin's configuration in it
  becomes that of the last one, which has no effect on the others.

  Args:
    folder: the MODEL_DIR of a trained run, here or at an address.
    step: of the checkpoint; None for the latest.
    data_dir: folder of all prepared tasks, for the vocabulary. None for the
      run's own DATA_DIR; a relative one is looked for where the run was
      started, as its MODEL_DIR shows, and in the current folder.

  Raises:
    ConfigurationError: the run's config.gin cannot be built any more.
    FileNotFoundError: there is no such run, checkpoint or vocabulary.
    ValueError: the model has not grown to all its layers, or the run was built
      in Python: see `Run.restore`.
  """
  config = configured_run(folder, data_dir)
  return Run.restore(
    config.experiment,
    task=config.task,
    feature_lengths=config.feature_lengths,
    data_dir=str(config.data_dir),
    step=step,
    config=config.macros,
  )
