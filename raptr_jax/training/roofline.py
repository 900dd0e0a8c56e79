"""Estimates the time of a step: no less than its products and transfers take.

The longer of two times that assume a device at its peak: model FLOPs over the
FLOP/s, and bytes moved to and from the main memory over its bandwidth. Real
steps take longer, since neither peak is reached and the two overlap only
partly. Transfers between devices are left out.
"""

import dataclasses
from collections.abc import Mapping

from raptr_jax.models.flops import PEAK_FLOPS
from raptr_jax.training import hlo
from raptr_jax.training.targets import CHIPS

# They move nothing: names for results, or calls whose instructions count.
FREE = {
  "after-all",
  "bitcast",
  "call",
  "conditional",
  "constant",
  "get-tuple-element",
  "parameter",
  "tuple",
  "while",
}
SLICES = ("dynamic-slice", "gather", "slice")


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of a step at the peaks of its devices.

  Attributes:
    arithmetic: of the model's FLOPs; recomputation does not count.
    memory: of the bytes that a device moves.
    num_bytes: those bytes.
  """

  arithmetic: float
  memory: float
  num_bytes: int

  @property
  def seconds(self) -> float:
    return max(self.arithmetic, self.memory)


def roofline(
  program: hlo.Program, *, flops: float, kind: str, num_devices: int
) -> Roofline | None:
  """The estimate for a compiled step; None for an unknown kind of device.

  Args:
    program: the step.
    flops: of the model, on the global batch.
    kind: of the devices, by JAX's name.
    num_devices: how many share the batch and the model.
  """
  if kind not in PEAK_FLOPS or kind not in CHIPS:
    return None
  moved = memory_traffic(program)
  return Roofline(
    arithmetic=flops / num_devices / PEAK_FLOPS[kind],
    memory=moved / CHIPS[kind].bandwidth,
    num_bytes=moved,
  )


def memory_traffic(program: hlo.Program) -> int:
  """Bytes that a device reads from its main memory, and writes to it.

  Each instruction reads its operands and writes its result; inner results of a
  fusion stay in registers. Of an array that is only sliced, or updated in
  place, the slices count. Whatever is in another memory, does not.
  """
  return sum(
    place.times * _moved(program, place.computation, instruction)
    for instruction, place in program.executed()
    if not place.is_fused
  )


def _moved(
  program: hlo.Program, computation: str, instruction: hlo.Instruction
) -> int:
  opcode = instruction.opcode
  if opcode in FREE or opcode.endswith("-done"):
    return 0
  if opcode.endswith("-start"):  # Its result names what it reads and writes.
    return _size(instruction.shape)
  if opcode == "fusion":
    (fused,) = instruction.called
    return _moved_by_fusion(program.computations[fused])
  instructions = program.computations[computation]
  operands = [instructions[name] for name in instruction.operands]
  if opcode in SLICES:
    return 2 * _size(instruction.shape)
  if opcode == "dynamic-update-slice":
    return 2 * _size(operands[1].shape)
  return _size(instruction.shape) + sum(_size(o.shape) for o in operands)


def _moved_by_fusion(fused: Mapping[str, hlo.Instruction]) -> int:
  """What a fusion reads through its parameters, and writes with its root."""
  read = 0
  for name, instruction in fused.items():
    if instruction.opcode != "parameter":
      continue
    users = [i for i in fused.values() if name in i.operands]
    if all(_takes_a_part(user, name) for user in users):
      slices = (u for u in users if u.opcode in SLICES)
      read += sum(_size(user.shape) for user in slices)
    else:
      read += _size(instruction.shape)
  (root,) = (i for i in fused.values() if i.is_root)
  results = [root]
  if root.opcode == "tuple":
    results = [fused[name] for name in root.operands]
  written = 0
  for result in results:
    if result.opcode == "dynamic-update-slice":
      result = fused[result.operands[1]]
    written += _size(result.shape)
  return read + written


def _takes_a_part(user: hlo.Instruction, name: str) -> bool:
  """Whether an instruction slices an array, or updates a slice of it."""
  parts = (*SLICES, "dynamic-update-slice")
  return user.opcode in parts and user.operands[0] == name


def _size(shape: str) -> int:
  return hlo.num_bytes(shape, main_memory=True)
