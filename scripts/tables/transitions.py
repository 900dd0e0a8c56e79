"""The full model's loss around the steps at which a stage begins."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from . import figures, pages
from .results import Result
from .runs import Run
from .statistics import Estimate, estimate

EXPLANATION = """\
A stage that begins at step b changes which layers train from its first step on.
*Before* is the loss after b steps, *after one step* after b + 1 steps; where a
method grows the model, *grown* is the loss of the grown model before its first
step. Means over seeds; the difference, *after one step* less *before*, has its
standard deviation over seeds (their number).\
"""


@dataclasses.dataclass(frozen=True)
class Transition:
  """Evaluation losses of one run around a boundary; None if not measured."""

  before: float | None
  grown: float | None
  after: float | None


def transitions(run: Run, boundaries: list[int]) -> dict[int, Transition]:
  """The losses around each boundary of a finished run."""
  losses = {
    (row["step"], row["layers"]): row["loss"]
    for row in run.metrics()
    if row["split"] == "eval"
  }
  return {
    step: Transition(
      losses.get((step, "full")),
      losses.get((step, "grown")),
      losses.get((step + 1, "full")),
    )
    for step in boundaries
  }


def transition_table(found: Mapping[str, Result]) -> str:
  """A line for each boundary of each row."""
  head = (
    "method",
    "step b",
    "before",
    "grown",
    "after one step",
    "difference",
  )
  return pages.table(
    head, [line for result in found.values() for line in _lines(result)]
  )


def _lines(result: Result) -> Iterator[list[str]]:
  boundaries = result.summary["boundaries"] if result.summary else []
  if not boundaries:
    yield [result.row.label, *[pages.MISSING] * 5]
  by_seed = [transitions(run, boundaries) for run in result.runs.values()]
  for step in boundaries:
    around = [run[step] for run in by_seed]
    differences = [
      t.after - t.before
      for t in around
      if t.after is not None and t.before is not None
    ]
    yield [
      result.row.label,
      f"{step:,}",
      *(
        _mean(getattr(t, field.name) for t in around)
        for field in dataclasses.fields(Transition)
      ),
      _spread(estimate(differences)),
    ]


def _known(losses: Iterable[float | None]) -> list[float]:
  return [loss for loss in losses if loss is not None]


def _mean(losses: Iterable[float | None]) -> str:
  mean = estimate(_known(losses))
  return pages.number(mean.mean if mean else None, ".4f")


def _spread(difference: Estimate | None) -> str:
  if difference is None:
    return pages.MISSING
  sd = "" if difference.n < 2 else f" ± {difference.sd:.4f}"
  return f"{difference.mean:+.4f}{sd} ({difference.n})"


def draw(path: Path, found: Mapping[str, Result]) -> None:
  """Draws evaluation losses over steps, a panel a depth, a colour a method."""
  by_depth: dict[int, list[Result]] = {}
  for result in found.values():
    if result.summary:
      by_depth.setdefault(result.summary["num_layers"], []).append(result)
  with figures.saved(path, (4.6 * max(len(by_depth), 1), 4.4)) as figure:
    panels = figure.subplots(1, max(len(by_depth), 1), squeeze=False)[0]
    for axes, (depth, results) in zip(panels, sorted(by_depth.items())):
      for result in results:
        _draw_method(axes, result)
      figures.focus(axes)
      axes.set_title(f"{depth} layers", fontsize=10)
      axes.set_xlabel("steps")
      axes.set_ylabel("evaluation loss, full model")
    figures.legend_below(figure, panels)


def _draw_method(axes, result: Result) -> None:
  color, label = figures.METHOD_STYLES[result.row.method]
  curve = figures.mean_curve(result)
  axes.plot(curve.steps, curve.losses, color=color, label=label, linewidth=1.2)
  boundaries = result.summary["boundaries"] if result.summary else []
  by_seed = [transitions(run, boundaries) for run in result.runs.values()]
  for moment, fill in (("before", color), ("grown", "white")):
    losses = {
      step: estimate(_known(getattr(run[step], moment) for run in by_seed))
      for step in boundaries
    }
    joints = [(step, x.mean) for step, x in losses.items() if x]
    if joints:
      axes.plot(
        *zip(*joints),
        color=color,
        markerfacecolor=fill,
        marker="o",
        markersize=5,
        linestyle="none",
      )
