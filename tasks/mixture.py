"""A mixture of tasks: one objective on text from several sources."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from raptr_jax.tasks import extras
from raptr_jax.tasks.objectives.objective import Objective
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
  """Tasks and their shares, counted in rows of one length.

  Attributes:
    name: name of the mixture, also in seqio.
    tasks: the parts, which share one objective and one given vocabulary.
    rates: relative share of each part.
  """

  name: str
  tasks: Sequence[TextTask]
  rates: Sequence[float]

  def __post_init__(self):
    if not self.tasks or len(self.rates) != len(self.tasks):
      raise ValueError(
        f"MIXTURE_RATES={tuple(self.rates)} must have one number for each of "
        f"{[task.name for task in self.tasks]}: set --gin.MIXTURE_RATES"
      )
    if min(self.rates) <= 0:
      raise ValueError(
        f"MIXTURE_RATES={tuple(self.rates)} must all be positive: set "
        "--gin.MIXTURE_RATES"
      )
    names = [task.name for task in self.tasks]
    if len(set(names)) < len(names):
      raise ValueError(
        f"the tasks of the mixture {self.name} are named {names}, expected "
        "different names: set task.TextTask.name in each task's gin scope"
      )
    first, *others = self.tasks
    for field in (
      "objective", "vocabulary_path", "vocabulary_size", "extra_ids",
      "lower_case",
    ):  # fmt: skip
      for task in others:
        value, expected = getattr(task, field), getattr(first, field)
        if value != expected:
          raise ValueError(
            f"the mixture {self.name} has {field}={expected!r} in "
            f"{first.name} but {value!r} in {task.name}, expected the same: "
            f"set --gin.task.TextTask.{field}"
          )
    if first.vocabulary_path is None:
      raise ValueError(
        f"VOCABULARY_PATH=None, but the mixture {self.name} needs a given "
        "vocabulary, which all parts share: set --gin.VOCABULARY_PATH"
      )

  @property
  def objective(self) -> Objective:
    """The objective that the parts share."""
    return self.tasks[0].objective

  def vocabulary(self, data_dir: str) -> Vocabulary:
    """The vocabulary that the parts share."""
    return self.tasks[0].vocabulary(data_dir)

  def fitted(self, data_dir: str) -> "Mixture":
    """This mixture of parts that are `fitted`."""
    parts = [task.fitted(data_dir) for task in self.tasks]
    return dataclasses.replace(self, tasks=parts)

  def documents(self, split: str) -> Iterator[str]:
    """Documents of each part in turn, until one part runs out."""
    return itertools.chain.from_iterable(
      zip(*(task.documents(split) for task in self.tasks))
    )

  def shares(self, batch_size: int, multiple: int = 1) -> tuple[int, ...]:
    """Rows of each part in every batch; at least one.

    Shares follow the rates by largest remainder; ties go to the first part.

    Args:
      batch_size: rows in a batch.
      multiple: shares are multiples of this, such as the number of hosts.

    Raises:
      ValueError: `batch_size` is not a multiple of `multiple`, or too small.
    """
    units, rest = divmod(batch_size, multiple)
    if rest or units < len(self.rates):
      raise ValueError(
        f"BATCH_SIZE={batch_size} must be a multiple of {multiple}, and at "
        f"least {multiple * len(self.rates)} for the {len(self.rates)} parts "
        f"of the mixture {self.name}: set --gin.BATCH_SIZE"
      )
    exact = units * np.array(self.rates) / sum(self.rates)
    shares = np.maximum(np.floor(exact), 1).astype(int)
    while shares.sum() < units:
      shares[np.argmax(exact - shares)] += 1
    while shares.sum() > units:  # Small parts were rounded up to 1.
      excess = np.where(shares > 1, shares - exact, -np.inf)
      shares[np.argmax(excess)] -= 1
    return tuple(int(share) * multiple for share in shares)

  def seqio_mixture(self, vocabulary: Vocabulary) -> Any:
    """Registers the parts and the mixture with seqio; replaces earlier ones.

    This is for other programs: seqio draws rows at random by the rates, while
    the batches of `MixtureDataset` have fixed shares.

    Args:
      vocabulary: the parts' vocabulary.

    Returns:
      The seqio.Mixture.
    """
    seqio = extras.require("seqio")
    if self.name in seqio.MixtureRegistry.names():
      seqio.MixtureRegistry.remove(self.name)
    parts = [task.seqio_task(vocabulary).name for task in self.tasks]
    return seqio.MixtureRegistry.add(self.name, list(zip(parts, self.rates)))
