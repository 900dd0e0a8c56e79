"""The picture of `theory_lemma`."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raptr_jax.reports.axes import (
  BLUE,
  GREEN,
  GREY,
  ORANGE,
  PURPLE,
  SKY,
  VERMILION,
)
from raptr_jax.theory import lemma
from tables.figures import saved
from theory.lemma_runs import (
  DEEP,
  WIDTH,
  Record,
  by_depth,
  cells_of,
  gaps_of,
  slope_of,
)

if TYPE_CHECKING:
  from matplotlib.axes import Axes

# Colour and marker of each of `lemma.FORMS`, in their order.
FORM_STYLES = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (PURPLE, "D"))
DEPTH_COLORS = (ORANGE, SKY, BLUE, VERMILION, GREEN)


def draw(path: Path, measured: Record) -> None:
  """Draws random networks above, and trained ones below if there are any."""
  trained = by_depth(measured["trained"])
  rows = 2 if trained else 1
  with saved(path, (11, 4.4 * rows)) as figure:
    panels = figure.subplots(rows, 2, squeeze=False)
    _draw_gaps(panels[0, 0], measured)
    _draw_psi(panels[0, 1], measured)
    if trained:
      _draw_trained_psi(panels[1, 0], trained)
      _draw_trained_gaps(panels[1, 1], trained)
    for axes in panels.flat:
      axes.title.set_fontsize(10)


def _draw_gaps(axes: "Axes", measured: Record) -> None:
  for form, (color, marker) in zip(lemma.FORMS, itertools.cycle(FORM_STYLES)):
    depths, gaps = gaps_of(cells_of(measured, form, WIDTH))
    axes.fill_between(
      depths, gaps.min(1), gaps.max(1), color=color, alpha=0.2, linewidth=0
    )
    slope = slope_of(cells_of(measured, form, WIDTH, DEEP)).mean
    axes.plot(
      depths,
      gaps.mean(1),
      color=color,
      marker=marker,
      ms=4,
      label=f"{form}: {slope:+.2f}",
    )
  guide = 2 / np.sqrt(depths)
  axes.plot(depths, guide, color="black", ls="--", lw=1, label="2 / sqrt(L)")
  _log_axes(axes, depths)
  axes.set_xlabel("layers L")
  axes.set_ylabel("gap, relative")
  axes.set_title(
    f"Random networks of width {WIDTH}: gap by depth, bands over all seeds"
  )
  _legend_below(axes, title=f"slope from L = {DEEP} on")


def _draw_psi(axes: "Axes", measured: Record) -> None:
  for form, (color, _) in zip(lemma.FORMS, itertools.cycle(FORM_STYLES)):
    psi = cells_of(measured, form, WIDTH)[-1]["psi"]
    layers = np.arange(1, len(psi) + 1)
    axes.plot(layers, psi, color=color, lw=1.2, label=form)
  guide = 1 / np.sqrt(layers + 1)
  axes.plot(
    layers, guide, color="black", ls="--", lw=1, label="1 / sqrt(l + 1)"
  )
  _log_axes(axes, [4**power for power in range(5) if 4**power <= len(psi)])
  axes.set_xlabel("bypassed layer l")
  axes.set_ylabel("psi, relative")
  axes.set_title(
    f"Random networks of {len(psi)} layers: psi by layer, mean over seeds"
  )
  _legend_below(axes)


def _draw_trained_psi(axes: "Axes", trained: Mapping[int, Record]) -> None:
  colors = itertools.cycle(DEPTH_COLORS)
  for color, (depth, part) in zip(colors, trained.items()):
    layers = np.arange(1, depth + 1)
    for when, style in (("before", ":"), ("after", "-")):
      axes.plot(
        layers,
        part[when]["psi"],
        color=color,
        linestyle=style,
        marker="o",
        markersize=3,
        label=f"{depth} layers, {when} training",
      )
  _log_y(axes)
  axes.set_xlabel("bypassed layer l")
  axes.set_ylabel("psi of hidden states, relative")
  axes.set_title("BERT: psi by layer")
  _legend_below(axes)


def _draw_trained_gaps(axes: "Axes", trained: Mapping[int, Record]) -> None:
  depths = list(trained)
  for when, color in (("before", GREY), ("after", VERMILION)):
    gaps = [np.mean(part[when]["psi"]) for part in trained.values()]
    axes.plot(depths, gaps, color=color, marker="o", label=f"{when} training")
    if when == "before":
      guide = gaps[0] * np.sqrt(depths[0] / np.array(depths))
      axes.plot(
        depths, guide, color="black", ls="--", lw=1, label="as 1 / sqrt(L)"
      )
  _log_axes(axes, depths)
  axes.set_xlabel("layers L")
  axes.set_ylabel("gap of hidden states, relative")
  axes.set_title("BERT: gap by depth")
  _legend_below(axes)


def _log_axes(axes: "Axes", ticks: Sequence[int]) -> None:
  axes.set_xscale("log")
  axes.set_xticks(ticks, [str(tick) for tick in ticks])
  axes.set_xticks([], minor=True)
  _log_y(axes)


def _log_y(axes: "Axes") -> None:
  from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

  axes.set_yscale("log")
  axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
  axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.3g}"))
  axes.yaxis.set_minor_locator(NullLocator())


def _legend_below(axes: "Axes", title: str | None = None) -> None:
  axes.legend(
    title=title,
    title_fontsize=8,
    loc="upper center",
    bbox_to_anchor=(0.5, -0.14),
    ncols=2,
    fontsize=8,
    frameon=False,
  )
