"""What the rows of a table will do and cost, without training them."""

import dataclasses
from collections.abc import Sequence

import gin

from raptr_jax import experiment, plan

from . import pages
from .learning_rate import read_grids
from .runs import Run, Setting
from .table import Row, Table

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
    block_flops: of its layers, as expected.
    flops: of the run, with this seed's draws; embeddings and head included.
  """

  run: Run
  steps: int
  block_flops: float
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
    block_flops=laid_out.step_flops.layers(
      {name: x.sum() for name, x in laid_out.expected_lengths.items()}
    ),
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
  tuned = {row: row if tune else table.dense(row) for row in rows}
  plans = {}
  for row in dict.fromkeys((*map(table.dense, rows), *rows)):
    # Before it is tuned, the middle of the grid stands in for it.
    grid = grids[row.name]
    rate = grid.best or list(grid.losses)[len(grid.losses) // 2]
    plans[row] = plan_run(Run(setting, row, rate, 0))
  lines = [
    [
      table.label(row),
      f"{plans[row].steps:,}",
      f"{plans[table.dense(row)].block_flops / plans[row].block_flops:.3f}x",
      f"{plans[row].flops:.3g}",
      f"{plans[row].hours:,.3g}",
    ]
    for row in rows
  ]
  hours = seeds * sum(plans[row].hours for row in rows)
  rates: dict[float, None] = {}
  for row in dict.fromkeys(tuned.values()):
    # One rate of the grid is that of a seed above.
    hours += (len(grids[row.name].losses) - 1) * plans[row].hours
    rates |= dict.fromkeys(grids[row.name].losses)
  head = ("method", "steps", "FLOP factor, blocks", "FLOPs", "device hours")
  return [
    f"# {table.title}: what scale `{setting.scale}` takes",
    pages.table(head, lines),
    f"A run each. {seeds} seeds of these rows, with the learning rates"
    f" {', '.join(f'{rate:g}' for rate in rates)} for"
    f" {'each row' if tune else 'the dense row'}, take {hours:,.3g} device"
    f" hours, at {UTILISATION:.0%} of the {PEAK_FLOPS / 1e12:.0f} TFLOP/s of an"
    " H100 or H200 in bfloat16: an assumption, not a measurement.",
    *table.notes,
    "## Commands",
    "Start each on every host of the job, with folders that all of them see.",
    *(
      f"{table.label(row)}:\n\n```bash\n{plans[row].run.command()}"
      " --multihost\n```"
      for row in rows
    ),
  ]
