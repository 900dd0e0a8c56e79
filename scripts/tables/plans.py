"""What the rows of a table will do and cost, without training them."""

import dataclasses
from collections.abc import Sequence

import gin

from raptr_jax import experiment, plan

from . import pages
from .learning_rate import GRIDS, read_grids
from .rows import Row, Table
from .runs import Run, Setting

# Of the devices that hours are stated for: dense bfloat16 peak of an H100 or an
# H200 by the vendor's data sheet, and the part of it that training reaches.
PEAK_FLOPS = 989e12
UTILISATION = 0.4


@dataclasses.dataclass(frozen=True)
class RowPlan:
  """A row as planned.

  Attributes:
    run: its first seed.
    steps: how many it trains.
    layer_steps: layers that run, summed over its steps; an expectation.
    flops: of the run, with this seed's draws; embeddings and head included.
  """

  run: Run
  steps: int
  layer_steps: float
  flops: float

  @property
  def hours(self) -> float:
    """Device hours at the stated utilisation."""
    return self.flops / (UTILISATION * PEAK_FLOPS) / 3600


def plan_run(run: Run) -> RowPlan:
  """Plans a run; reads no data.

  Raises:
    raptr_jax.main.ConfigurationError: it cannot be put together.
  """
  run.configure()
  laid_out = plan.make_plan(gin.get_configurable(experiment.Experiment)())
  return RowPlan(
    run=run,
    steps=laid_out.total_steps,
    layer_steps=float(laid_out.expected_lengths.sum()),
    flops=laid_out.flops_spent(laid_out.total_steps),
  )


def plan_page(
  setting: Setting,
  table: Table,
  *,
  rows: Sequence[Row],
  seeds: int,
  tune: bool,
) -> list[str]:
  """The sections of a page: cost and command of each row."""
  grids = read_grids(setting, table, tune=tune)
  grid = GRIDS[setting.scale]
  plans = []
  for row in dict.fromkeys((table.row("dense"), *rows)):
    # Before it is tuned, the middle of the grid stands in for it.
    rate = grids[row.name].best or grid[len(grid) // 2]
    plans.append(plan_run(Run(setting, row, rate, 0)))
  dense = plans[0]
  shown = [p for p in plans if p.run.row in rows]
  lines = [
    [
      p.run.row.label,
      f"{p.steps:,}",
      f"{dense.layer_steps / p.layer_steps:.3f}x",
      f"{p.flops:.3g}",
      f"{p.hours:,.3g}",
    ]
    for p in shown
  ]
  tuned = shown if tune else [dense]
  hours = seeds * sum(p.hours for p in shown)
  hours += (len(grid) - 1) * sum(p.hours for p in tuned)
  head = ("method", "steps", "FLOP factor, blocks", "FLOPs", "device hours")
  return [
    f"# {table.title}: what scale `{setting.scale}` takes",
    pages.table(head, lines),
    f"A run each. {seeds} seeds of these rows, with the learning rates"
    f" {', '.join(f'{rate:g}' for rate in grid)} for"
    f" {'each row' if tune else 'the dense row'}, take {hours:,.3g} device"
    f" hours, at {UTILISATION:.0%} of the {PEAK_FLOPS / 1e12:.0f} TFLOP/s of an"
    " H100 or H200 in bfloat16: an assumption, not a measurement.",
    *table.notes,
    "## Commands",
    "Start each on every host of the job, with folders that all of them see.",
    *(
      f"{p.run.row.label}:\n\n```bash\n{p.run.command()} --multihost\n```"
      for p in shown
    ),
  ]
