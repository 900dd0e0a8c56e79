"""What the rows of a table will cost, without training them."""

import dataclasses
from collections.abc import Mapping, Sequence

import gin

from raptr_jax.training import experiment, plan
from tables.pages import markdown_table
from tables.results import Grid, read_grids
from tables.runs import Run, Setting
from tables.table import Row, Table

# Dense bfloat16 peak of an H100 or H200 by the vendor's data sheet, and the
# share of it that training is assumed to reach.
PEAK_FLOPS = 989e12
UTILISATION = 0.4


@dataclasses.dataclass(frozen=True)
class RowPlan:
  """The cost of one run of a row.

  Attributes:
    run: the run with the first seed.
    steps: number of training steps.
    block_flops: expected FLOPs of the transformer blocks.
    flops: FLOPs of the run with this seed's draws, embeddings and head
      included.
  """

  run: Run
  steps: int
  block_flops: float
  flops: float

  @property
  def hours(self) -> float:
    """Device hours at the assumed utilisation."""
    return self.flops / (UTILISATION * PEAK_FLOPS) / 3600


def plan_run(run: Run) -> RowPlan:
  """Plans a run; reads no data.

  Raises:
    raptr_jax.main.ConfigurationError: if its configuration is invalid.
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
  """The sections of a page with the cost and the command of each row."""
  grids = read_grids(setting, table, tune=tune)
  plans = {}
  for row in dict.fromkeys((*map(table.dense, rows), *rows)):
    # Until it is tuned, the middle of its grid stands in for the best rate.
    grid = grids[row.name]
    rate = grid.best or list(grid.losses)[len(grid.losses) // 2]
    plans[row] = plan_run(Run(setting, row, rate, 0))
  tuned = dict.fromkeys(row if tune else table.dense(row) for row in rows)
  return [
    f"# {table.title}: what scale `{setting.scale}` takes",
    _cost_table(table, rows, plans),
    _total_cost(
      [plans[row] for row in rows],
      [(plans[row], grids[row.name]) for row in tuned],
      seeds=seeds,
      tuned_rows="each row" if tune else "the dense row",
    ),
    *table.notes,
    "## Commands",
    "Start each command on every host of the job, with folders that all hosts"
    " share.",
    *(
      f"{table.label(row)}:\n\n```bash\n{plans[row].run.command()}"
      " --multihost\n```"
      for row in rows
    ),
  ]


def _cost_table(
  table: Table, rows: Sequence[Row], plans: Mapping[Row, RowPlan]
) -> str:
  head = ("method", "steps", "FLOP factor, blocks", "FLOPs", "device hours")
  lines = []
  for row in rows:
    planned, dense = plans[row], plans[table.dense(row)]
    lines.append(
      [
        table.label(row),
        f"{planned.steps:,}",
        f"{dense.block_flops / planned.block_flops:.3f}x",
        f"{planned.flops:.3g}",
        f"{planned.hours:,.3g}",
      ]
    )
  return markdown_table(head, lines)


def _total_cost(
  plans: Sequence[RowPlan],
  tuned: Sequence[tuple[RowPlan, Grid]],
  *,
  seeds: int,
  tuned_rows: str,
) -> str:
  """A sentence on the hours of all seeds and of the learning rate grids."""
  hours = seeds * sum(planned.hours for planned in plans)
  rates: dict[float, None] = {}
  for planned, grid in tuned:
    # One rate of the grid is that of the first seed.
    hours += (len(grid.losses) - 1) * planned.hours
    rates |= dict.fromkeys(grid.losses)
  return (
    f"The table shows single runs. {seeds} seeds of these rows, with the"
    f" learning rates {', '.join(f'{rate:g}' for rate in rates)} for"
    f" {tuned_rows}, take {hours:,.3g} device hours, assuming (not measured)"
    f" {UTILISATION:.0%} of the {PEAK_FLOPS / 1e12:.0f} TFLOP/s that an H100 or"
    " H200 has in bfloat16."
  )
