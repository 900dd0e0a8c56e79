"""Shows what a model has learnt: blanks in held-out text, filled by it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from raptr_jax.contracts import Generator, LayerPath, Params
from raptr_jax.generate import Decoding
from raptr_jax.partitioning import Partitioner
from raptr_jax.text_model import Spans, TextModel
from tasks.denoising import corrupt, hidden_spans
from tasks.forms import Pair
from tasks.mixture import Mixture
from tasks.task import TextTask
from tasks.ul2 import UL2
from tasks.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Infill:
  """A text with blanks, and what two authors have put there, in brackets.

  Attributes:
    prompt: the text, with the blanks' numbers.
    model: as the model fills it.
    truth: as it was.
  """

  prompt: str
  model: str
  truth: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Infilling:
  """Has a model fill blanks in the beginnings of held-out documents.

  Blanks are those of the first denoiser of the task's objective.

  Attributes:
    task: whose held-out documents are read.
    data_dir: folder of all prepared tasks, which has the vocabulary.
    num_texts: how many.
    num_tokens: of each, at most.
    max_new_tokens: for all blanks of a text.
    seed: of the places of the blanks.

  Raises:
    ValueError: if the objective is none that a model learns to fill blanks by,
      or a number is too small.
  """

  task: TextTask | Mixture
  data_dir: str
  num_texts: int = 3
  num_tokens: int = 48
  max_new_tokens: int = 32
  seed: int = 0

  def __post_init__(self):
    _ = self._objective
    least = {"num_texts": 1, "num_tokens": 2, "max_new_tokens": 1}
    for name, number in least.items():
      if getattr(self, name) < number:
        raise ValueError(
          f"Infilling.{name} = {getattr(self, name)}, expected at least"
          f" {number}: set --gin.infill.Infilling.{name}."
        )

  def open(self) -> None:
    """Looks for a held-out document, which a run will need at its end.

    Raises:
      FileNotFoundError: if the task's text is not there.
    """
    next(iter(self.task.documents("validation")), None)

  @property
  def _objective(self) -> UL2:
    objective = self.task.objective
    if not isinstance(objective, UL2):
      raise ValueError(
        f"INFILLING fills blanks of tasks.ul2.UL2, but the objective of"
        f" {self.task.name} is {type(objective).__name__}: set INFILLING ="
        " None."
      )
    return objective

  def run(
    self,
    *,
    model: Generator,
    params: Params,
    paths: Mapping[str, LayerPath],
    partitioner: Partitioner,
  ) -> list[Infill]:
    """Fills the blanks, with a path of the model's layers."""
    objective = self._objective
    vocabulary = self.task.vocabulary(self.data_dir)
    devices = partitioner.mesh.shape["data"]
    writer = TextModel(
      model=model,
      params=params,
      paths=paths,
      objective=objective,
      vocabulary=vocabulary,
      partitioner=partitioner,
      batch_size=-(-self.num_texts // devices) * devices,
      max_prompt_tokens=self.num_tokens,
    )
    pairs = list(self._pairs(vocabulary))
    mode = objective.mode_ids(objective.denoisers[0], vocabulary)
    written = writer.fill(
      [np.array([*mode, *pair.inputs], np.int32) for pair in pairs],
      Decoding(max_new_tokens=self.max_new_tokens),
    )
    return [
      make_infill(pair, spans, vocabulary)
      for pair, spans in zip(pairs, written)
    ]

  def _pairs(self, vocabulary: Vocabulary) -> Iterator[Pair]:
    """Beginnings of documents with blanks, and what was there."""
    rng = np.random.default_rng(self.seed)
    denoiser, count = self._objective.denoisers[0], 0
    for document in self.task.documents("validation"):
      tokens = vocabulary.encode(document)[: self.num_tokens]
      if len(tokens) < 2:  # Too short for a blank.
        continue
      hidden, spans = denoiser.sizes(np.array([len(tokens)]), rng.random(2))
      yield Pair(
        *corrupt(
          np.array(tokens, np.int32),
          rng,
          num_hidden=int(hidden[0]),
          num_spans=int(spans[0]),
          sentinel_ids=np.array(vocabulary.sentinel_ids),
          eos_id=vocabulary.eos_id,
        )
      )
      count += 1
      if count == self.num_texts:
        return


def make_infill(pair: Pair, written: Spans, vocabulary: Vocabulary) -> Infill:
  """What is shown of a text.

  Args:
    pair: its inputs, without a mode, and its targets.
    written: what a model has written for each sentinel.
    vocabulary: of all tokens.
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
  """Inputs as text, with spans in brackets, or their numbers instead."""
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
    # A blank within a word stays within it.
    space = hidden[: len(hidden) - len(words)]
    text += f"{space}[{numbers[token] if numbered else words}]"
  return text


def _continued(
  before: list[int], tokens: list[int], vocabulary: Vocabulary
) -> str:
  """The text of tokens that follow others: with the space before a word."""
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
