"""The programs of a run: which there are, and what each needs and does."""

import dataclasses
from collections.abc import Iterable, Mapping

from raptr_jax.contracts import Draws
from raptr_jax.training import compiled_program
from raptr_jax.training.compiled_program import (
  Collective,
  CompiledStep,
  Memory,
)
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.plan import Plan
from raptr_jax.training.roofline import Roofline, roofline
from raptr_jax.training.targets import CHIPS


@dataclasses.dataclass(frozen=True)
class Path:
  """What one program of a run trains.

  Attributes:
    lengths: layers of each stack that it can run.
    draws: of a step that it runs, in the form that the execution takes.
    name: for people.
  """

  lengths: Mapping[str, int]
  draws: Draws
  name: str


def paths(plan: Plan) -> list[Path]:
  """One path for each program of a run: shortest, longest, then by length."""
  found = []
  for program in map(plan.draws.program, plan.draws.first_steps(0)):
    lengths = plan.draws.slots(program)
    name = f"path of {' + '.join(map(str, lengths.values()))} layers"
    if plan.draws.execution == "cond":
      name = "any path"
    found.append(Path(lengths, plan.draws.example(program), name))
  found.sort(key=lambda path: sum(path.lengths.values()))
  return [*found[:1], *found[-1:], *found[1:-1]] if found[1:] else found


@dataclasses.dataclass(frozen=True)
class CollectiveSum:
  """All transfers of a kind in a step.

  Attributes:
    count: how many a step executes.
    num_bytes: of all, see `Collective.shape`.
    is_known: whether the program says how often each of its loops runs; in
      those of which it does not, transfers count once.
  """

  count: int
  num_bytes: int
  is_known: bool


@dataclasses.dataclass(frozen=True)
class Figures:
  """What a program needs and does, on each device.

  Attributes:
    kind: of the device, by JAX's name.
    memory: bytes.
    capacity: bytes that a device has; None if unknown.
    seconds: that compiling took.
    collectives: by kind; None if the compiler refused the program.
    kernels: calls of fused kernels; None likewise.
    roofline: an estimate of its time; None if unknown.
  """

  kind: str
  memory: Memory
  capacity: int | None
  seconds: float
  collectives: Mapping[str, CollectiveSum] | None
  kernels: Mapping[str, int] | None
  roofline: Roofline | None

  @property
  def missing(self) -> int:
    """Bytes that a device lacks; negative if it has some to spare."""
    return self.memory.total - (self.capacity or self.memory.total)


def figures(
  experiment: Experiment, plan: Plan, path: Path, step: CompiledStep
) -> Figures:
  """The figures of a compiled step."""
  kind = experiment.partitioner.device_kind
  found = Figures(
    kind=kind,
    memory=step.memory,
    capacity=CHIPS[kind].memory if kind in CHIPS else None,
    seconds=step.seconds,
    collectives=None,
    kernels=None,
    roofline=None,
  )
  if step.program is None:
    return found
  return dataclasses.replace(
    found,
    collectives=_sums(compiled_program.collectives(step.program)),
    kernels=compiled_program.kernels(step.program),
    roofline=roofline(
      step.program,
      flops=plan.step_flops.step(path.lengths),
      kind=kind,
      num_devices=experiment.partitioner.num_devices,
    ),
  )


def _sums(collectives: Iterable[Collective]) -> dict[str, CollectiveSum]:
  """The sums of each kind, the most bytes first."""
  sums: dict[str, CollectiveSum] = {}
  for found in collectives:
    place = found.place
    total = sums.get(found.kind, CollectiveSum(0, 0, True))
    sums[found.kind] = CollectiveSum(
      count=total.count + place.times,
      num_bytes=total.num_bytes + place.times * found.num_bytes,
      is_known=total.is_known and place.is_known,
    )
  by_bytes = sorted(sums.items(), key=lambda item: -item[1].num_bytes)
  return dict(by_bytes)
