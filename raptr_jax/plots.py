"""Turns the files of a run into a page and a picture: summary.md, curves.png.

Both are made from `metrics.jsonl` (rows as in `report.py`) and `summary.json`,
so they can be made again from a run's folder alone. Fields of the summary:

  final_eval_loss: of the full model, after the last step
  unigram_loss: of always predicting the token frequencies; may be null
  flop_factor_nominal, flop_factor_spent: FLOPs of running all layers in every
    step, over those of the run as planned and as really spent
  train_seconds, steps, parameters, num_layers, date, hardware
  versions: of Python and of the packages that matter
  boundaries: steps at which a new stage begins, ascending, without 0
  stage_path_lengths: mean expected path length of each stage

Any other field is listed at the end of the page.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
  from matplotlib.axes import Axes

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
INFILLS_FILE = "infills.md"

Row: TypeAlias = dict[str, Any]
Place: TypeAlias = Callable[[np.ndarray], np.ndarray]  # Steps to x positions.

# Okabe and Ito's colours, which the colour-blind can tell apart.
TRAIN_COLOR = "#0072B2"
EVAL_COLOR = "#D55E00"
QUIET_COLOR = "#666666"


def read_metrics(model_dir: str | os.PathLike[str]) -> list[Row]:
  """Reads the rows of metrics.jsonl; none if there is no such file.

  A last line that is no JSON was torn when the process was killed: left out.

  Raises:
    ValueError: if another line is no JSON.
  """
  path = Path(model_dir) / METRICS_FILE
  lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
  rows = []
  for number, line in enumerate(lines, start=1):
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError as error:
      if number < len(lines):
        raise ValueError(f"{path}:{number} is no JSON: {line!r}") from error
  return rows


def write_summary_markdown(model_dir: str | os.PathLike[str]) -> None:
  """Writes summary.md: what came out of the run, for people to read."""
  run = _read_run(model_dir)
  headline = {
    name: form(run.summary[field]) for field, (name, form) in _HEADLINE.items()
  }
  stages = ("stage", "from step", "path length")
  losses = ("just before its start", "just after its start", "at its end")
  lengths = [(layers, _loss(loss)) for layers, loss in run.by_length.items()]
  kinds = run.summary.get("loss_by_kind", {})
  shown = {*_HEADLINE, "boundaries", "stage_path_lengths", "loss_by_kind"}
  others = {
    name: run.summary[name] for name in run.summary if name not in shown
  }
  sections = [
    f"# {Path(model_dir).resolve().name}",
    _table(("result", ""), headline.items()),
    "![Loss over steps, over FLOPs and by path length](curves.png)",
    "## Stages\n\nThe three losses are evaluations of the full model.",
    _table((*stages, *losses), _stage_rows(run)),
  ]
  if lengths:
    sections.append("## Path lengths at the end of the run")
    sections.append(_table(("layers", "evaluation loss"), lengths))
  if kinds:
    sections.append("## Kinds of held-out rows")
    losses_of_kinds = [(kind, _loss(loss)) for kind, loss in kinds.items()]
    sections.append(_table(("kind", "evaluation loss"), losses_of_kinds))
  if others:
    sections.append("## Further fields")
    sections.append(_table(("field", ""), _short(others).items()))
  text = "\n\n".join(sections) + "\n"
  (Path(model_dir) / "summary.md").write_text(text, encoding="utf-8")


def draw_curves(model_dir: str | os.PathLike[str]) -> None:
  """Draws curves.png: loss over steps, over FLOPs and by path length."""
  from matplotlib.figure import Figure
  from matplotlib.ticker import EngFormatter

  run = _read_run(model_dir)
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


@dataclasses.dataclass(frozen=True)
class _Run:
  """The series of a run. Losses that were not finite are NaN.

  Attributes:
    summary: the fields of summary.json.
    steps: of the training rows.
    losses: training losses at `steps`.
    flops: training FLOPs until `steps`, with a 0 for the start before them.
    full: evaluation loss of the full model, by step.
    by_length: last evaluation losses, by the number of layers.
  """

  summary: dict[str, Any]
  steps: np.ndarray
  losses: np.ndarray
  flops: np.ndarray
  full: dict[int, float]
  by_length: dict[int, float]

  def flops_at(self, steps: np.ndarray) -> np.ndarray:
    """FLOPs until `steps`, on lines between the training rows."""
    return np.interp(steps, np.append(0, self.steps), self.flops)


def _read_run(model_dir: str | os.PathLike[str]) -> _Run:
  text = (Path(model_dir) / SUMMARY_FILE).read_text(encoding="utf-8")
  summary = json.loads(text)
  rows = read_metrics(model_dir)
  train = [row for row in rows if row["split"] == "train"]
  evals = [row for row in rows if row["split"] == "eval"]
  for row in train + evals:
    row["loss"] = np.nan if row["loss"] is None else row["loss"]
  full = {row["step"]: row["loss"] for row in evals if row["layers"] == "full"}
  paths = [row for row in evals if not isinstance(row["layers"], str)]
  last = max((row["step"] for row in paths), default=0)
  by_length = {r["layers"]: r["loss"] for r in paths if r["step"] == last}
  if full:
    by_length[summary["num_layers"]] = full[max(full)]
  return _Run(
    summary=summary,
    steps=np.array([row["step"] for row in train], float),
    losses=np.array([row["loss"] for row in train], float),
    flops=np.array([0, *(row["flops"] for row in train)], float),
    full=dict(sorted(full.items())),
    by_length=dict(sorted(by_length.items())),
  )


def _draw_losses(axes: "Axes", run: _Run, place: Place) -> None:
  """Draws training and evaluation loss, with `place` giving the x axis."""
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
  # The first steps fall from log(vocabulary size); an axis that held them
  # would flatten all that follows.
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
  """Marks where stages begin, with the path length above each stage."""
  joints = place(np.array([0, *summary["boundaries"], summary["steps"]], float))
  for joint in joints[1:-1]:
    axes.axvline(joint, color=QUIET_COLOR, linestyle="--", linewidth=0.8)
  # A run without training rows has no FLOPs, but an axis needs a length.
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


def _draw_lengths(axes: "Axes", run: _Run) -> None:
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


def _smoothed(run: _Run) -> np.ndarray:
  """Centred running means of the training loss.

  Each stage by itself: the jump between two stages is real.
  """
  joints = np.searchsorted(run.steps, run.summary["boundaries"], side="right")
  stages = np.split(run.losses, joints)
  return np.concatenate(
    [_running_mean(stage, 1 + len(run.losses) // 50) for stage in stages]
  )


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
  """Means over 2 x width - 1 values around each, of those that are finite."""
  finite = np.isfinite(values)
  sums = np.append(0.0, np.cumsum(np.where(finite, values, 0.0)))
  counts = np.append(0, np.cumsum(finite))
  middle = np.arange(len(values))
  first = np.maximum(middle - width + 1, 0)
  last = np.minimum(middle + width, len(values))
  count = counts[last] - counts[first]
  mean = (sums[last] - sums[first]) / np.maximum(count, 1)
  return np.where(count > 0, mean, np.nan)


def _stage_rows(run: _Run) -> list[Sequence[object]]:
  starts = [0, *run.summary["boundaries"]]
  ends = [*run.summary["boundaries"], run.summary["steps"]]
  rows: list[Sequence[object]] = []
  for i, length in enumerate(run.summary["stage_path_lengths"]):
    start, end = starts[i], ends[i]
    inside = [step for step in run.full if start < step <= end]
    after = run.full[inside[0]] if inside else None
    before, at_end = run.full.get(start), run.full.get(end)
    losses = [_loss(loss) for loss in (before, after, at_end)]
    rows.append((i + 1, f"{start:,}", f"{length:.3g}", *losses))
  return rows


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join(
    "| " + " | ".join(str(cell) for cell in line) + " |" for line in lines
  )


def _loss(value: float | None) -> str:
  return "n/a" if value is None else f"{value:.4f}"


def _short(fields: dict[str, Any]) -> dict[str, Any]:
  """Fields with their floats as people would write them."""
  return {
    name: f"{value:.5g}" if isinstance(value, float) else value
    for name, value in fields.items()
  }


def _factor(value: float | None) -> str:
  return "n/a" if value is None else f"{value:.3f}"


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours} h {minutes} min {seconds} s"


def _versions(versions: dict[str, str]) -> str:
  return ", ".join(f"{name} {number}" for name, number in versions.items())


_HEADLINE: dict[str, tuple[str, Callable[[Any], str]]] = {
  "final_eval_loss": ("final evaluation loss, full model", _loss),
  "unigram_loss": ("loss of the unigram model", _loss),
  "flop_factor_nominal": ("FLOP factor, nominal", _factor),
  "flop_factor_spent": ("FLOP factor, spent", _factor),
  "train_seconds": ("training time", _duration),
  "steps": ("steps", "{:,}".format),
  "parameters": ("parameters", "{:,}".format),
  "num_layers": ("layers", str),
  "hardware": ("hardware", str),
  "versions": ("versions", _versions),
  "date": ("date", str),
}
