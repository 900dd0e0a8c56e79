"""Searches for settings that suit the memory of the devices.

Each try is compiled, so that what is found does fit. A step that needs too much
keeps less for its backward pass, then runs in more microbatches, then splits
its parameters over the devices. One with room to spare may keep more.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from raptr_jax.contracts import Draws
from raptr_jax.models.compute import ComputeConfig
from raptr_jax.models.remat import POLICIES
from raptr_jax.training import setup
from raptr_jax.training.compiled_program import CompiledStep, compile_step
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.partitioning import Partitioner

MICROBATCHES = "NUM_MICROBATCHES"
FSDP, TENSOR = "FSDP", "TENSOR"
REMAT = "REMAT"
REMATS = tuple(POLICIES)
LEAST = REMATS[0]


@dataclasses.dataclass(frozen=True)
class Try:
  """A step with other settings than the run's.

  Attributes:
    bindings: of gin, for those settings: name -> value.
    experiment: the run with them.
    step: its step, compiled.
  """

  bindings: Mapping[str, str]
  experiment: Experiment
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
  remat: dict[str, str] = {}
  if remat_of(experiment) not in (None, LEAST):
    experiment, remat = with_remat(experiment, LEAST), {REMAT: f"'{LEAST}'"}
    step = compile_step(experiment, draws)
    yield Try(remat, experiment, step)
  for placement, partitioner in _placements(experiment.partitioner):
    if step.memory.total <= capacity:
      return
    try:
      placed = dataclasses.replace(experiment, partitioner=partitioner)
      setup.abstract_state(placed)
    except ValueError:  # Something does not split evenly.
      continue
    placement = {**remat, **placement}
    if partitioner != experiment.partitioner:
      step = compile_step(placed, draws)
      yield Try(placement, placed, step)
    found = _in_parts(placed, draws, step, capacity)
    for parts, divided, step in found:
      yield Try({**placement, MICROBATCHES: str(parts)}, divided, step)


def keeping_more(
  experiment: Experiment, draws: Draws, capacity: int
) -> Iterator[Try]:
  """Steps that compute less again, while they fit; each takes more memory."""
  remat = remat_of(experiment)
  if remat is None:
    return
  for more in REMATS[REMATS.index(remat) + 1 :]:
    changed = with_remat(experiment, more)
    step = compile_step(changed, draws)
    yield Try({REMAT: f"'{more}'"}, changed, step)
    if step.memory.total > capacity:
      return


def remat_of(experiment: Experiment) -> str | None:
  """How a run's model rematerialises; None if it is not one of ours."""
  config = getattr(experiment.model, "config", None)
  return config.remat if isinstance(config, ComputeConfig) else None


def with_remat(experiment: Experiment, remat: str) -> Experiment:
  """The same run with another of `remat.POLICIES`."""
  model: Any = experiment.model
  config = dataclasses.replace(model.config, remat=remat)
  model = dataclasses.replace(model, config=config)
  return dataclasses.replace(experiment, model=model)


def _placements(
  partitioner: Partitioner,
) -> Iterator[tuple[dict[str, str], Partitioner]]:
  """Ways to place parameters, with their bindings; the present one first."""
  yield {}, partitioner
  tensor = partitioner.tensor
  while 1 < partitioner.num_devices >= tensor:
    fsdp = partitioner.num_devices // tensor
    bindings = {FSDP: str(fsdp)}
    if tensor > partitioner.tensor:
      bindings[TENSOR] = str(tensor)
    try:
      split = dataclasses.replace(partitioner, fsdp=fsdp, tensor=tensor)
    except ValueError:  # More than a host has.
      return
    if split != partitioner:
      yield bindings, split
    tensor *= 2


def _in_parts(
  experiment: Experiment, draws: Draws, step: CompiledStep, capacity: int
) -> Iterator[tuple[int, Experiment, CompiledStep]]:
  """Numbers of microbatches, and the run with each, until its step fits."""
  shards = experiment.partitioner.batch_shards
  examples = experiment.train_dataset.batch_size // shards
  temporary = {experiment.num_microbatches: step.memory.temporary}
  while step.memory.total > capacity:
    room = capacity - (step.memory.total - step.memory.temporary)
    parts = _next_parts(temporary, room)
    if parts is None or examples % parts:
      return
    divided = dataclasses.replace(experiment, num_microbatches=parts)
    step = compile_step(divided, draws)
    temporary[parts] = step.memory.temporary
    yield parts, divided, step


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
