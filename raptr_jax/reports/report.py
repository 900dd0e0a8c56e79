"""What a run writes, and shows on the screen, while it trains.

A run writes `metrics.jsonl` (one entry per line, a JSON object) and TensorBoard
events in `tensorboard/`; at its end it writes `summary.json`, and draws
`summary.md` and `curves.png` from it and the entries.

Steps count completed steps: the entry of step s is written after s steps, and
the first step of a stage that begins at boundary b is reported as b + 1.

Fields of training entries: `loss`, `accuracy`, `grad_norm`, `path_length`,
`tokens_per_second`, `padding` (share of positions without text), `step_seconds`
and `mfu` (None if the device's peak is unknown) cover the steps since the
previous entry; `learning_rate` and `stage` are those of the last step; `flops`,
`tokens` and `skipped_steps` (that changed nothing, since loss or gradient was
not finite, or the loss a spike) count from the run's start. Padding is not counted as tokens.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from raptr_jax.reports import run_files
from raptr_jax.reports.curves import draw_curves
from raptr_jax.reports.remaining_time import RemainingTime
from raptr_jax.reports.summary_page import write_summary_markdown
from raptr_jax.reports.tensorboard import TensorBoardEvents
from raptr_jax.reports.trackers import Tracker
from raptr_jax.reports.tracking import Tracking
from raptr_jax.tasks import files

# At an address, others see a row of metrics so much later at most: each time,
# the whole file is copied.
PUBLISH_SECONDS = 60.0


class RunReport(contextlib.AbstractContextManager):
  """The record of a run, on disk and on the screen.

  A resumed run (`start_step` > 0) keeps the entries up to its checkpoint, and
  drops later ones, which it will write again. A new run starts an empty record.

  Args:
    model_dir: the run's folder; `begin` creates it if it is missing.
    total_steps: steps of the whole run.
    start_step: step of the checkpoint that the run resumes from, or 0.
    boundaries: steps at which a new stage begins, ascending, without 0.
    path_lengths: [total_steps], number of layers that each step runs, to
      predict the time left; None takes all steps to be equally long.

  Attributes:
    seconds: that earlier processes have spent, by activity.

  Raises:
    OSError: the record of an earlier process is damaged before its last line.
    ValueError: `path_lengths` has the wrong shape.
  """

  def __init__(
    self,
    model_dir: str | os.PathLike[str],
    *,
    total_steps: int,
    start_step: int,
    boundaries: Sequence[int],
    path_lengths: np.ndarray | None = None,
  ):
    if path_lengths is None:
      path_lengths = np.ones(total_steps)
    if np.shape(path_lengths) != (total_steps,):
      raise ValueError(
        f"path_lengths has shape {np.shape(path_lengths)}, expected one"
        f" length for each of the {total_steps} steps."
      )
    self._model_dir = files.path("MODEL_DIR", model_dir)
    self._total_steps = total_steps
    self._start_step = start_step
    self._boundaries = tuple(boundaries)
    self._remaining = RemainingTime(path_lengths, start_step)
    self._evaluated: set[tuple[int, int | str]] = set()
    self._eval_loss: float | None = None
    self._recorded = run_files.read_metrics(model_dir) if start_step else []
    self._kept = self._lines_until(start_step)
    self.seconds = run_files.read_seconds(model_dir) if start_step else {}

  def _lines_until(self, start_step: int) -> str:
    """The lines of the metrics that a resumed run keeps."""
    entries = [e for e in self._recorded if e["step"] <= start_step]
    for entry in entries:
      if entry["split"] == "eval":
        self._evaluated.add((entry["step"], entry["layers"]))
        if entry["layers"] == "full":
          self._eval_loss = entry["loss"]
    return "".join(json.dumps(entry) + "\n" for entry in entries)

  def __enter__(self) -> "RunReport":
    from raptr_jax.tasks.progress import Progress  # Imports rich.

    with contextlib.ExitStack() as stack:
      progress = Progress(self._total_steps, done=self._start_step)
      self._progress = stack.enter_context(progress)
      self._stack = stack.pop_all()
    return self

  def __exit__(self, *error: Any) -> None:
    self._stack.__exit__(*error)  # Trackers note whether the run failed.

  def has_eval(self, step: int, layers: int | str = "full") -> bool:
    """Whether the evaluation of `step` is already on record.

    It is if the run stopped after saving the checkpoint of `step`, since that
    follows the evaluation.
    """
    return (step, layers) in self._evaluated

  def train(self, step: int, entry: Mapping[str, Any]) -> None:
    """Records the steps since the last entry; `entry` has the fields above."""
    self._write({"split": "train", "step": step, **entry})
    seconds_left = self._remaining.update(step, entry["step_seconds"])
    status = _status(
      entry,
      num_stages=len(self._boundaries) + 1,
      eval_loss=self._eval_loss,
      in_log=not self._progress.is_terminal,
    )
    self._progress.update(step, status, seconds_left)

  def evaluation(
    self, step: int, layers: int | str, losses: Mapping[str, Any]
  ) -> None:
    """Records an evaluation after `step` steps.

    Args:
      step: steps done.
      layers: length of the evaluated path; "full" for the full model as the
        last step trained it; "grown" for a stacked model just after growth.
      losses: at least `loss` and `accuracy`.
    """
    head = {"split": "eval", "step": step, "layers": layers}
    self._write({**head, **losses})
    self._evaluated.add((step, layers))
    if isinstance(layers, str):
      self._eval_loss = losses["loss"]
      total = str(self._total_steps)
      self.note(
        f"step {step:>{len(total)}}/{total}  "
        f"{layers + ' model':<14}loss {_shown(losses['loss'], '.4f'):>7}  "
        f"accuracy {_shown(losses['accuracy'], '.4f')}"
      )

  def begin(self, trackers: Sequence[Tracker] = (), config: str = "") -> None:
    """Begins to write, once it is clear that the run can begin.

    Args:
      trackers: of the run; they get the entries, too.
      config: text that describes it, written to config.gin; what has changed in
        it is printed.

    Raises:
      TrackerError: a tracker cannot start.
    """
    self._model_dir.mkdir(parents=True, exist_ok=True)
    enter = self._stack.enter_context
    self._growing = enter(files.growing(self._model_dir))
    path = self._growing.path / run_files.METRICS_FILE
    files.write_text(path, self._kept)
    self._growing.publish()
    self._metrics = enter(path.open("a", encoding="utf-8"))
    events = self._growing.path / "tensorboard"
    self._events = enter(TensorBoardEvents(events, self._start_step))
    tracking = Tracking(
      trackers,
      self._model_dir,
      recorded=self._recorded if self._start_step else None,
      config=config,
      note=self.note,
    )
    self._tracking = enter(tracking)
    self._write_config(config)

  def _write_config(self, text: str) -> None:
    path = self._model_dir / run_files.CONFIG_FILE
    if path.exists():
      old = path.read_text(encoding="utf-8")
      changes = run_files.config_changes(old, text)
      if changes:
        self.note("\n  ".join([f"{path} has changed:", *changes]))
    files.write_text(path, text)

  def write_seconds(self, seconds: Mapping[str, float]) -> None:
    """Writes what the run has spent its time on, for a process that goes on.

    It does so often, and does not wait until the disk has it.
    """
    path = self._growing.path / run_files.SECONDS_FILE
    partial = path.with_name(f"{path.name}.partial")
    with files.naming(path):
      partial.write_text(json.dumps(_plain(seconds)), encoding="utf-8")
      partial.replace(path)

  def publish(self) -> None:
    """Lets a later process find all entries, before it finds a checkpoint."""
    self._growing.publish()

  def note(self, text: str) -> None:
    """Prints a line without disturbing the progress bar."""
    self._progress.note(text)

  def announce(self, text: str) -> None:
    """Shows a text at once, even from a signal handler."""
    self._progress.announce(text)

  def follow(self, steps_done: Callable[[], int]) -> None:
    """Lets the progress bar move between two entries."""
    self._progress.follow(steps_done)

  def activity(
    self, name: str, *, in_log: bool
  ) -> contextlib.AbstractContextManager[None]:
    """Shows what a run does instead of training, see `Progress.activity`."""
    return self._progress.activity(name, in_log=in_log)

  def write_page(self, file_name: str, page: str) -> None:
    """Writes a page to the run's folder, and prints it."""
    files.write_text(self._model_dir / file_name, page)
    self.note(page)

  def write_summary(self, summary: Mapping[str, Any]) -> None:
    """Writes summary.json, and from it summary.md and curves.png.

    Args:
      summary: the fields listed in `run_files.py`, and any others.
    """
    text = json.dumps(_plain(summary), indent=2, allow_nan=False) + "\n"
    self.publish()
    files.write_text(self._model_dir / run_files.SUMMARY_FILE, text)
    draw_curves(self._model_dir)
    write_summary_markdown(self._model_dir)

  def _write(self, entry: Mapping[str, Any]) -> None:
    plain: run_files.Entry = _plain(entry)
    with files.naming(self._model_dir):
      # First, so that TensorBoard lacks no row of metrics.jsonl after a kill.
      self._events.write(plain)
      self._tracking.write(plain)
      self._metrics.write(json.dumps(plain, allow_nan=False) + "\n")
      self._metrics.flush()
    self._growing.publish(after_seconds=PUBLISH_SECONDS)


