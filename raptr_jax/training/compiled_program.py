"""A compiled training step: what it needs and does, read off the program.

Nothing runs: the program may be one for devices that are not here.
"""

import dataclasses
import math
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.stages import Compiled
from jaxtyping import PyTree

from raptr_jax.contracts import Draws
from raptr_jax.training import hlo, setup, targets
from raptr_jax.training.compiled_steps import abstract_copies
from raptr_jax.training.experiment import Experiment

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
# Names of XLA for TPUs: a reduce-scatter is an all-reduce in such a fusion.
REDUCE_SCATTER_FUSION = "all-reduce-scatter"
MEANWHILE_FUSION = "async_collective_fusion"
ENDS_TRANSFER = '"AsyncCollectiveDone"'
# Custom calls of cuDNN's attention, and of kernels written in Pallas.
KERNELS = re.compile(r"__cudnn\$fmha|tpu_custom_call|triton|mosaic")
# What XLA says when a program needs more memory than a TPU has.
NEEDED = re.compile(r"([\d.]+)([KMGT])\)? (?:exceeds|of) ")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on each device.

  Attributes:
    params: the parameters.
    opt_state: the optimizer's state.
    batch: the batch.
    temporary: activations, gradients and all else at its peak, without what
      takes the place of the old state.
  """

  params: int
  opt_state: int
  batch: int
  temporary: int

  @property
  def total(self) -> int:
    return self.params + self.opt_state + self.batch + self.temporary


@dataclasses.dataclass(frozen=True)
class Collective:
  """A transfer between devices.

  Attributes:
    kind: one of `COLLECTIVES`.
    shape: of the whole arrays on a device: those that are gathered, reduced or
      exchanged, or that are scattered.
    place: where in the program it is.
    source: where it comes from in the traced function.
  """

  kind: str
  shape: str
  place: hlo.Place
  source: str

  @property
  def num_bytes(self) -> int:
    return hlo.num_bytes(self.shape)


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """A compiled step, or what is known of one that the compiler refused.

  Attributes:
    memory: on each device.
    seconds: that tracing and compiling took.
    program: what was compiled; None if it needs too much memory for the
      compiler to finish.
  """

  memory: Memory
  seconds: float
  program: hlo.Program | None


def compile_step(experiment: Experiment, draws: Draws) -> CompiledStep:
  """Compiles the step of a run for the devices of its partitioner.

  Args:
    experiment: the run.
    draws: those of a step, in the form that the execution takes.
  """
  began = time.perf_counter()
  state = setup.abstract_state(experiment)
  batch = setup.abstract_batch(experiment)
  placed = abstract_copies(draws, experiment.partitioner.replicated)
  lowered = setup.jitted_step(experiment, state).lower(state, batch, placed)
  needs = Memory(
    params=bytes_on_a_device(state.params),
    opt_state=bytes_on_a_device(state.opt_state),
    batch=bytes_on_a_device((batch, placed)),
    temporary=0,
  )
  device = experiment.partitioner.mesh.devices.flat[0]
  try:
    compiled = lowered.compile(targets.compiler_options(device))
  except jax.errors.JaxRuntimeError as error:
    needed = NEEDED.search(str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or not needed:
      raise
    total = int(float(needed.group(1)) * UNITS[needed.group(2)])
    temporary = total - needs.total
    program = None
  else:
    temporary = _temporary(compiled)
    program = hlo.parse(compiled.as_text() or "")
  return CompiledStep(
    memory=dataclasses.replace(needs, temporary=temporary),
    seconds=time.perf_counter() - began,
    program=program,
  )


def bytes_on_a_device(tree: PyTree) -> int:
  """Bytes that arrays of these shapes and placements take on each device."""
  return sum(
    x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
    for x in jax.tree.leaves(tree)
  )


def _temporary(compiled: Compiled) -> int:
  """Bytes besides the arguments, and besides results in their place."""
  memory: Any = compiled.memory_analysis()
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  temporary: int = memory.temp_size_in_bytes + results
  return temporary


def collectives(program: hlo.Program) -> Iterator[Collective]:
  """The transfers between devices, each once for each place that calls it."""
  for instruction, place in program.executed():
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES or _continues(program, place):
      continue
    if place.computation.startswith(REDUCE_SCATTER_FUSION):
      kind = "reduce-scatter"
    shape = _transferred(program, instruction, place)
    source = instruction.attribute(r'op_name="([^"]*)"') or ""
    yield Collective(kind, shape, place, source)


def _continues(program: hlo.Program, place: hlo.Place) -> bool:
  """Whether a collective in this place is one that began in another.

  XLA for TPUs spreads a transfer over fusions, and repeats it in each: the one
  that starts it, those that compute meanwhile, and the one that ends it.
  """
  if place.computation.startswith(MEANWHILE_FUSION):
    return True
  instructions = program.computations[place.computation].values()
  return place.is_fused and any(
    ENDS_TRANSFER in instruction.attributes for instruction in instructions
  )


def _transferred(
  program: hlo.Program, instruction: hlo.Instruction, place: hlo.Place
) -> str:
  """The shape of the whole arrays of a collective."""
  if instruction.opcode == "reduce-scatter":
    instructions = program.computations[place.computation]
    operands = (instructions[name].shape for name in instruction.operands)
    return f"({', '.join(operands)})"
  if instruction.opcode in ("all-reduce-start", *COLLECTIVES):
    return instruction.shape
  # An asynchronous one gives its arguments, then its results.
  return max(hlo.parts(instruction.shape)[:2], key=hlo.num_bytes)


def kernels(program: hlo.Program) -> Mapping[str, int]:
  """How often a step calls each kernel of cuDNN's attention and of Pallas."""
  calls: dict[str, int] = {}
  for instruction, place in program.executed():
    target = instruction.attribute(r'custom_call_target="([^"]*)"')
    if target and KERNELS.search(target):
      name = target
      if not target.startswith("__cudnn"):
        name = re.sub(r"\.\d+$", "", instruction.name)
      calls[name] = calls.get(name, 0) + place.times
  return calls
