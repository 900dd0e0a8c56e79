"""The pictures of tables: final losses, losses over FLOPs, losses over steps."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raptr_jax.reports.axes import (
  BLACK,
  BLUE,
  GREEN,
  GREY,
  ORANGE,
  PURPLE,
  SKY,
  VERMILION,
  flop_axis,
  loss_axis,
  step_axis,
  style,
)
from raptr_jax.tasks import files
from tables.results import (
  Result,
  estimate,
  mean_curve,
  nominal_factor,
  paired_difference,
  transitions,
)
from tables.table import Comparison, Table

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure, FigureBase

# Those of lines without their own. Yellow is too pale on white.
COLOR_CYCLE = (BLACK, VERMILION, BLUE, GREEN, ORANGE, PURPLE, SKY)
# The share of a run that loss axes leave out. Losses fall from
# log(vocabulary size) there, which would flatten the rest.
EARLY = 0.1
LEGEND_COLUMNS = 4


@contextlib.contextmanager
def saved(path: Path, size: tuple[float, float]) -> Iterator["Figure"]:
  """A figure that is written when the block ends, whole or not at all."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=size, dpi=150, layout="constrained")
  yield figure
  for axes in figure.axes:
    style(axes)
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as partial:
    figure.savefig(partial, format="png")


def legend_below(figure: "FigureBase", panels: Sequence["Axes"]) -> None:
  """Draws one legend for all panels below them."""
  handles = {
    label: handle
    for axes in panels
    for handle, label in zip(*axes.get_legend_handles_labels())
  }
  if handles:
    figure.legend(
      list(handles.values()),
      list(handles),
      loc="outside lower center",
      ncols=LEGEND_COLUMNS,
      frameon=False,
      fontsize=9,
    )


def distinct_colors(wanted: Mapping[str, str | None]) -> dict[str, str]:
  """A colour for each line.

  Args:
    wanted: each line's own colour, or None.

  Returns:
    The first line that wants a colour gets it. All others get the next unused
    ones of `COLOR_CYCLE`, which starts over when it is used up.
  """
  colors: dict[str, str] = {}
  for name, color in wanted.items():
    if color and color not in colors.values():
      colors[name] = color
  unused = [color for color in COLOR_CYCLE if color not in colors.values()]
  cycle = itertools.chain(unused, itertools.cycle(COLOR_CYCLE))
  return {name: colors.get(name) or next(cycle) for name in wanted}


def line_colors(found: Mapping[str, Result]) -> dict[str, str]:
  """The colour of each line of a picture, by its label."""
  wanted: dict[str, str | None] = {}
  for result in found.values():
    wanted.setdefault(result.row.line, result.row.color)
  return distinct_colors(wanted)


def focus(axes: "Axes") -> None:
  """Fits the y axis to the lines after the early part of a run."""
  points = [np.asarray(line.get_xydata(), float) for line in axes.lines]
  end = max((xy[:, 0].max() for xy in points if len(xy)), default=0.0)
  late = [xy[xy[:, 0] >= EARLY * end, 1] for xy in points if len(xy)]
  if not late:
    return
  seen = np.concatenate(late)
  if seen.size:
    margin = 0.05 * (seen.max() - seen.min()) or 0.01
    axes.set_ylim(seen.min() - margin, seen.max() + margin)


def draw_losses(path: Path, table: Table, found: Mapping[str, Result]) -> None:
  """Draws each row's final loss, and the losses of some over FLOPs."""
  parts = table.comparisons
  heights = [max(1.8 + 0.32 * len(part.rows), 4.4) for part in parts]
  with saved(path, (13, sum(heights))) as figure:
    strips = figure.subfigures(len(parts), height_ratios=heights, squeeze=False)
    for part, strip in zip(parts, strips[:, 0]):
      dots, curves = strip.subplots(1, 2)
      _draw_differences(dots, part, found)
      _draw_curves(curves, part, found)
      legend_below(strip, [dots, curves])
      if len(parts) > 1:
        strip.suptitle(part.title)


def _draw_differences(
  axes: "Axes", part: Comparison, found: Mapping[str, Result]
) -> None:
  """Differences to the first reference, paired by seed."""
  reference = found[part.references[0]]
  shown = [0.0]
  for place, row in enumerate(part.rows):
    result = found[row.name]
    difference = paired_difference(result.losses, reference.losses)
    if difference is None:
      continue
    common = result.losses.keys() & reference.losses.keys()
    seeds = [result.losses[seed] - reference.losses[seed] for seed in common]
    shown += seeds
    if difference.n > 1 and result is not reference:
      shown += difference.interval
      axes.plot(seeds, [place] * len(seeds), "|", color=BLUE, markersize=9)
      axes.plot(difference.interval, [place] * 2, color=BLUE, linewidth=1.5)
    axes.plot(difference.mean, place, "o", color=BLUE, markersize=6, zorder=3)
  _draw_references(axes, [found[name] for name in part.references])
  margin = 0.05 * (max(shown) - min(shown)) or 0.01
  axes.set_xlim(min(shown) - margin, max(shown) + margin)
  axes.set_yticks(range(len(part.rows)), [row.label for row in part.rows])
  axes.set_ylim(len(part.rows) - 0.5, -0.5)
  axes.set_xlabel(
    f"final loss (nats) less that of {reference.row.label}, by seed:\n"
    "mean, seeds and 95 % interval"
  )
  axes.set_title("evaluation, full model", fontsize=10)


