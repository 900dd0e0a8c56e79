"""Pictures of the losses of a table."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raptr_jax.plots import QUIET_COLOR
from tasks import records

from .results import Result, nominal_factor
from .statistics import estimate, paired_difference
from .table import Comparison, Table

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
  "#000000", "#E69F00", "#56B4E9", "#009E73",
  "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
# How a method, by the name of its gin file, looks in every picture.
METHOD_STYLES = {
  "dense": (BLACK, "dense"),
  "dense_equal_flops": (QUIET_COLOR, "dense, equal FLOPs"),
  "raptr": (VERMILION, "RaPTr"),
  "constant": (SKY, "constant path length"),
  "gradual_stacking": (BLUE, "gradual stacking"),
  "progressive_layer_dropping": (GREEN, "progressive layer dropping"),
  "progressive_stacking": (PURPLE, "progressive stacking"),
  "midas": (ORANGE, "MidAS"),
}
CURVE_COLORS = (BLACK, VERMILION, BLUE, GREEN, ORANGE, PURPLE, SKY)
# The part of a run that an axis of losses leaves out: there they fall from
# log(vocabulary size), and would flatten all that follows.
EARLY = 0.1


@contextlib.contextmanager
def saved(path: Path, size: tuple[float, float]) -> Iterator["Figure"]:
  """A figure that becomes the file when the block ends, whole or not at all."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=size, dpi=150, layout="constrained")
  yield figure
  for axes in figure.axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
  path.parent.mkdir(parents=True, exist_ok=True)
  with records.replacing(path) as partial:
    figure.savefig(partial, format="png")


def legend_below(figure: "Figure", panels: Sequence["Axes"]) -> None:
  """One legend for all panels, below them."""
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
      ncols=4,
      frameon=False,
      fontsize=9,
    )


@dataclasses.dataclass(frozen=True)
class Curve:
  """Evaluation losses of the full model, means over seeds.

  Attributes:
    steps: that all seeds were evaluated at.
    flops: spent until then.
    losses: at these steps.
  """

  steps: np.ndarray
  flops: np.ndarray
  losses: np.ndarray


def mean_curve(result: Result) -> Curve:
  """The curve of a row's finished runs."""
  losses, flops = [], []
  for run in result.runs.values():
    rows = run.metrics()
    train = [row for row in rows if row["split"] == "train"]
    full = {
      row["step"]: row["loss"]
      for row in rows
      if row["split"] == "eval"
      and row["layers"] == "full"
      and row["loss"] is not None
    }
    losses.append(full)
    flops.append(
      (
        [0, *(row["step"] for row in train)],
        [0, *(row["flops"] for row in train)],
      )
    )
  if not losses:
    return Curve(*np.zeros([3, 0]))
  steps = np.array(sorted(set.intersection(*map(set, losses))), float)
  return Curve(
    steps,
    np.mean([np.interp(steps, *points) for points in flops], axis=0),
    np.mean([[full[step] for step in steps] for full in losses], axis=0),
  )


def focus(axes: "Axes") -> None:
  """Fits the axes to what their lines show after the early part of a run."""
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
      dots, curves = strip.subplots(1, 2, width_ratios=(1, 1))
      _draw_dots(dots, part, found)
      _draw_curves(curves, part, found)
      if len(parts) > 1:
        strip.suptitle(part.title)


def _draw_dots(
  axes: "Axes", part: Comparison, found: Mapping[str, Result]
) -> None:
  """Differences to the first reference, seed by seed."""
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
  for name, style in zip(part.references, ("-", "--")):
    difference = paired_difference(found[name].losses, reference.losses)
    if difference:
      axes.axvline(
        difference.mean,
        color=QUIET_COLOR,
        linestyle=style,
        linewidth=1,
        label=found[name].row.label,
        zorder=1,
      )
  margin = 0.05 * (max(shown) - min(shown)) or 0.01
  axes.set_xlim(min(shown) - margin, max(shown) + margin)
  if axes.get_legend_handles_labels()[1]:
    axes.legend(
      loc="lower center",
      bbox_to_anchor=(0.5, 1.0),
      ncols=2,
      frameon=False,
      fontsize=9,
    )
  axes.set_yticks(range(len(part.rows)), [row.label for row in part.rows])
  axes.set_ylim(len(part.rows) - 0.5, -0.5)
  axes.set_xlabel(
    f"final evaluation loss less that of {reference.row.label}, by seed:\n"
    "mean, seeds and 95 % interval"
  )


def _draw_curves(
  axes: "Axes", part: Comparison, found: Mapping[str, Result]
) -> None:
  methods = [found[name].row.method for name in part.curves]
  colors: Sequence[str] = CURVE_COLORS
  if len(set(methods)) == len(methods):
    colors = tuple(METHOD_STYLES[method][0] for method in methods)
  for name, color in zip(part.curves, colors):
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
  axes.set_xlabel("training cost (FLOPs)")
  axes.set_ylabel("evaluation loss, full model")
  if axes.lines:
    axes.legend(frameon=False, fontsize=9)


def draw_sweep(path: Path, found: Mapping[str, Result]) -> None:
  """Draws loss over FLOP factor, a line a method, and the dense loss."""
  dense = found["dense"]
  lines: dict[str, list[tuple[float, float, float]]] = {}
  for result in found.values():
    loss = estimate(list(result.losses.values()))
    factor = nominal_factor(result, dense)
    if result is not dense and loss and factor:
      point = (factor, loss.mean, loss.sd if loss.n > 1 else 0.0)
      lines.setdefault(result.row.method, []).append(point)
  with saved(path, (7.5, 5)) as figure:
    axes = figure.subplots()
    dense_loss = estimate(list(dense.losses.values()))
    if dense_loss:
      color, label = METHOD_STYLES["dense"]
      axes.axhline(dense_loss.mean, color=color, linewidth=1, label=label)
      if dense_loss.n > 1:
        axes.axhspan(
          dense_loss.mean - dense_loss.sd,
          dense_loss.mean + dense_loss.sd,
          color=color,
          alpha=0.08,
          linewidth=0,
        )
    for method, points in lines.items():
      factors, means, sds = zip(*sorted(points))
      color, label = METHOD_STYLES[method]
      axes.errorbar(
        factors, means, sds, color=color, label=label, marker="o", capsize=3
      )
    axes.set_xlabel("FLOP factor: dense FLOPs over the row's, blocks")
    axes.set_ylabel("final evaluation loss (mean ± sd over seeds)")
    legend_below(figure, [axes])