def _status(
  entry: Mapping[str, Any],
  *,
  num_stages: int,
  eval_loss: float | None,
  in_log: bool,
) -> str:
  """The columns of a training entry; at most 80 characters with the count.

  A log shows the stage through its path length, and prints evaluations as
  lines.
  """
  speed = _thousands(entry["tokens_per_second"])
  columns = [
    *([] if in_log else [f"stage {entry['stage']}/{num_stages}"]),
    f"path {entry['path_length']:4.1f}",
    f"loss {_shown(entry['loss'], '.4f'):>7}",
    *([] if in_log else [f"eval {_shown(eval_loss, '.4f'):>7}"]),
    f"{speed:>4} tok/s",
  ]
  if entry["mfu"] is not None:
    columns.append(f"mfu {entry['mfu']:3.0%}")
  return "  ".join(columns)


def _thousands(value: float) -> str:
  """A rate in at most four characters: 950, 9.5k, 950k, 9.5M."""
  for unit in ("", "k", "M"):
    if value < 999.5:
      digits = 1 if unit and value < 9.95 else 0
      return f"{value:.{digits}f}{unit}"
    value /= 1000
  return f"{value:.0f}G"


def _plain(value: Any) -> Any:
  """The value as JSON types, with None for numbers that are not finite."""
  if isinstance(value, Mapping):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if isinstance(value, np.ndarray | np.generic):
    return _plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _shown(value: float | np.floating | None, form: str) -> str:
  return "n/a" if value is None else format(value, form)
