"""Draws the pictures of docs/images/.

  python docs/figures.py

The masks in them are drawn by the policies themselves.
"""

from pathlib import Path

import jax
import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import FancyBboxPatch

from raptr_jax.methods.policies import raptr
from raptr_jax.methods.schedule import stage_schedule

IMAGES = Path(__file__).resolve().parent / "images"
RUNS, SKIPPED, INK = "#3b6fb6", "#dfe5ec", "#2b2f36"


def draw_paths() -> None:
  """A step of each stage: which layers run, and the way around the others."""
  lengths = (3, 4, 5, 6)
  policy = raptr(
    schedule=stage_schedule(
      path_lengths=lengths, total_steps=400, num_layers=6
    ),
    sampler="exact",
  )
  figure, axes = plt.subplots(figsize=(7.4, 4.3))
  key = jax.random.key(3)
  for stage, length in enumerate(lengths):
    left = stage * 2.6
    mask = np.asarray(policy(key, stage * 100 + 50).mask)
    for layer, runs in enumerate(mask):
      _box(axes, left, layer, f"layer {layer + 1}", runs)
    _path_line(axes, left, mask)
    axes.text(
      left + 0.7, -1.15, f"stage {stage + 1}", ha="center", weight="bold"
    )
    axes.text(left + 0.7, -1.6, f"{length} of 6 layers", ha="center")
  axes.set(xlim=(-0.3, 9.6), ylim=(-1.9, 6.5))
  _save(figure, axes, "paths")


def _box(axes: Axes, left: float, bottom: float, text: str, runs: bool) -> None:
  """A layer as a box, filled if it runs."""
  axes.add_patch(
    FancyBboxPatch(
      (left, bottom + 0.18), 1.4, 0.64,
      boxstyle="round,pad=0.02,rounding_size=0.1",
      facecolor=RUNS if runs else "white",
      edgecolor=RUNS if runs else "#a9b4c2",
      linestyle="-" if runs else (0, (3, 2)),
      zorder=2,
    )
  )  # fmt: skip
  axes.text(
    left + 0.7, bottom + 0.5, text,
    ha="center", va="center", size=9, zorder=3,
    color="white" if runs else "#7d8896",
  )  # fmt: skip


def _path_line(axes: Axes, left: float, mask: np.ndarray) -> None:
  """The way of the hidden states: through layers that run, around others."""
  middle, around = left + 0.7, left + 1.7
  x, y = [middle], [-0.55]
  for layer, runs in enumerate(mask):
    side = middle if runs else around
    x += [x[-1], side]
    y += [layer, layer]
  x, y = [*x, middle], [*y, 6.35]
  axes.plot(x, y, color=INK, linewidth=1.4, zorder=1, solid_joinstyle="round")
  axes.annotate(
    "",
    (middle, 6.45),
    (middle, 6.1),
    arrowprops={"arrowstyle": "-|>", "color": INK},
  )


def draw_masks() -> None:
  """The paths of a short run, step by step, and their lengths."""
  num_layers, total_steps, lengths = 12, 160, (6, 8, 10, 12)
  schedule = stage_schedule(
    path_lengths=lengths, total_steps=total_steps, num_layers=num_layers
  )
  steps = np.arange(total_steps)
  draws = jax.vmap(raptr(schedule=schedule), (None, 0))(
    jax.random.key(0), steps
  )
  mask = np.asarray(draws.mask)
  figure, (top, bottom) = plt.subplots(
    2, figsize=(7.4, 4.2), sharex=True, height_ratios=(3, 2)
  )
  top.imshow(
    mask.T, aspect="auto", origin="lower", interpolation="none",
    cmap=ListedColormap([SKIPPED, RUNS]),
    extent=(0, total_steps, 0.5, num_layers + 0.5),
  )  # fmt: skip
  top.set(ylabel="layer", yticks=(1, 4, 8, 12))
  bottom.step(steps, mask.sum(1), where="post", color=RUNS, linewidth=0.8,
              label="layers that run")  # fmt: skip
  mean = [float(schedule.path_length(step)) for step in steps]
  bottom.step(steps, mean, where="post", color=INK, label="the stage's mean")
  bottom.set(xlabel="step", ylabel="path length", ylim=(2, 12.6),
             xlim=(0, total_steps), yticks=(4, 6, 8, 10, 12))  # fmt: skip
  bottom.legend(loc="lower right", frameon=False, fontsize=8)
  for axes in (top, bottom):
    axes.spines[["top", "right"]].set_visible(False)
    for boundary in schedule.boundaries:
      axes.axvline(boundary, color=INK, linewidth=0.8, linestyle=":")
  _save(figure, None, "masks")


def draw_executions() -> None:
  """What each execution scans over, for the same draw."""
  mask = np.array([1, 0, 1, 1, 0, 1], bool)
  figure, axes = plt.subplots(figsize=(7.4, 3.9))
  for layer, runs in enumerate(mask):
    _box(axes, 0.0, layer, f"layer {layer + 1}", runs)
  for place, layer in enumerate(np.flatnonzero(mask)):
    _box(axes, 4.0, place + 1, f"layer {layer + 1}", True)
    _arrow(axes, (1.55, layer + 0.5), (3.85, place + 1.5))
  for layer, runs in enumerate(mask):
    _box(axes, 8.6, layer, f"layer {layer + 1}" if runs else "identity", runs)
    axes.text(8.3, layer + 0.5, "run" if runs else "skip", ha="right",
              va="center", size=8, color=INK)  # fmt: skip
  for x, title, text in (
    (0.7, "parameters", "[L, ...], one row a layer"),
    (4.7, "gather", "a loop over the k kept rows"),
    (9.0, "cond", "a loop over all rows,\na condition in each turn"),
  ):
    axes.text(x, -0.45, title, ha="center", weight="bold")
    axes.text(x, -0.75, text, ha="center", va="top", size=9)
  axes.set(xlim=(-0.9, 10.9), ylim=(-1.7, 6.1))
  _save(figure, axes, "executions")


def _arrow(
  axes: Axes, begin: tuple[float, float], end: tuple[float, float]
) -> None:
  axes.annotate(
    "", end, begin, arrowprops={"arrowstyle": "-|>", "color": "#7d8896"}
  )


def _save(figure: plt.Figure, axes: Axes | None, name: str) -> None:
  """Writes a picture; `axes`, if given, are only a place to draw."""
  if axes is not None:
    axes.set_axis_off()
  figure.tight_layout(pad=0.4)
  figure.savefig(IMAGES / f"{name}.svg", metadata={"Date": None})
  plt.close(figure)


def main() -> None:
  """Draws all pictures."""
  matplotlib.use("Agg")
  plt.rcParams |= {
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "raptr_jax",
  }
  IMAGES.mkdir(exist_ok=True)
  draw_paths()
  draw_masks()
  draw_executions()


if __name__ == "__main__":
  main()
