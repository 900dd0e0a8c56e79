"""RaPTr 6-8-10-12 beside dense training, with as many steps."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import jax
import numpy as np

from benchmarks.programs import Trainer, Workload, draw_of
from benchmarks.results import Table, Value
from benchmarks.timing import Seconds, take_turns
from raptr_jax.methods import policies
from raptr_jax.methods.draws import DrawTable, as_executed, draw_table
from raptr_jax.methods.schedule import StageSchedule, stage_schedule

TWELFTHS = (6, 8, 10, 12)  # Path lengths of the stages, for 12 layers.
BATCHES = 4  # Different ones, which come again and again.
Stage: TypeAlias = Mapping[str, Seconds]


def end_to_end(workload: Workload, trainer: Trainer, rounds: int) -> Table:
  """Times of both, by stage and of equally long stages together.

  In each stage, steps of both take turns. Every step gets its own draws and
  another batch from the host, as in a run.
  """
  num_layers = workload.config.num_layers
  lengths = [round(num_layers * part / 12) for part in TWELFTHS]
  schedule = stage_schedule(
    path_lengths=lengths, total_steps=1_000, num_layers=num_layers
  )
  draws = _draws(schedule)
  batches = [workload.batch_of(number) for number in range(BATCHES)]
  everything = draw_of(np.ones(num_layers, bool))
  full = as_executed({"stack": everything}, "gather")

  def stage(start: int) -> Stage:
    numbers = iter(range(start, schedule.total_steps))

    def raptr() -> None:
      step = next(numbers)
      trainer.feed(draws.at(step), batches[step % BATCHES])

    def dense() -> None:
      trainer.feed(full, batches[0])

    return take_turns({"dense": dense, "RaPTr": raptr}, rounds=rounds)

  stages = [stage(start) for start in (0, *schedule.boundaries)]
  rows = [
    _row(workload, f"{length} layers", [length], [seconds])
    for length, seconds in zip(lengths, stages)
  ]
  rows.append(_row(workload, "a mean step", lengths, stages))
  return Table(f"End to end: {workload}", rows)


def _draws(schedule: StageSchedule) -> DrawTable:
  """Paths of exactly the lengths of a schedule."""
  policy = policies.raptr(schedule=schedule, sampler="exact")
  key, steps = jax.random.key(0), schedule.total_steps
  return draw_table({"stack": policy}, key, steps, "gather")


def _row(
  workload: Workload, name: str, lengths: Sequence[int], stages: Sequence[Stage]
) -> dict[str, Value]:
  """The mean over stages of these path lengths."""

  def milliseconds(program: str) -> float:
    return 1e3 * statistics.mean(
      statistics.median(stage[program]) for stage in stages
    )

  num_layers = workload.config.num_layers
  dense, raptr = milliseconds("dense"), milliseconds("RaPTr")
  flops = statistics.mean(workload.flops(length) for length in lengths)
  return {
    "stage": name,
    "dense, ms": dense,
    "RaPTr, ms": raptr,
    "dense over RaPTr": dense / raptr,
    "in FLOPs": workload.flops(num_layers) / flops,
    "in FLOPs of layers": num_layers / statistics.mean(lengths),
  }
