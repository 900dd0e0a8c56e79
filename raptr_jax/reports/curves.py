"""The picture of a run, curves.png: loss over steps, FLOPs and path length."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from raptr_jax.reports.run_files import RunSeries, read_run

if TYPE_CHECKING:
  from matplotlib.axes import Axes

Place: TypeAlias = Callable[[np.ndarray], np.ndarray]  # Steps to x positions.

# Okabe and Ito's palette, which colour-blind readers can tell apart.
TRAIN_COLOR = "#0072B2"
EVAL_COLOR = "#D55E00"
QUIET_COLOR = "#666666"


def draw_curves(model_dir: str | os.PathLike[str]) -> None:
  """Draws curves.png: loss over steps, over FLOPs and by path length."""
  from matplotlib.figure import Figure
  from matplotlib.ticker import EngFormatter

  run = read_run(model_dir)
  figure = Figure(figsize=(13, 4.2), dpi=150, layout="constrained")
  by_step, by_flops, by_length = figure.subplots(
    1, 3, width_ratios=(1.25, 1.25, 1)
  )
  _draw_losses(by_step, run, np.asarray)
  by_step.set_xlabel("steps")
  by_step.xaxis.set_major_formatter(EngFormatter(sep=""))
  by_step.legend(
    loc="upper right",
    bbox_to_anchor=(1.0, 0.88),  # Below the line of the unigram loss.
    framealpha=1.0,
    edgecolor="none",
    fontsize=9,
  )

  power = 3 * int(np.log10(max(run.flops[-1], 1.0)) // 3)
  _draw_losses(by_flops, run, lambda steps: run.flops_at(steps) / 10.0**power)
  by_flops.set_xlabel(f"training cost ($10^{{{power}}}$ FLOPs)")

  _draw_lengths(by_length, run)
  for axes in (by_step, by_flops, by_length):
    axes.set_ylabel("loss (nats)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
  figure.savefig(Path(model_dir) / "curves.png")


def _draw_losses(axes: "Axes", run: RunSeries, place: Place) -> None:
  """Draws training and held-out loss; `place` maps steps to the x axis."""
  smooth = _smoothed(run)
  eval_steps = np.array(list(run.full), float)
  eval_losses = np.array(list(run.full.values()), float)
  x = place(run.steps)
  axes.plot(x, run.losses, color=TRAIN_COLOR, alpha=0.25, linewidth=0.6)
  axes.plot(x, smooth, color=TRAIN_COLOR, label="training")
  axes.plot(
    place(eval_steps),
    eval_losses,
    color=EVAL_COLOR,
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
    axes.axhline(unigram, color="black", linestyle=":")
    axes.annotate(
      f"unigram {unigram:.2f}",
      (1, unigram),
      xycoords=axes.get_yaxis_transform(),
      xytext=(0, -4),
      textcoords="offset points",
      horizontalalignment="right",
      verticalalignment="top",
      fontsize=9,
    )
  seen = [loss for loss in seen if np.isfinite(loss)]
  if seen:
    margin = 0.06 * (max(seen) - min(seen)) or 0.1
    axes.set_ylim(min(seen) - margin, max(seen) + margin)
  _draw_stages(axes, run.summary, place)


def _draw_stages(axes: "Axes", summary: dict[str, Any], place: Place) -> None:
  """Marks where stages begin, and writes each one's path length above it."""
  joints = place(np.array([0, *summary["boundaries"], summary["steps"]], float))
  for joint in joints[1:-1]:
    axes.axvline(joint, color=QUIET_COLOR, linestyle="--", linewidth=0.8)
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
      color=QUIET_COLOR,
      fontsize=9,
    )
  axes.set_title("mean path length", color=QUIET_COLOR, fontsize=9, pad=16)


def _draw_lengths(axes: "Axes", run: RunSeries) -> None:
  axes.plot(
    list(run.by_length),
    list(run.by_length.values()),
    color=EVAL_COLOR,
    marker="o",
    linewidth=1.2,
  )
  for layers, loss in run.by_length.items():
    axes.annotate(
      f"{loss:.3f}",
      (layers, loss),
      xytext=(5, 5),
      textcoords="offset points",
      fontsize=9,
    )
  axes.margins(0.15)
  axes.set_xticks(list(run.by_length))
  axes.set_xlabel("layers of the evaluated path")
  axes.set_title(
    "evaluation at the end of the run", color=QUIET_COLOR, fontsize=9, pad=16
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
