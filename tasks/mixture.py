"""A mixture of tasks: one objective on text from several sources."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

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
  def parts(self) -> Sequence[TextTask]:
    """The tasks, under the name by which a single task has itself."""
    return self.tasks

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
