"""Shows what a model has learned: it fills blanks in held-out text."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar, cast

import numpy as np
from jaxtyping import Int

from raptr_jax.contracts import Model, Params
from raptr_jax.inference.decoding import Decoding
from raptr_jax.inference.generate import Generator
from raptr_jax.inference.text_predictor import Spans, TextPredictor
from raptr_jax.models.masked_stack import full_paths
from raptr_jax.tasks.mixture import Mixture
from raptr_jax.tasks.objectives.denoising import hidden_spans
from raptr_jax.tasks.objectives.layouts import Pair
from raptr_jax.tasks.objectives.objective import InfillingObjective
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text.vocabulary import Vocabulary
from raptr_jax.training.partitioning import Partitioner


@dataclasses.dataclass(frozen=True)
class Infill:
  """A text with blanks in brackets.

  Attributes:
    prompt: with numbered blanks.
    model: as the model fills them.
    truth: as they were.
  """

  prompt: str
  model: str
  truth: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Infilling:
  """Has a model fill blanks at the start of held-out documents.

  Implements `experiment.AtEnd`.

  Attributes:
    task: provides held-out documents, and the objective that makes blanks.
    data_dir: folder of all prepared tasks, for the vocabulary.
    num_texts: number of documents.
    num_tokens: most tokens to read of each.
    max_new_tokens: most tokens to write in all blanks of a text.
    seed: seed of the positions of blanks.
    file_name: name of the page.

  Raises:
    ValueError: the objective does not teach a model to fill blanks, or a number is
      too small.
  """

  task: TextTask | Mixture
  data_dir: str
  num_texts: int = 3
  num_tokens: int = 48
  max_new_tokens: int = 32
  seed: int = 0
  file_name: ClassVar[str] = "infills.md"

  def __post_init__(self):
    _ = self._objective
    least = {"num_texts": 1, "num_tokens": 2, "max_new_tokens": 1}
    for name, number in least.items():
      if getattr(self, name) < number:
        raise ValueError(
          f"Infilling.{name} = {getattr(self, name)}, expected at least"
          f" {number}: set --gin.infill.Infilling.{name}."
        )

  def open(self, model: Model) -> None:
    """Checks the model, and reads a held-out document, before a run starts.

    Raises:
      FileNotFoundError: the task's text is missing.
      ValueError: the model cannot write.
    """
    if not isinstance(model, Generator):
      raise ValueError(
        "AT_END includes infill.Infilling, which needs a model that writes, but"
        f" {type(model).__name__} lacks start and extend: set"
        ' --gin.AT_END="()".'
      )
    next(iter(self.task.documents("validation")), None)

  def __call__(
    self, model: Model, params: Params, partitioner: Partitioner
  ) -> str:
    """Fills the blanks with the full model; returns the page."""
    return infills_page(
      self.infills(cast(Generator, model), params, partitioner)
    )

  def infills(
    self, model: Generator, params: Params, partitioner: Partitioner
  ) -> list[Infill]:
    """The blanks of each text, filled by the full model."""
    objective = self._objective
    vocabulary = self.task.vocabulary(self.data_dir)
    devices = partitioner.batch_shards
    predictor = TextPredictor(
      model=model,
      params=params,
      paths=partitioner.put_replicated(full_paths(model.stacks)),
      objective=objective,
      vocabulary=vocabulary,
      partitioner=partitioner,
      batch_size=-(-self.num_texts // devices) * devices,
      max_prompt_tokens=self.num_tokens,
    )
    pairs = list(self._pairs(vocabulary))
    written = predictor.fill(
      [objective.infill_prompt(pair, vocabulary) for pair in pairs],
      Decoding(max_new_tokens=self.max_new_tokens),
    )
    return [
      make_infill(pair, spans, vocabulary)
      for pair, spans in zip(pairs, written)
    ]

  @property
  def _objective(self) -> InfillingObjective:
    objective = self.task.objective
    if not isinstance(objective, InfillingObjective):
      raise ValueError(
        "AT_END includes infill.Infilling, which needs an objective that"
        " teaches a model to fill blanks, such as UL2, but that of"
        f" {self.task.name} is {type(objective).__name__}: set"
        ' --gin.AT_END="()".'
      )
    return objective

  def _pairs(self, vocabulary: Vocabulary) -> Iterator[Pair]:
    """Starts of documents with blanks, and what was in them."""
    rng = np.random.default_rng(self.seed)
    count = 0
    for document in self.task.documents("validation"):
      tokens = vocabulary.encode(document)[: self.num_tokens]
      if len(tokens) < 2:  # Too short for a blank.
        continue
      yield self._objective.infill_pair(tokens, rng, vocabulary)
      count += 1
      if count == self.num_texts:
        return


def make_infill(pair: Pair, written: Spans, vocabulary: Vocabulary) -> Infill:
  """Turns tokens into an `Infill`.

  Args:
    pair: inputs, without a mode, and targets.
    written: what a model wrote for each sentinel.
    vocabulary: the vocabulary of the tokens.
  """
  truth = hidden_spans(
    pair.targets,
    sentinel_ids=vocabulary.sentinel_ids,
    eos_id=vocabulary.eos_id,
  )
  return Infill(
    prompt=_text(pair.inputs, truth, vocabulary, numbered=True),
    model=_text(pair.inputs, written, vocabulary),
    truth=_text(pair.inputs, truth, vocabulary),
  )


def _text(
  inputs: Int[np.ndarray, "..."],
  spans: Spans,
  vocabulary: Vocabulary,
  *,
  numbered: bool = False,
) -> str:
  """Inputs as text, with spans, or just their numbers, in brackets."""
  numbers = {token: i for i, token in enumerate(vocabulary.sentinel_ids, 1)}
  before: list[int] = []
  text = ""
  for token in map(int, inputs):
    if token not in numbers:
      text += _continued(before, [token], vocabulary)
      before.append(token)
      continue
    span = spans.get(token, [])
    hidden = _continued(before, span, vocabulary) or " "
    words = hidden.lstrip()
    # Keep a blank inside a word inside it.
    space = hidden[: len(hidden) - len(words)]
    text += f"{space}[{numbers[token] if numbered else words}]"
  return text


def _continued(
  before: list[int], tokens: list[int], vocabulary: Vocabulary
) -> str:
  """The text that tokens add to others, with the space before a word."""
  return vocabulary.decode(before + tokens)[len(vocabulary.decode(before)) :]


def infills_page(infills: Sequence[Infill]) -> str:
  """The infills as Markdown."""
  parts = ["# Blanks in held-out text, filled by the model"]
  parts += [
    f"- blanks: {infill.prompt}\n- model: {infill.model}\n"
    f"- truth: {infill.truth}"
    for infill in infills
  ]
  return "\n\n".join(parts) + "\n"
