"""From finished runs to results: learning rates, losses, costs, differences.

The learning rate is tuned for dense training of each model family and used for
all rows of that family, so that no method gets more trials than the baseline.
With `--tune` each row is tuned on the same grid.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy import stats

from tables.runs import Run, Setting, finished_seeds
from tables.table import FAMILIES, Row, Table

CONFIDENCE = 0.95
GRID_SEED = 0

Summary: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean of n values.

  Attributes:
    mean: of the values.
    sd: standard deviation (n - 1); NaN if n is 1.
    n: number of values.
  """

  mean: float
  sd: float
  n: int

  @property
  def half_width(self) -> float:
    """Half the 95 % interval of the mean (Student's t); NaN if n is 1.

    SciPy's one-sample t-test gives the same, but warns about equal values.
    """
    if self.n < 2:
      return math.nan
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, self.n - 1)
    return float(quantile * self.sd / math.sqrt(self.n))

  @property
  def interval(self) -> tuple[float, float]:
    return self.mean - self.half_width, self.mean + self.half_width


def estimate(values: Sequence[float]) -> Estimate | None:
  """Mean and spread; None without values."""
  if not values:
    return None
  sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
  return Estimate(float(np.mean(values)), sd, len(values))


def paired_difference(
  values: Mapping[int, float], reference: Mapping[int, float]
) -> Estimate | None:
  """`values` minus `reference`, paired by seed; None without a common seed."""
  common = sorted(values.keys() & reference.keys())
  return estimate([values[seed] - reference[seed] for seed in common])


def median_ratio(
  values: Mapping[int, float], reference: Mapping[int, float]
) -> float | None:
  """Median of `reference` over `values`; None without a common seed."""
  common = values.keys() & reference.keys()
  if not common:
    return None
  return float(np.median([reference[seed] / values[seed] for seed in common]))


@dataclasses.dataclass(frozen=True)
class Grid:
  """Final evaluation losses of a row by learning rate, with seed 0.

  Attributes:
    row: the row that is tuned.
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
  def rate(self) -> float:
    """The best, or until one has finished the one in the middle."""
    return self.best or list(self.losses)[len(self.losses) // 2]

  @property
  def best_is_at_edge(self) -> bool:
    """Whether a better rate may lie outside the grid."""
    return self.best in (min(self.losses), max(self.losses))

  @property
  def is_complete(self) -> bool:
    return None not in self.losses.values()


def grid_runs(setting: Setting, row: Row) -> list[Run]:
  """The runs that tune a row's learning rate."""
  rates = FAMILIES[row.family].learning_rates[setting.scale]
  return [Run(setting, row, rate, GRID_SEED) for rate in rates]


def read_grid(setting: Setting, row: Row) -> Grid:
  """A row's grid, as far as its runs have finished."""
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
  """The grid that decides each row's learning rate, by row name."""
  return {
    row.name: read_grid(setting, row if tune else table.dense(row))
    for row in table.rows
  }


@dataclasses.dataclass(frozen=True)
class Result:
  """A row's finished runs at its learning rate.

  Attributes:
    row: the row.
    command_run: the run whose command the page shows.
    runs: finished runs, by seed.
    summaries: their summaries, by seed.
  """

  row: Row
  command_run: Run
  runs: Mapping[int, Run]
  summaries: Mapping[int, Summary]

  def values(self, field: str) -> dict[int, float]:
    """A field of the summaries, by seed, without nulls (not finite)."""
    return {
      seed: summary[field]
      for seed, summary in self.summaries.items()
      if summary[field] is not None
    }

  @property
  def losses(self) -> dict[int, float]:
    """Final evaluation losses of the full model, by seed."""
    return self.values("final_eval_loss")

  def mean_loss_of(self, kind: str) -> float | None:
    """Mean loss over seeds on held-out examples of one kind."""
    losses = [
      s["loss_by_example_kind"].get(kind) for s in self.summaries.values()
    ]
    finite = [loss for loss in losses if loss is not None]
    return float(np.mean(finite)) if finite else None

  @property
  def summary(self) -> Summary | None:
    """The first seed's summary, for fields that all seeds share."""
    return next(iter(self.summaries.values()), None)

  @property
  def num_layers(self) -> int:
    """Layers of the model; 0 if no run has finished."""
    return self.summary["num_layers"] if self.summary else 0

  @property
  def boundaries(self) -> list[int]:
    """Steps at which a stage begins."""
    return self.summary["boundaries"] if self.summary else []


