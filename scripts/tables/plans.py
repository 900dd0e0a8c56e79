"""What the rows of a table will cost, without training them."""

import dataclasses
from collections.abc import Mapping, Sequence

from raptr_jax.configuration.configure import build
from raptr_jax.models.flops import PEAK_FLOPS
from raptr_jax.training import plan
from tables.evidence import Evidence
from tables.pages import MISSING, markdown_table
from tables.results import GRID_SEED, read_grid, read_grids
from tables.runs import Run, Setting
from tables.table import Row, Table
from tables.wanted import tuned_rows, untuned_notes, wanted_runs

# Costs are in hours of this device, of whose peak training is assumed to reach
# a share.
DEVICE = "NVIDIA H200"
UTILISATION = 0.4
CLUSTER_SCALE = "paper"  # Whose runs need several hosts.


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
    return self.flops / (UTILISATION * PEAK_FLOPS[DEVICE]) / 3600


def plan_run(run: Run) -> RowPlan:
  """Plans a run; reads no data.

  Raises:
    ConfigurationError: if its configuration is invalid.
  """
  run.configure()
  laid_out = plan.make_plan(build("RUN"))
  return RowPlan(
    run=run,
    steps=laid_out.total_steps,
    block_flops=laid_out.step_flops.layers(laid_out.expected_layers),
    flops=laid_out.flops_spent(laid_out.total_steps),
  )


def plan_page(
  setting: Setting,
  table: Table,
  *,
  rows: Sequence[Row],
  seeds: int,
  tune: bool,
) -> tuple[list[str], Evidence]:
  """The sections of a page on what will run, and what stands behind it."""
  grids = read_grids(setting, table, tune=tune)
  plans = {
    row: plan_run(Run(setting, row, grids[row.name].rate, 0))
    for row in dict.fromkeys((*map(table.dense, rows), *rows))
  }
  runs = wanted_runs(setting, table, rows=rows, seeds=seeds, tune=tune)
  evidence = Evidence(
    setting.options, {row.name: (plans[row].steps, seeds) for row in rows}
  )
  page = [
    f"# {table.title}: what scale `{setting.scale}` takes",
    _cost_table(table, rows, plans),
    *table.notes,
    "## Runs",
    _total_cost(runs, plans),
    *untuned_notes(setting, table, rows=rows, tune=tune),
    _run_table(table, runs, tuned_rows(table, rows, tune=tune)),
    "## Commands",
    _how_to_start(setting),
    *(
      f"{table.label(row)}:\n\n```bash\n{_command(plans[row].run)}\n```"
      for row in rows
    ),
  ]
  return page, evidence


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


def _total_cost(runs: Sequence[Run], plans: Mapping[Row, RowPlan]) -> str:
  """A sentence on the hours of all runs that are left."""
  left = [run for run in runs if not run.is_finished]
  hours = sum(plans[run.row].hours for run in left)
  return (
    f"{len(left)} of {len(runs)} runs are left; seeds take turns. They"
    f" take {hours:,.3g} device hours, assuming (not measured) {UTILISATION:.0%} of the"
    f" {PEAK_FLOPS[DEVICE] / 1e12:.0f} TFLOP/s that an H100 or H200 has in"
    " bfloat16."
  )


def _run_table(
  table: Table, runs: Sequence[Run], tuned: Mapping[Row, Row]
) -> str:
  """The seeds of each row and learning rate; those that are complete apart."""
  seeds: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
  for run in runs:
    tuning = tuned[run.row]
    in_grid = run.row == tuning and run.seed == GRID_SEED
    rate = f"{run.learning_rate:g}"
    grid = read_grid(run.setting, tuning)
    if tuning in tuned and not in_grid and not grid.is_complete:
      rate = f"best of the grid ({rate} until it is known)"
    place = table.label(run.row), rate
    left, complete = seeds.setdefault(place, ([], []))
    (complete if run.is_finished else left).append(str(run.seed))
  lines = [
    [label, rate, *(", ".join(numbers) or MISSING for numbers in both)]
    for (label, rate), both in seeds.items()
  ]
  head = ("row", "learning rate", "seeds to train", "complete")
  return markdown_table(head, lines)


def _how_to_start(setting: Setting) -> str:
  if setting.scale == CLUSTER_SCALE:
    return (
      "Start each command on every host of the job, with folders that all hosts"
      " share."
    )
  return "Each row's first run by itself:"


def _command(run: Run) -> str:
  flags = ["--multihost"] if run.setting.scale == CLUSTER_SCALE else []
  return run.command(*flags)
