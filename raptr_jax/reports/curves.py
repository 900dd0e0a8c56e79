"""The picture of a run, curves.png: loss over steps, FLOPs and path length."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from raptr_jax.reports.axes import (
  BLACK,
  BLUE,
  GREY,
  LEAST_RANGE,
  VERMILION,
  flop_axis,
  loss_axis,
  step_axis,
  style,
)
from raptr_jax.reports.run_files import CURVES_FILE, RunSeries, read_run
from raptr_jax.tasks import files

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

Place: TypeAlias = Callable[[np.ndarray], np.ndarray]  # Steps to x positions.


def draw_curves(model_dir: str | os.PathLike[str]) -> None:
  """Draws curves.png: loss over steps, over FLOPs and by path length."""
  figure = curves_figure(read_run(model_dir))
  path = files.path("MODEL_DIR", model_dir) / CURVES_FILE
  with files.replacing(path) as partial:
    figure.savefig(partial, format="png")


def curves_figure(run: RunSeries) -> "Figure":
  """The picture of a run. All its text is outside of the axes."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(13, 4.6), dpi=150, layout="constrained")
  by_step, by_flops, by_length = figure.subplots(
    1, 3, width_ratios=(1.25, 1.25, 1)
  )
  _draw_losses(by_step, run, np.asarray)
  step_axis(by_step)
  _draw_losses(by_flops, run, run.flops_at)
  flop_axis(by_flops)
  _draw_lengths(by_length, run)
  for axes in (by_step, by_flops, by_length):
    loss_axis(axes)
    style(axes)
  figure.legend(
    *by_step.get_legend_handles_labels(),
    loc="outside lower center",
    ncols=4,
    frameon=False,
    fontsize=9,
  )
  # Text has a size only now that everything has its place.
  figure.draw_without_rendering()
  for axes in (by_step, by_flops):
    _thin_out(axes)
  return figure


def _draw_losses(axes: "Axes", run: RunSeries, place: Place) -> None:
  """Draws training and held-out loss; `place` maps steps to the x axis."""
  smooth = _smoothed(run)
  eval_steps = np.array(list(run.full), float)
  eval_losses = np.array(list(run.full.values()), float)
  x = place(run.steps)
  axes.plot(x, run.losses, color=BLUE, alpha=0.25, linewidth=0.6)
  axes.plot(x, smooth, color=BLUE, label="training, running mean")
  axes.plot(
    place(eval_steps),
    eval_losses,
    color=VERMILION,
    marker="o",
    markersize=3,
    linewidth=1.2,
    label="evaluation, full model",
  )
  # Leaves out the first steps: losses near log(vocabulary size) would flatten
  # all later ones.
  late = 0.05 * run.summary["steps"]
  seen = [*smooth[run.steps >= late], *eval_losses[eval_steps >= late]]
  unigram = run.summary["unigram_loss"]
  if unigram is not None:
    seen.append(unigram)
    label = f"unigram model, {unigram:.3f}"
    axes.axhline(unigram, color=BLACK, linestyle=":", label=label)
  seen = [loss for loss in seen if np.isfinite(loss)]
  if seen:
    margin = 0.06 * (max(seen) - min(seen)) or LEAST_RANGE
    axes.set_ylim(min(seen) - margin, max(seen) + margin)
  _draw_stages(axes, run.summary, place)


def _draw_stages(axes: "Axes", summary: dict[str, Any], place: Place) -> None:
  """Marks where stages begin, and writes each one's path length above it."""
  joints = place(np.array([0, *summary["boundaries"], summary["steps"]], float))
  for number, joint in enumerate(joints[1:-1]):
    axes.axvline(
      joint,
      color=GREY,
      linestyle="--",
      linewidth=0.8,
      label="" if number else "start of a stage",
    )
  # A run without training entries has no FLOPs, but the axis needs a length.
  end = joints[-1] or 1.0
  axes.set_xlim(-0.02 * end, 1.02 * end)
  middles = (joints[:-1] + joints[1:]) / 2
  for middle, length in zip(middles, summary["stage_path_lengths"]):
    axes.text(
      middle,
      1.01,
      f"{length:.3g}",
      transform=axes.get_xaxis_transform(),
      horizontalalignment="center",
      color=GREY,
      fontsize=9,
    )
  axes.set_title("mean path length", color=GREY, fontsize=9, pad=16)


def _thin_out(axes: "Axes") -> None:
  """Hides each stage's path length that would touch the one before."""
  end = -np.inf
  for text in axes.texts:
    box = text.get_window_extent()
    text.set_visible(box.x0 > end + 0.3 * box.height)
    if text.get_visible():
      end = box.x1


def _draw_lengths(axes: "Axes", run: RunSeries) -> None:
  from matplotlib.ticker import MaxNLocator

  axes.plot(
    list(run.by_length),
    list(run.by_length.values()),
    color=VERMILION,
    marker="o",
    linewidth=1.2,
  )
  axes.margins(0.1)
  axes.xaxis.set_major_locator(
    MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10])
  )
  axes.set_xlabel("layers of the evaluated path")
  axes.set_title(
    "evaluation at the end of the run", color=GREY, fontsize=9, pad=16
  )


def _smoothed(run: RunSeries) -> np.ndarray:
  """Centred running means of the training loss.

  Stages are smoothed separately, since the jump between two of them is real.
  """
  joints = np.searchsorted(run.steps, run.summary["boundaries"], side="right")
  stages = np.split(run.losses, joints)
  return np.concatenate(
    [_running_mean(stage, 1 + len(run.losses) // 50) for stage in stages]
  )


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
  """Means of the finite ones among the 2 x width - 1 values around each."""
  finite = np.isfinite(values)
  sums = np.append(0.0, np.cumsum(np.where(finite, values, 0.0)))
  counts = np.append(0, np.cumsum(finite))
  middle = np.arange(len(values))
  first = np.maximum(middle - width + 1, 0)
  last = np.minimum(middle + width, len(values))
  count = counts[last] - counts[first]
  mean = (sums[last] - sums[first]) / np.maximum(count, 1)
  return np.where(count > 0, mean, np.nan)
