"""What a run writes while it trains, and what it shows of itself.

A run leaves `metrics.jsonl` (one JSON object a line, the record that all else
is made from), TensorBoard events in `tensorboard/`, and at its end
`summary.json`, `summary.md` and `curves.png`.

Steps count finished steps: a training row of step s is written after s steps,
and the first step of a stage that begins at boundary b is reported as b + 1.

Fields of training rows: `loss`, `accuracy`, `grad_norm`, `path_length`,
`tokens_per_second`, `step_seconds` and `mfu` (None if the device's peak is not
known) are of the steps since the previous row; `learning_rate` and `stage` are
of the last of them; `flops` and `tokens` count from the start of the run.
"""

import contextlib
import difflib
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raptr_jax import plots
from raptr_jax.display import Bar, Display, Lines

# Embedding, output layer and optimizer cost every step something, however
# short its path. As much as one layer is near enough to predict a duration.
OVERHEAD_LAYERS = 1.0
# What a row still counts one row later. The first one, slowed down by
# compilation, is forgotten after some ten.
MEMORY = 0.8


class RemainingTime:
  """Predicts how long a run still takes when its paths grow longer.

  A step of expected path length n is taken to be n + `OVERHEAD_LAYERS` units
  of work. What a unit takes is measured, and recent steps count most.

  Args:
    expected_lengths: [total_steps], mean kept layers of each step.
    start_step: steps done before this process started.
  """

  def __init__(self, expected_lengths: np.ndarray, start_step: int):
    work = np.cumsum(expected_lengths + OVERHEAD_LAYERS)
    self._work_until = np.concatenate([[0.0], work])
    self._step = start_step
    self._seconds = 0.0
    self._work = 0.0

  def update(self, step: int, step_seconds: float) -> float:
    """Returns the seconds left after `step`.

    Args:
      step: steps done.
      step_seconds: mean time of the steps since the last update.
    """
    taken = (step - self._step) * step_seconds
    work = self._work_until[step] - self._work_until[self._step]
    self._seconds = MEMORY * self._seconds + taken
    self._work = MEMORY * self._work + work
    self._step = step
    left = self._work_until[-1] - self._work_until[step]
    return float(self._seconds / self._work * left)