def _draw_references(axes: "Axes", references: Sequence[Result]) -> None:
  """A vertical line for each reference."""
  for result, dashes in zip(references, itertools.cycle(("-", "--", ":"))):
    difference = paired_difference(result.losses, references[0].losses)
    if difference:
      axes.axvline(
        difference.mean,
        color=GREY,
        linestyle=dashes,
        linewidth=1,
        label=f"mean of {result.row.label}",
        zorder=1,
      )


def _draw_curves(
  axes: "Axes", part: Comparison, found: Mapping[str, Result]
) -> None:
  colors = distinct_colors(
    {name: found[name].row.color for name in part.curves}
  )
  for name, color in colors.items():
    curve = mean_curve(found[name])
    if curve.steps.size:
      axes.plot(
        curve.flops,
        curve.losses,
        color=color,
        linewidth=1.3,
        marker="o",
        markersize=2.5,
        label=found[name].row.label,
      )
  focus(axes)
  flop_axis(axes)
  loss_axis(axes)
  axes.set_title("evaluation, full model", fontsize=10)


def draw_sweep(path: Path, table: Table, found: Mapping[str, Result]) -> None:
  """Draws loss over FLOP factor, a panel per family and a line per series."""
  parts = table.comparisons
  with saved(path, (7.5, 5 * len(parts))) as figure:
    panels = list(figure.subplots(len(parts), squeeze=False)[:, 0])
    for axes, part in zip(panels, parts):
      _draw_sweep(axes, part, {row.name: found[row.name] for row in part.rows})
      family = f"{part.title}, " if len(parts) > 1 else ""
      title = f"{family}evaluation at the end: mean ± sd over seeds"
      axes.set_title(title, fontsize=10)
    legend_below(figure, panels)


def _draw_sweep(
  axes: "Axes", part: Comparison, found: Mapping[str, Result]
) -> None:
  dense = found[part.dense.name]
  colors = line_colors(found)
  dense_loss = estimate(list(dense.losses.values()))
  if dense_loss:
    mean, sd, label = dense_loss.mean, dense_loss.sd, dense.row.line
    axes.axhline(mean, color=colors[label], linewidth=1, label=label)
    if dense_loss.n > 1:
      axes.axhspan(
        mean - sd, mean + sd, color=colors[label], alpha=0.08, linewidth=0
      )
  lines: dict[str, list[tuple[float, float, float]]] = {}
  for result in found.values():
    loss = estimate(list(result.losses.values()))
    factor = nominal_factor(result, dense)
    if result is not dense and loss and factor:
      point = (factor, loss.mean, loss.sd if loss.n > 1 else 0.0)
      lines.setdefault(result.row.line, []).append(point)
  for label, points in lines.items():
    factors, means, sds = zip(*sorted(points))
    axes.errorbar(
      factors,
      means,
      sds,
      color=colors[label],
      label=label,
      marker="o",
      capsize=3,
    )
  axes.set_xlabel("FLOP factor: dense FLOPs over the row's, blocks")
  loss_axis(axes)


def draw_transitions(
  path: Path, table: Table, found: Mapping[str, Result]
) -> None:
  """Draws losses over steps, a panel per depth and a line per row."""
  panels: dict[str, list[Result]] = {}
  for part in table.comparisons:
    family = f"{part.title}, " if len(table.comparisons) > 1 else ""
    shown = [found[row.name] for row in part.rows if found[row.name].summary]
    for result in sorted(shown, key=lambda r: r.num_layers):
      title = f"{family}{result.num_layers} layers"
      panels.setdefault(title, []).append(result)
  colors = line_colors(found)
  number = max(len(panels), 1)
  with saved(path, (4.6 * number, 4.4)) as figure:
    places = figure.subplots(1, number, squeeze=False)[0]
    for axes, (title, results) in zip(places, panels.items()):
      for result in results:
        _draw_transitions(axes, result, colors[result.row.line])
      focus(axes)
      axes.set_title(f"{title}: evaluation, full model", fontsize=10)
      step_axis(axes)
      loss_axis(axes)
    legend_below(figure, places)


def _draw_transitions(axes: "Axes", result: Result, color: str) -> None:
  """A row's curve, with marks where stages begin."""
  curve = mean_curve(result)
  axes.plot(
    curve.steps,
    curve.losses,
    color=color,
    label=result.row.line,
    linewidth=1.2,
  )
  by_seed = [
    transitions(run, result.boundaries) for run in result.runs.values()
  ]
  for moment, fill in (("before", color), ("grown", "white")):
    joints = []
    for step in result.boundaries:
      losses = [getattr(run[step], moment) for run in by_seed]
      mean = estimate([loss for loss in losses if loss is not None])
      if mean:
        joints.append((step, mean.mean))
    if joints:
      axes.plot(
        *zip(*joints),
        color=color,
        markerfacecolor=fill,
        marker="o",
        markersize=5,
        linestyle="none",
      )