def read_results(
  setting: Setting, table: Table, grids: Mapping[str, Grid]
) -> dict[str, Result]:
  """The results of all rows, by name, in table order."""
  results = {}
  for row in table.rows:
    rate = grids[row.name].rate
    runs = finished_seeds(setting, row, rate)
    results[row.name] = Result(
      row=row,
      command_run=Run(setting, row, rate, 0),
      runs=runs,
      summaries={
        seed: summary
        for seed, run in runs.items()
        if (summary := run.summary()) is not None
      },
    )
  return results


def nominal_factor(result: Result, dense: Result) -> float | None:
  """Dense over expected FLOPs, transformer blocks only."""
  return _factor(result, dense, lambda s: _layers_run(s, "flop_factor_nominal"))


def spent_factor(result: Result, dense: Result) -> float | None:
  """Dense over spent FLOPs, transformer blocks only."""
  return _factor(result, dense, lambda s: _layers_run(s, "flop_factor_spent"))


def whole_factor(result: Result, dense: Result) -> float | None:
  """Dense over spent FLOPs, embeddings and head included."""
  return _factor(result, dense, lambda s: s["flops_spent"])


def speed_up(result: Result, dense: Result) -> float | None:
  """Dense over the row's training time, median over common seeds."""
  return median_ratio(
    result.values("train_seconds"), dense.values("train_seconds")
  )


def _layers_run(summary: Summary, factor: str) -> float:
  """Layers run in the whole run.

  The run's own factor compares it with running all of *its* layers, but a row
  may have fewer steps or layers than the dense row.
  """
  return float(summary["steps"] * summary["num_layers"] / summary[factor])


def _factor(
  result: Result, dense: Result, cost: Callable[[Summary], float]
) -> float | None:
  """Mean cost of the dense runs over that of the row's runs."""
  costs, dense_costs = (
    [cost(summary) for summary in r.summaries.values()] for r in (result, dense)
  )
  if not costs or not dense_costs:
    return None
  return float(np.mean(dense_costs) / np.mean(costs))


@dataclasses.dataclass(frozen=True)
class Curve:
  """Evaluation losses of the full model, means over seeds.

  Attributes:
    steps: at which all seeds were evaluated.
    flops: spent until `steps`.
    losses: at `steps`.
  """

  steps: np.ndarray
  flops: np.ndarray
  losses: np.ndarray


def mean_curve(result: Result) -> Curve:
  """The curve of a row's finished runs."""
  series = [run.series() for run in result.runs.values()]
  if not series:
    return Curve(*np.zeros([3, 0]))
  common = set.intersection(*(set(one.full) for one in series))
  steps = np.array(sorted(common))
  losses = np.array([[one.full[step] for step in steps] for one in series])
  finite = np.isfinite(losses).all(0)
  flops = np.array([one.flops_at(steps) for one in series])
  return Curve(
    steps[finite], flops[:, finite].mean(0), losses[:, finite].mean(0)
  )


@dataclasses.dataclass(frozen=True)
class Transition:
  """A run's evaluation losses around a boundary; None if not measured."""

  before: float | None
  grown: float | None
  after: float | None


def transitions(run: Run, boundaries: Sequence[int]) -> dict[int, Transition]:
  """A finished run's losses around each boundary."""
  series = run.series()

  def finite(losses: Mapping[int, float], step: int) -> float | None:
    loss = losses.get(step, math.nan)
    return loss if math.isfinite(loss) else None

  return {
    step: Transition(
      before=finite(series.full, step),
      grown=finite(series.grown, step),
      after=finite(series.full, step + 1),
    )
    for step in boundaries
  }
