"""A model's loss on one's own texts, corrupted as in training."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from raptr_jax.contracts import Batch
from raptr_jax.tasks.objectives.objective import Objective
from raptr_jax.tasks.objectives.packing import pack
from raptr_jax.tasks.text.vocabulary import Vocabulary

Example: TypeAlias = Mapping[str, np.ndarray]
Score: TypeAlias = Callable[[Batch], Float[np.ndarray, "B"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextCorruption:
  """Turns texts into examples, always the same ones.

  A text is cut into pieces as long as the rows of training. Unlike there, no
  two pieces share a row. What is hidden is a pure function of the text and the
  seed: losses of two models, or of two paths, are compared on the same targets,
  and a text's loss does not depend on other texts.

  Attributes:
    objective: what hides tokens.
    vocabulary: the model's vocabulary.
    feature_lengths: lengths of the features of a batch.
    repeats: examples that are made of each piece.
    seed: of what is hidden.
  """

  objective: Objective
  vocabulary: Vocabulary
  feature_lengths: Mapping[str, int]
  repeats: int
  seed: int

  def examples(self, text: str) -> Iterator[Example]:
    """The examples of a text; none for an empty one."""
    objective, vocabulary = self.objective, self.vocabulary
    corrupt = objective.corruption(vocabulary, self.feature_lengths)
    rows = pack(
      [vocabulary.encode(text)],
      framing=objective.framing(vocabulary),
      length=objective.row_length(self.feature_lengths),
    )
    for number, row in enumerate(rows):
      for repeat in range(self.repeats):
        rng = np.random.default_rng([self.seed, number, repeat])
        yield corrupt(row, rng)


def text_list(name: str, given: str | Sequence[str]) -> list[str]:
  """One text, or each of several, as a list.

  Raises:
    TypeError: it is neither; the message has the argument's name.
  """
  if isinstance(given, str):
    return [given]
  texts = list(given) if isinstance(given, Iterable) else [given]
  if not all(isinstance(text, str) for text in texts):
    raise TypeError(f"{name} = {given!r}, expected a text, or a list of texts.")
  return texts


def stack_rows(rows: Sequence[Example], batch_size: int) -> Batch:
  """A batch of these examples, at least one; repeats the last to fill it up."""
  full = [*rows, *[rows[-1]] * (batch_size - len(rows))]
  return {name: np.stack([row[name] for row in full]) for name in full[0]}


def text_losses(
  texts: Sequence[str],
  corruption: TextCorruption,
  score: Score,
  *,
  batch_size: int,
) -> tuple[Float[np.ndarray, "N"], Float[np.ndarray, "N"]]:
  """Sums of each text's loss, in nats, and its number of targets.

  Args:
    texts: any number of texts.
    corruption: makes examples of them.
    score: log-likelihood of the targets of each example of a batch.
    batch_size: B; the last batch is filled up.
  """
  loss, weight = np.zeros((2, len(texts)))
  examples = (
    (number, example)
    for number, text in enumerate(texts)
    for example in corruption.examples(text)
  )
  while part := list(itertools.islice(examples, batch_size)):
    numbers = [number for number, _ in part]
    batch = stack_rows([example for _, example in part], batch_size)
    scores = np.asarray(score(batch), np.float64)[: len(part)]
    weights = batch["target_weights"].sum(-1)[: len(part)]
    np.add.at(loss, numbers, -scores)
    np.add.at(weight, numbers, weights)
  return loss, weight
