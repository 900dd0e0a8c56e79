"""Trains the runs of a table that are missing, and reports after each one."""

import contextlib
import functools
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from raptr_jax.tasks import files, progress
from tables.pages import write_report
from tables.runs import LOG_FILE, Run, Setting, log_tail, steps_done
from tables.table import Row, Table
from tables.wanted import untuned_notes, wanted_runs

SHOWN_CHANGES = 8
POLL_SECONDS = 1.0
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, "-m", "raptr_jax.main")
# Exit codes of a run that somebody else stopped, with and without saving.
STOPPED = {
  code
  for number in (signal.SIGINT, signal.SIGTERM)
  for code in (128 + number, -number)
}


def train_rows(
  setting: Setting,
  table: Table,
  *,
  rows: Sequence[Row],
  seeds: int,
  tune: bool,
  results: Path,
) -> list[Run]:
  """Trains the runs that rows of a table lack.

  Args:
    setting: scale, folder and overrides.
    table: the table to report after each run.
    rows: the rows to train.
    seeds: number of seeds of each row.
    tune: whether to tune each row's learning rate.
    results: folder of the table's page.

  Returns:
    The runs that failed.

  Raises:
    BlockingIOError: if another process is training one of the runs.
    KeyboardInterrupt: if a signal stopped it, or the current run.
    ChildProcessError: if the data could not be prepared.
    ValueError: if a run was trained with another configuration than its row's.
  """
  failed: list[Run] = []
  wanted = functools.partial(
    wanted_runs, setting, table, rows=rows, seeds=seeds, tune=tune
  )

  def queue() -> list[Run]:
    runs = wanted(failed=failed)
    return [r for r in runs if not r.is_finished and r not in failed]

  check_unchanged(wanted())
  _prepare_all(queue())
  place = None
  with QueueProgress() as display:
    for note in untuned_notes(setting, table, rows=rows, tune=tune):
      display.note(note)
    while left := queue():
      check_unchanged(left[:1])  # Its learning rate may only now be known.
      if not _train_first(left, display):
        failed.append(left[0])
      before, place = place, write_report(results, setting, table, tune=tune)
      if place != before:
        display.note(f"results so far: {place}")
  return failed


def _prepare_all(runs: Sequence[Run]) -> None:
  """Prepares the data of all runs; the rows of a family read the same."""
  for run in {run.row.family: run for run in runs}.values():
    prepare_data(run)


def _train_first(queue: Sequence[Run], display: "QueueProgress") -> bool:
  """Trains the first run of the queue; returns whether it has finished."""
  run = queue[0]
  display.start(queue)
  finished = launch(run, display.watch)
  display.finish(_outcome(run) if finished else "failed")
  if not finished:
    display.note(f"the end of {run.folder}/{LOG_FILE}:\n{log_tail(run)}")
  return finished


def _outcome(run: Run) -> str:
  summary = run.summary() or {}
  loss = summary.get("final_eval_loss")
  return "loss not finite" if loss is None else f"loss {loss:.4f}"


def check_unchanged(runs: Sequence[Run]) -> None:
  """Checks that the runs in their folders match their rows.

  Raises:
    ValueError: if one does not; the message shows the differences.
  """
  for run in runs:
    changes = run.changes()
    if changes:
      shown = "\n  ".join(changes[:SHOWN_CHANGES])
      raise ValueError(
        f"row {run.row.name}: {run.folder} was trained with another"
        f" configuration (- then, + now):\n  {shown}\nDelete the folder to"
        " train it again, or pass the flags that it was trained with."
      )


def prepare_data(run: Run) -> None:
  """Prepares the data that a run reads; returns at once if they are there.

  Raises:
    ChildProcessError: if preparation failed, after it has printed why.
  """
  command = [*PROGRAM, *run.arguments(), "--run_mode=prepare"]
  if subprocess.run(command, env=_environment(run.setting)).returncode:
    raise ChildProcessError("the data could not be prepared; see above")


def launch(run: Run, watch: Callable[[], None]) -> bool:
  """Trains a run to its end, resuming it if it was interrupted.

  Args:
    run: the run; its output goes to log.txt in its folder.
    watch: called about once a second while it trains.

  Returns:
    Whether it has finished.

  Raises:
    BlockingIOError: if another process is training this run.
    KeyboardInterrupt: on Ctrl-C or SIGTERM, here or of the run itself, after
      the run has saved a checkpoint.
  """
  run.folder.mkdir(parents=True, exist_ok=True)
  command = [*PROGRAM, *run.arguments()]
  with files.only_writer(run.folder, "running"):
    code = run_program(command, run.folder / LOG_FILE, run.setting, watch)
  return code == 0 and run.is_finished


