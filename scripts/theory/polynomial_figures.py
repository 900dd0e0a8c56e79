"""The picture of `theory_polynomial`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raptr_jax.reports.axes import GREY, step_axis
from tables.figures import saved
from theory.polynomial_runs import Record

if TYPE_CHECKING:
  from matplotlib.axes import Axes


def draw(path: Path, found: Record) -> None:
  """Draws the error of each degree over training, and the loss."""
  num_degrees = found["sizes"]["max_degree"]
  columns = 4
  lines = -(-(num_degrees + 2) // columns)
  with saved(path, (13, 2.6 * lines)) as figure:
    panels = figure.subplots(lines, columns, sharex=True, sharey=True).flat
    for degree, axes in enumerate(panels[:num_degrees], start=1):
      _draw_panel(axes, found, f"degree {degree}", _degree_curve(degree))
    _draw_panel(
      panels[num_degrees],
      found,
      "loss (all degrees)",
      lambda run: run["losses"],
    )
    for axes in panels[num_degrees + 1 :]:
      axes.remove()
    for axes in figure.axes:
      axes.tick_params(labelbottom=True)
      step_axis(axes)
    figure.supylabel("error of the full network: mean and range over seeds")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
      handles, labels, loc="lower right", frameon=False, fontsize=11
    )


def _degree_curve(degree: int) -> Callable[[Record], Sequence[float]]:
  return lambda run: [errors[degree - 1] for errors in run["degree_errors"]]


def _draw_panel(
  axes: "Axes",
  found: Record,
  title: str,
  curve: Callable[[Record], Sequence[float]],
) -> None:
  """One line per method; dashed lines where RaPTr's stages begin."""
  lengths = "-".join(map(str, found["path_lengths"]))
  for number, boundary in enumerate(found["boundaries"]):
    axes.axvline(
      boundary,
      color=GREY,
      linestyle="--",
      linewidth=0.8,
      label="" if number else f"RaPTr's stages, {lengths}",
    )
  for method in found["methods"].values():
    color = method["color"]
    steps = method["runs"][0]["steps"]
    values = np.array([curve(run) for run in method["runs"]])
    axes.plot(steps, values.mean(axis=0), color=color, label=method["label"])
    axes.fill_between(
      steps,
      values.min(axis=0),
      values.max(axis=0),
      color=color,
      alpha=0.12,
      linewidth=0,
    )
  axes.set_title(title, fontsize=10)
  axes.set_ylim(0, 1.15)
