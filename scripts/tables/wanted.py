"""Which runs a table needs, in which order."""

from collections.abc import Collection, Sequence

from tables.results import grid_runs, read_grid
from tables.runs import Run, Setting
from tables.table import Row, Table


def tuned_rows(
  table: Table, rows: Sequence[Row], *, tune: bool
) -> dict[Row, Row]:
  """For each row, the row whose grid decides its learning rate."""
  return {row: row if tune else table.dense(row) for row in rows}


def wanted_runs(
  setting: Setting,
  table: Table,
  *,
  rows: Sequence[Row],
  seeds: int,
  tune: bool,
  failed: Collection[Run] = (),
) -> list[Run]:
  """All runs of some rows, finished or not, in training order.

  Learning rate grids of these rows come first, then all rows with seed 0, all
  rows with seed 1 and so on, so that the table fills evenly. The runs after the
  grids depend on the grids' losses: until one has finished, the middle learning
  rate stands in for the best. It is also the rate of rows that are trained
  without the row that tunes them. Rows whose grid has failed are left out.

  Args:
    setting: scale, folder and overrides.
    table: determines the dense row that tunes each row.
    rows: the rows to run.
    seeds: number of seeds of each row.
    tune: whether each row has its own grid.
    failed: runs that have been tried and will not be tried again.
  """
  tuned = tuned_rows(table, rows, tune=tune)
  runs, rates = [], {}
  for row in dict.fromkeys(tuned.values()):
    grid = grid_runs(setting, row) if row in rows else []
    runs += grid
    if not grid or any(run not in failed for run in grid):
      rates[row] = read_grid(setting, row).rate
  for seed in range(seeds):
    for row in rows:
      if tuned[row] in rates:
        runs.append(Run(setting, row, rates[tuned[row]], seed))
  return list(dict.fromkeys(runs))


def untuned_notes(
  setting: Setting, table: Table, *, rows: Sequence[Row], tune: bool
) -> list[str]:
  """A line for each row that should tune `rows`, but will not have."""
  tuned = dict.fromkeys(tuned_rows(table, rows, tune=tune).values())
  grids = [read_grid(setting, row) for row in tuned if row not in rows]
  return [
    f"Row {grid.row.name} has not tuned the learning rate, so it is"
    f" {grid.rate:g}: add the row to --only to train its grid."
    for grid in grids
    if not grid.is_complete
  ]
