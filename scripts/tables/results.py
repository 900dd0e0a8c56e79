"""What the finished runs of a row came to, and what they cost."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from . import statistics
from .learning_rate import Grid
from .runs import Run, Setting, finished_seeds
from .table import Row, Table

Summary: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Result:
  """The finished runs of a row, at its learning rate.

  Attributes:
    row: whose runs these are.
    command_run: the run that a page gives the command of; None if there is no
      learning rate yet.
    runs: by seed.
    summaries: theirs, by seed.
  """

  row: Row
  command_run: Run | None
  runs: Mapping[int, Run]
  summaries: Mapping[int, Summary]

  def values(self, field: str) -> dict[int, float]:
    """A field of the summaries, by seed; null, not finite, is left out."""
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
    """Mean over seeds of that on held-out rows of one kind."""
    losses = [s["loss_by_kind"].get(kind) for s in self.summaries.values()]
    finite = [loss for loss in losses if loss is not None]
    return float(np.mean(finite)) if finite else None

  @property
  def summary(self) -> Summary | None:
    """That of the first seed, for what all seeds share."""
    return next(iter(self.summaries.values()), None)


def read_results(
  setting: Setting, table: Table, grids: Mapping[str, Grid]
) -> dict[str, Result]:
  """Reads the results of all rows, by name, in the order of the table."""
  results = {}
  for row in table.rows:
    rate = grids[row.name].best
    runs = finished_seeds(setting, row, rate)
    results[row.name] = Result(
      row=row,
      command_run=None if rate is None else Run(setting, row, rate, 0),
      runs=runs,
      summaries={seed: _summary(run) for seed, run in runs.items()},
    )
  return results


def _summary(run: Run) -> Summary:
  summary = run.summary()
  assert summary is not None  # Only finished runs are read.
  return summary


def nominal_factor(result: Result, dense: Result) -> float | None:
  """Dense over expected FLOPs, of the transformer blocks alone."""
  return _factor(result, dense, lambda s: _blocks(s, "flop_factor_nominal"))


def spent_factor(result: Result, dense: Result) -> float | None:
  """Dense over spent FLOPs, of the transformer blocks alone."""
  return _factor(result, dense, lambda s: _blocks(s, "flop_factor_spent"))


def whole_factor(result: Result, dense: Result) -> float | None:
  """Dense over spent FLOPs, embeddings and head counted as well."""
  return _factor(result, dense, lambda s: s["flops_spent"])


def speed_up(result: Result, dense: Result) -> float | None:
  """Dense over the row's training time, the median over common seeds."""
  return statistics.median_ratio(
    result.values("train_seconds"), dense.values("train_seconds")
  )


def _blocks(summary: Summary, factor: str) -> float:
  """Layers that ran in a run: its own factor is over all of *its* layers.

  Rows may have fewer steps or fewer layers than the dense run.
  """
  return summary["steps"] * summary["num_layers"] / summary[factor]


def _factor(
  result: Result, dense: Result, cost: Callable[[Summary], float]
) -> float | None:
  """Mean cost of the dense runs over that of the row's."""
  costs, dense_costs = (
    [cost(summary) for summary in r.summaries.values()] for r in (result, dense)
  )
  if not costs or not dense_costs:
    return None
  return float(np.mean(dense_costs) / np.mean(costs))