def run_program(
  command: Sequence[str],
  log_file: Path,
  setting: Setting,
  watch: Callable[[], None],
) -> int:
  """Runs a program to its end; returns its exit code.

  Args:
    command: the program.
    log_file: gets its output.
    setting: whose cache it shares.
    watch: called about once a second while it runs.

  Raises:
    KeyboardInterrupt: on Ctrl-C or SIGTERM, here or of the program itself,
      which may save first.
  """
  with (
    log_file.open("ab") as log,
    # In its own session Ctrl-C does not reach it. It gets one signal from here,
    # since a second one would end it before it has saved.
    subprocess.Popen(
      command,
      stdout=log,
      stderr=subprocess.STDOUT,
      env=_environment(setting),
      start_new_session=True,
    ) as process,
  ):
    try:
      while process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
          process.wait(POLL_SECONDS)
        watch()
    except KeyboardInterrupt:
      process.terminate()
      process.wait()
      raise
  if process.returncode in STOPPED:
    raise KeyboardInterrupt
  return process.returncode


def _environment(setting: Setting) -> dict[str, str]:
  """A run's environment.

  It imports this checkout's package, whatever else is installed or in the
  current folder, and shares a compilation cache with all runs of the setting.
  """
  paths = (str(ROOT), os.environ.get("PYTHONPATH", ""), os.getcwd())
  return os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    "PYTHONSAFEPATH": "1",  # Else the current folder comes first.
    "JAX_COMPILATION_CACHE_DIR": str(
      (setting.folder / "compile_cache").absolute()
    ),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }


class QueueProgress(contextlib.AbstractContextManager["QueueProgress"]):
  """Shows how many runs are done, and predicts the time left.

  On a terminal a bar follows the current run. A log gets one line when a run
  starts and one when it ends.
  """

  def __init__(self) -> None:
    self._display = progress.Progress(0, unit="run")
    self._seconds: dict[str, list[float]] = {}  # Of each row's runs.
    self._queue: list[Run] = []
    self._done = 0
    self._began = 0.0
    self._first_step = 0

  def __enter__(self) -> "QueueProgress":
    self._display.__enter__()
    return self

  def __exit__(self, *error: object) -> None:
    self._display.__exit__(*error)

  def note(self, text: str) -> None:
    """Prints lines without disturbing the bar."""
    self._display.note(text)

  def start(self, queue: Sequence[Run]) -> None:
    """Starts the first run of the queue."""
    self._queue = list(queue)
    self._began = time.monotonic()
    self._first_step = (steps_done(queue[0]) or (0, 0))[0]
    if not self._display.is_terminal:
      self.note(f"{self._head()} ...")

  def watch(self) -> None:
    """Moves the bar to where the current run is."""
    if not self._display.is_terminal:
      return
    run, *later = self._queue
    step, steps = steps_done(run) or (0, 0)
    taken = time.monotonic() - self._began
    expected = self._expected(run)
    if step > self._first_step:
      # The remaining steps take as long as those so far.
      expected = taken * (1 + (steps - step) / (step - self._first_step))
    left = self._seconds_left(later, expected)
    if left is not None and expected is not None:
      left += max(expected - taken, 0.0)
    self._display.update(
      self._done + (step / steps if steps else 0.0),
      f"{run.name}  step {step}/{steps or '?'}",
      left,
      total=self._done + len(self._queue),
    )

  def finish(self, outcome: str) -> None:
    """Ends the current run."""
    head = self._head()
    run, *self._queue = self._queue
    taken = time.monotonic() - self._began
    self._seconds.setdefault(run.row.name, []).append(taken)
    self._done += 1
    eta = progress.clock(self._seconds_left(self._queue, None))
    self.note(f"{head}: {outcome}, {taken:.0f} s, eta {eta}")

  def _head(self) -> str:
    total = self._done + len(self._queue)
    return f"run {self._done + 1}/{total}  {self._queue[0].name}"

  def _expected(self, run: Run) -> float | None:
    """Mean seconds of its row's runs so far, or else of all runs so far."""
    every = [second for row in self._seconds.values() for second in row]
    seconds = self._seconds.get(run.row.name) or every
    return statistics.mean(seconds) if seconds else None

  def _seconds_left(
    self, runs: Sequence[Run], fallback: float | None
  ) -> float | None:
    """Seconds that these runs take; None if one cannot be predicted."""
    seconds = [self._expected(run) or fallback for run in runs]
    known = [second for second in seconds if second is not None]
    return sum(known) if len(known) == len(seconds) else None
