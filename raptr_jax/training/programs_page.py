"""Prints what the programs of a run need and do, for people."""

from collections.abc import Iterable, Iterator

from rich.console import Console

from raptr_jax.training.compiled_program import (
  CompiledStep,
  Memory,
  compile_step,
)
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.fitting import Try, keeping_more, tries
from raptr_jax.training.plan import Plan
from raptr_jax.training.programs import Figures, Path, figures, paths

MOST_PROGRAMS = 8
GPU_SHARE = 0.75  # Of its memory, which JAX takes by default.


def print_programs(
  experiment: Experiment, plan: Plan, console: Console, *, every_program: bool
) -> None:
  """Compiles programs of a run, and prints what each needs on each device.

  Then tries other settings for the largest: some with which it fits, or, if it
  does, with which less of it runs twice.

  Args:
    experiment: the run.
    plan: of this run.
    console: where to print.
    every_program: compiles up to `MOST_PROGRAMS`, and tries to use memory that
      is left; otherwise compiles those of the shortest and the longest path.
  """
  found = paths(plan)
  chosen = found[: MOST_PROGRAMS if every_program else 2]
  partitioner = experiment.partitioner
  console.print(
    f"compiling {len(chosen)} of {len(found)} programs for"
    f" {partitioner.num_devices} x {partitioner.device_kind}; bytes are those"
    " of one device"
  )
  largest: tuple[Path, CompiledStep] | None = None
  for path in chosen:
    step = compile_step(experiment, path.draws)
    known = figures(experiment, plan, path, step)
    for name, value in _lines(path, known):
      console.print(f"{name:<35}{value}")
    if largest is None or step.memory.total > largest[1].memory.total:
      largest = path, step
  capacity = known.capacity
  if largest is None or capacity is None:
    return
  path, step = largest
  if step.memory.total > capacity:
    console.print(f"settings with which the {path.name} may fit:")
    fits = _print_tries(
      tries(experiment, path.draws, step, capacity), capacity, console
    )
    if not fits:
      console.print(
        "  none of these fits: set a smaller BATCH_SIZE, TASK_FEATURE_LENGTHS,"
        " LOGITS_CHUNK or model, or take more devices"
      )
  elif every_program:
    console.print("with more kept for the backward pass, and less repeated:")
    _print_tries(
      keeping_more(experiment, path.draws, capacity), capacity, console
    )


def _lines(path: Path, known: Figures) -> Iterator[tuple[str, str]]:
  """Names and values of what is known of a program."""
  yield path.name, f"{_size(known.memory.total)}: {_needs(known.memory)}"
  if known.capacity is not None:
    yield "", _verdict(known.memory.total, known.capacity, known.kind)
  if known.kernels is not None:
    calls = (f"{count} x {name}" for name, count in known.kernels.items())
    yield "  fused kernels", ", ".join(calls) or "none: attention is plain"
  if known.collectives is not None:
    sums = (
      f"{'' if found.is_known else 'at least '}{found.count} x {kind}"
      f" ({_size(found.num_bytes)})"
      for kind, found in known.collectives.items()
    )
    yield "  collectives of a step", ", ".join(sums) or "none"
  if (bound := known.roofline) is not None:
    yield (
      "  roofline, an estimate",
      f"a step takes {_time(bound.seconds)} or more:"
      f" {_time(bound.arithmetic)} for its FLOPs, {_time(bound.memory)} for"
      f" {_size(bound.num_bytes)} to and from memory",
    )
  yield "  compiled in", f"{known.seconds:.0f} s"


def _needs(memory: Memory) -> str:
  return (
    f"{_size(memory.params)} parameters, {_size(memory.opt_state)} optimizer,"
    f" {_size(memory.batch)} batch, {_size(memory.temporary)} temporary"
  )


def _verdict(needed: int, capacity: int, kind: str) -> str:
  """Whether a program fits, and by how much."""
  if needed > capacity:
    return (
      f"does not fit {_size(capacity)}: {_size(needed - capacity)} too many"
    )
  verdict = f"fits {_size(capacity)}, with {_size(capacity - needed)} to spare"
  if kind.startswith("NVIDIA") and needed > GPU_SHARE * capacity:
    verdict += (
      f"; JAX takes {GPU_SHARE:.0%} of a GPU unless you set"
      " XLA_PYTHON_CLIENT_MEM_FRACTION=0.95"
    )
  return verdict


def _print_tries(found: Iterable[Try], capacity: int, console: Console) -> bool:
  """Prints what steps with other settings need; whether the last one fits."""
  fits = False
  for attempt in found:
    needed = attempt.step.memory.total
    flags = " ".join(f'--gin.{n}="{v}"' for n, v in attempt.bindings.items())
    fits = needed <= capacity
    verdict = "fits" if fits else "does not fit"
    console.print(f"  {_size(needed):>11}, {verdict}: {flags}")
  return fits


def _size(num_bytes: int) -> str:
  """In MiB, GiB or TiB."""
  size, unit = num_bytes / 2**20, "MiB"
  for larger in ("GiB", "TiB"):
    if size >= 1024:
      size, unit = size / 1024, larger
  return f"{size:,.{1 if unit == 'MiB' else 2}f} {unit}"


def _time(seconds: float) -> str:
  return f"{seconds:,.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
