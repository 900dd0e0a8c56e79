"""A mixture of tasks: the same objective on texts of several sources."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tasks import extras
from tasks.task import Objective, TextTask
from tasks.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
  """Tasks, and how much of each: in rows, whose lengths are all alike.

  Attributes:
    name: name of the mixture with seqio.
    tasks: its parts, with one objective and one given vocabulary.
    rates: share of each in the rows, in proportion.
  """

  name: str
  tasks: Sequence[TextTask]
  rates: Sequence[float]

  def __post_init__(self):
    if not self.tasks or len(self.rates) != len(self.tasks):
      raise ValueError(
        f"MIXTURE_RATES={tuple(self.rates)} must be one number for each of "
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
        f"the tasks of the mixture {self.name} are called {names}: each needs "
        "a name of its own, see --gin.tasks.task.TextTask.name"
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
            f"{first.name} and {value!r} in {task.name}: expected the same, "
            f"see --gin.tasks.task.TextTask.{field}"
          )
    if first.vocabulary_path is None:
      raise ValueError(
        f"VOCABULARY_PATH=None: the parts of the mixture {self.name} cannot "
        "each train a vocabulary: set --gin.VOCABULARY_PATH"
      )

  @property
  def objective(self) -> Objective:
    """What the parts have in common: what is learnt from them."""
    return self.tasks[0].objective

  def vocabulary(self, data_dir: str) -> Vocabulary:
    """The vocabulary of the parts, see `TextTask.vocabulary`."""
    return self.tasks[0].vocabulary(data_dir)

  def documents(self, split: str) -> Iterator[str]:
    """Documents of a split, one of each part in turn, while all have some."""
    return itertools.chain.from_iterable(
      zip(*(task.documents(split) for task in self.tasks))
    )

  def shares(self, batch_size: int, multiple: int = 1) -> tuple[int, ...]:
    """Rows of each part in every batch, at least one.

    The rates' shares by largest remainder; ties go to the first.

    Args:
      batch_size: rows of a batch.
      multiple: each share is a multiple of it, such as the number of hosts.

    Raises:
      ValueError: `batch_size` is no multiple of it, or too small.
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
    while shares.sum() > units:  # Small parts have been given a whole row.
      excess = np.where(shares > 1, shares - exact, -np.inf)
      shares[np.argmax(excess)] -= 1
    return tuple(int(share) * multiple for share in shares)

  def seqio_mixture(self, vocabulary: Vocabulary) -> Any:
    """Registers the parts and the mixture with seqio, and returns it.

    seqio draws rows by the rates, as `TextTask.seqio_task` gives them; it is
    for other programs: batches of fixed shares are `MixtureDataset`'s.
    Registering again replaces the mixture.

    Args:
      vocabulary: that of the parts.
    """
    seqio = extras.require("seqio")
    if self.name in seqio.MixtureRegistry.names():
      seqio.MixtureRegistry.remove(self.name)
    parts = [task.seqio_task(vocabulary).name for task in self.tasks]
    return seqio.MixtureRegistry.add(self.name, list(zip(parts, self.rates)))
