"""Which runs of a table are still to be done, in which order."""

from collections.abc import Collection, Sequence

from .learning_rate import grid_runs, read_grid
from .runs import Run, Setting
from .table import Row, Table


def wanted_runs(
  setting: Setting,
  table: Table,
  *,
  rows: Sequence[Row],
  seeds: int,
  tune: bool,
  failed: Collection[Run] = (),
) -> list[Run]:
  """All runs that a table is made of, finished or not.

  First the grids of the learning rate, then all rows with seed 0, with seed 1,
  and so on, so that the table fills evenly. Which runs come after the grids
  depends on the losses of these: until one has finished, the first learning
  rate stands in for the best, and it is left out once its grid has failed.

  Args:
    setting: scale and folder.
    table: gives the dense row of each row's family.
    rows: those to run.
    seeds: how many.
    tune: whether each row has a grid of its own.
    failed: runs that have been tried and will not be again.
  """
  tuned = {row: row if tune else table.dense(row) for row in rows}
  runs, rates = [], {}
  for row in dict.fromkeys(tuned.values()):
    grid = grid_runs(setting, row)
    runs += grid
    if any(run not in failed for run in grid):
      rates[row] = read_grid(setting, row).best or grid[0].learning_rate
  for seed in range(seeds):
    for row in rows:
      if tuned[row] in rates:
        runs.append(Run(setting, row, rates[tuned[row]], seed))
  return list(dict.fromkeys(runs))