class RunReport(contextlib.AbstractContextManager):
  """The record of a run, on disk and on the screen.

  A resumed run (`start_step` > 0) keeps the rows up to its checkpoint and
  drops the later ones, which it is going to write again. A run from scratch
  starts an empty record.

  Args:
    model_dir: the run's folder; made if missing.
    total_steps: steps of the whole run.
    start_step: steps of the checkpoint that the run goes on from, or 0.
    boundaries: steps at which a new stage begins, ascending, without 0.
    expected_lengths: [total_steps], mean kept layers of each step, for the
      time left; without it all steps are taken to be equally long.

  Raises:
    ValueError: if `expected_lengths` has another length than the run, or the
      record of an earlier process is damaged before its last line.
  """

  def __init__(
    self,
    model_dir: str | os.PathLike[str],
    *,
    total_steps: int,
    start_step: int,
    boundaries: Sequence[int],
    expected_lengths: np.ndarray | None = None,
  ):
    if expected_lengths is None:
      expected_lengths = np.ones(total_steps)
    if np.shape(expected_lengths) != (total_steps,):
      raise ValueError(
        f"expected_lengths has shape {np.shape(expected_lengths)}, but there "
        f"must be one length for each of the {total_steps} steps."
      )
    self._model_dir = Path(model_dir)
    self._total_steps = total_steps
    self._start_step = start_step
    self._boundaries = tuple(boundaries)
    self._remaining = RemainingTime(expected_lengths, start_step)
    self._evaluated: set[tuple[int, int | str]] = set()
    self._eval_loss: float | None = None
    self._model_dir.mkdir(parents=True, exist_ok=True)
    self._go_back_to(start_step)

  def _go_back_to(self, start_step: int) -> None:
    rows = plots.read_metrics(self._model_dir) if start_step else []
    rows = [row for row in rows if row["step"] <= start_step]
    for row in rows:
      if row["split"] == "eval":
        self._evaluated.add((row["step"], row["layers"]))
        if row["layers"] == "full":
          self._eval_loss = row["loss"]
    lines = [json.dumps(row) + "\n" for row in rows]
    _replace_text(self._model_dir / plots.METRICS_FILE, "".join(lines))

  def __enter__(self) -> "RunReport":
    from tensorboardX import SummaryWriter

    with contextlib.ExitStack() as stack:
      path = self._model_dir / plots.METRICS_FILE
      self._metrics = stack.enter_context(path.open("a", encoding="utf-8"))
      # TensorBoard hides what earlier processes wrote from this step on.
      self._events = SummaryWriter(
        str(self._model_dir / "tensorboard"),
        purge_step=self._start_step + 1 if self._start_step else 0,
        flush_secs=30,
        # Its names have whole seconds only: a quick restart would overwrite.
        filename_suffix=f".{self._start_step}",
      )
      stack.callback(self._events.close)
      self._display: Display = (
        Bar(stack, self._total_steps, self._start_step)
        if sys.stdout.isatty()
        else Lines(self._total_steps)
      )
      self._stack = stack.pop_all()
    return self

  def __exit__(self, *error: object) -> None:
    self._stack.close()

  def has_eval(self, step: int, layers: int | str = "full") -> bool:
    """Whether the evaluation of `step` is on record already.

    It is when the run was stopped after the checkpoint of `step`, which is
    saved after the evaluation of `step`.
    """
    return (step, layers) in self._evaluated

  def train(self, step: int, row: Mapping[str, Any]) -> None:
    """Records the training steps since the last row; fields see above."""
    self._write("train", "", {"split": "train", "step": step, **row})
    seconds_left = self._remaining.update(step, row["step_seconds"])
    speed = _shown(row["tokens_per_second"], ",.0f")
    status = (
      f"stage {row['stage']}/{len(self._boundaries) + 1}  "
      f"path {row['path_length']:4.1f}  "
      f"loss {_shown(row['loss'], '.4f'):>7}  "
      f"eval {_shown(self._eval_loss, '.4f'):>7}  "
      f"{speed:>9} tok/s  mfu {_shown(row['mfu'], '.1%'):>5}"
    )
    self._display.train(step, status, _clock(seconds_left))

  def evaluation(
    self, step: int, layers: int | str, row: Mapping[str, Any]
  ) -> None:
    """Records an evaluation after `step` steps.

    Args:
      step: steps done.
      layers: length of the evaluated path; "full" for the whole model as it
        was in the step before; "grown" for a stacked model right after it grew.
      row: at least `loss` and `accuracy`.
    """
    suffix = f"_{layers}" if isinstance(layers, str) else f"_path_{layers}"
    head = {"split": "eval", "step": step, "layers": layers}
    self._write("eval", suffix, {**head, **row})
    self._evaluated.add((step, layers))
    if isinstance(layers, str):
      self._eval_loss = row["loss"]
      self._display.evaluation(
        step,
        f"{layers + ' model':<14}loss {_shown(row['loss'], '.4f'):>7}  "
        f"accuracy {_shown(row['accuracy'], '.4f')}",
      )

  def write_config(self, text: str) -> None:
    """Keeps the configuration in config.gin; tells what has changed in it."""
    path = self._model_dir / "config.gin"
    if path.exists():
      old = path.read_text(encoding="utf-8").splitlines()
      diff = difflib.unified_diff(old, text.splitlines(), n=0)
      changes = [line for line in diff if re.match(r"[+-]\s*\w", line)]
      if changes:
        self.note("\n  ".join([f"{path} has changed:", *changes]))
    _replace_text(path, text)

  def note(self, text: str) -> None:
    """Prints a line without disturbing the display."""
    self._display.note(text)

  def write_infills(self, page: str) -> None:
    """Writes infills.md, and shows it."""
    _replace_text(self._model_dir / plots.INFILLS_FILE, page)
    self.note(page)

  def write_summary(self, summary: Mapping[str, Any]) -> None:
    """Writes summary.json, and summary.md and curves.png made from it.

    Args:
      summary: the fields that `plots` names, and any further ones.
    """
    text = json.dumps(_plain(summary), indent=2, allow_nan=False) + "\n"
    _replace_text(self._model_dir / plots.SUMMARY_FILE, text)
    plots.draw_curves(self._model_dir)
    plots.write_summary_markdown(self._model_dir)

  def _write(self, split: str, suffix: str, row: Mapping[str, Any]) -> None:
    row = _plain(row)
    self._metrics.write(json.dumps(row, allow_nan=False) + "\n")
    self._metrics.flush()
    for name, value in row.items():
      if isinstance(value, int | float) and name not in ("step", "layers"):
        tag = f"{split}/{name}{suffix}"
        self._events.add_scalar(tag, value, row["step"])


class SilentReport(contextlib.AbstractContextManager):
  """What the other processes of a run have: the first one reports for all."""

  def __exit__(self, *error: object) -> None:
    pass

  def has_eval(self, step: int, layers: int | str = "full") -> bool:
    return False

  def train(self, step: int, row: Mapping[str, Any]) -> None:
    pass

  def evaluation(
    self, step: int, layers: int | str, row: Mapping[str, Any]
  ) -> None:
    pass

  def note(self, text: str) -> None:
    pass

  def write_config(self, text: str) -> None:
    pass

  def write_infills(self, page: str) -> None:
    pass

  def write_summary(self, summary: Mapping[str, Any]) -> None:
    pass


def _plain(value: Any) -> Any:
  """The value as JSON has it: no NumPy types, null for what is not finite."""
  if isinstance(value, Mapping):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if isinstance(value, np.ndarray | np.generic):
    return _plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _shown(value: float | None, form: str) -> str:
  return "n/a" if value is None else format(value, form)


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}"


def _replace_text(path: Path, text: str) -> None:
  """Writes a file so that a killed process leaves the old or the new one."""
  temporary = path.with_name(path.name + ".tmp")
  with temporary.open("w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)
