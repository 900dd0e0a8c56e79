"""Searches for settings with which a step fits the memory of its devices.

Each try is compiled, so that what is found does fit: more microbatches first,
then parameters that are split over the devices.
"""

import dataclasses
from collections.abc import Iterator, Mapping

from raptr_jax.contracts import Draws
from raptr_jax.training import setup
from raptr_jax.training.compiled_program import CompiledStep, compile_step
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.partitioning import FULLY_SPLIT, Partitioner

MICROBATCHES = "experiment.Experiment.num_microbatches"
MODEL_SHARDS = "partitioning.Partitioner.model_shards"
RULES = "partitioning.Partitioner.rules"


@dataclasses.dataclass(frozen=True)
class Try:
  """A step with other settings than the run's.

  Attributes:
    bindings: of gin, for those settings: name -> value.
    step: the step, compiled with them.
  """

  bindings: Mapping[str, str]
  step: CompiledStep


def tries(
  experiment: Experiment, draws: Draws, step: CompiledStep, capacity: int
) -> Iterator[Try]:
  """Other settings, compiled one after another; the last one fits, if any.

  Args:
    experiment: a run whose step needs too much memory.
    draws: of this step, in the form that the execution takes.
    step: the step as it is.
    capacity: bytes that a device has.
  """
  for placement, partitioner in _placements(experiment.partitioner):
    try:
      placed = dataclasses.replace(experiment, partitioner=partitioner)
      setup.abstract_state(placed)
    except ValueError:  # Something does not split evenly.
      continue
    if placement:
      step = compile_step(placed, draws)
      yield Try(placement, step)
    for parts, smaller in _in_parts(placed, draws, step, capacity):
      step = smaller
      yield Try({**placement, MICROBATCHES: str(parts)}, step)
    if step.memory.total <= capacity:
      return


def _placements(
  partitioner: Partitioner,
) -> Iterator[tuple[dict[str, str], Partitioner]]:
  """Ways to place parameters, with their bindings; the present one first."""
  yield {}, partitioner
  shards = partitioner.model_shards
  while 1 < partitioner.num_devices >= shards:
    bindings = {RULES: str(FULLY_SPLIT)}
    if shards > partitioner.model_shards:
      bindings[MODEL_SHARDS] = str(shards)
    try:
      split = dataclasses.replace(
        partitioner, rules=FULLY_SPLIT, model_shards=shards
      )
    except ValueError:  # More than a host has.
      return
    if split != partitioner:
      yield bindings, split
    shards *= 2


def _in_parts(
  experiment: Experiment, draws: Draws, step: CompiledStep, capacity: int
) -> Iterator[tuple[int, CompiledStep]]:
  """Numbers of microbatches, and the step with each, until it fits."""
  data_shards = experiment.partitioner.mesh.shape["data"]
  examples = experiment.train_dataset.batch_size // data_shards
  temporary = {experiment.num_microbatches: step.memory.temporary}
  while step.memory.total > capacity:
    room = capacity - (step.memory.total - step.memory.temporary)
    parts = _next_parts(temporary, room)
    if parts is None or examples % parts:
      return
    step = compile_step(
      dataclasses.replace(experiment, num_microbatches=parts), draws
    )
    temporary[parts] = step.memory.temporary
    yield parts, step


def _next_parts(temporary: Mapping[int, int], room: int) -> int | None:
  """The next number of microbatches to try; None if no number can do.

  Args:
    temporary: bytes of temporary memory, by the numbers that were tried.
    room: bytes that there are for it.
  """
  *_, (parts, size) = temporary.items()
  fixed, divided = 0.0, float(parts * size)  # At best, all of it shrinks.
  if len(temporary) > 1:  # So far, size = fixed + divided / parts.
    *_, (parts_before, size_before), _ = temporary.items()
    divided = (size_before - size) / (1 / parts_before - 1 / parts)
    fixed = size - divided / parts
  if fixed >= room:
    return None
  more = 2 * parts
  while more < divided / (room - fixed):
    more *= 2
  return more
