"""Which runs of a table are still to be done, in which order."""

from collections.abc import Collection, Sequence

from .learning_rate import GRIDS, grid_runs, read_grid
from .rows import Row, Table
from .runs import Run, Setting


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
    table: gives the dense row.
    rows: those to run.
    seeds: how many.
    tune: whether each row has a grid of its own.
    failed: runs that have been tried and will not be again.
  """
  tuned = list(rows) if tune else [table.row("dense")]
  runs = [run for row in tuned for run in grid_runs(setting, row)]
  rates = {}
  for row in tuned:
    if any(run not in failed for run in grid_runs(setting, row)):
      rates[row] = read_grid(setting, row).best or GRIDS[setting.scale][0]
  for seed in range(seeds):
    for row in rows:
      rate = rates.get(row if tune else tuned[0])
      if rate is not None:
        runs.append(Run(setting, row, rate, seed))
  return list(dict.fromkeys(runs))
