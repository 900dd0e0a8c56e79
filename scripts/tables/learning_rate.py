"""The learning rate of each row: the best of a small grid.

It is tuned for dense training of each model family and used for all rows of
it, so that no method gets more trials than the one it is compared with. With
`--tune` each row gets the same grid for itself.
"""

import dataclasses
import math
from collections.abc import Mapping

from .runs import Run, Setting
from .table import Row, Table

BERT_GRIDS = {
  "tiny": (1e-3, 2e-3, 4e-3, 8e-3),
  "small": (5e-4, 1e-3, 2e-3),
  "paper": (5e-5, 1e-4, 2e-4),
}
# The paper's scale has T5's optimizer, Adafactor, whose rates are relative.
UL2_GRIDS = {
  "tiny": (2e-3, 4e-3, 8e-3, 1.6e-2),
  "small": (1e-3, 2e-3, 4e-3),
  "paper": (5e-3, 1e-2, 2e-2),
}
GRIDS = {"bert": BERT_GRIDS, "ul2_decoder": UL2_GRIDS, "ul2_encdec": UL2_GRIDS}
SEED = 0


@dataclasses.dataclass(frozen=True)
class Grid:
  """Final evaluation losses of a row with seed 0.

  Attributes:
    row: whose losses these are.
    losses: by learning rate, ascending; None where no run has finished.
  """

  row: Row
  losses: Mapping[float, float | None]

  @property
  def best(self) -> float | None:
    """The learning rate of the lowest loss; None if no run has finished."""
    found = {lr: x for lr, x in self.losses.items() if x is not None}
    return min(found, key=found.__getitem__) if found else None

  @property
  def best_is_at_edge(self) -> bool:
    """Whether a better one may lie outside of the grid."""
    return self.best in (min(self.losses), max(self.losses))

  @property
  def is_complete(self) -> bool:
    return None not in self.losses.values()


def grid_runs(setting: Setting, row: Row) -> list[Run]:
  """The runs that a row's learning rate is chosen by."""
  rates = GRIDS[row.family][setting.scale]
  return [Run(setting, row, rate, SEED) for rate in rates]


def read_grid(setting: Setting, row: Row) -> Grid:
  """The losses of a row's grid so far."""
  losses: dict[float, float | None] = {}
  for run in grid_runs(setting, row):
    summary = run.summary()
    loss = summary["final_eval_loss"] if summary else None
    finite = loss is not None and math.isfinite(loss)
    losses[run.learning_rate] = loss if finite else None
  return Grid(row, losses)


def read_grids(
  setting: Setting, table: Table, *, tune: bool
) -> dict[str, Grid]:
  """The grid that each row's learning rate comes from, by the row's name."""
  return {
    row.name: read_grid(setting, row if tune else table.dense(row))
    for row in table.rows
  }
