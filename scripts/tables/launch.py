"""Runs training runs, one after another, and shows how far they are."""

import contextlib
import datetime
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tasks import records

from .runs import Run, Setting

LOG_FILE = "log.txt"
SHOWN_LOG_LINES = 12
POLL_SECONDS = 1.0
STEP_LINE = re.compile(r"^step +(\d+)/(\d+) ", re.MULTILINE)
PREPARE = Path(__file__).resolve().parent.parent / "prepare.py"


def prepare_data(run: Run) -> None:
  """Writes the data that the run reads; quick if it is there.

  Raises:
    RuntimeError: it failed, and has said why.
  """
  command = [sys.executable, str(PREPARE), *run.arguments()]
  if subprocess.run(command).returncode:
    raise RuntimeError("the data could not be prepared; see above")


def launch(run: Run, watch: Callable[[], None]) -> bool:
  """Trains a run to its end, from wherever its folder has got to.

  Args:
    run: what to train; its output goes to log.txt in its folder.
    watch: called about once a second while it runs.

  Returns:
    Whether it has finished.

  Raises:
    BlockingIOError: another process is at it.
    KeyboardInterrupt: Ctrl-C or SIGTERM; the run has saved where it is.
  """
  run.folder.mkdir(parents=True, exist_ok=True)
  command = [sys.executable, "-m", "raptr_jax.main", *run.arguments()]
  with (
    _only_launcher(run),
    (run.folder / LOG_FILE).open("ab") as log,
    # In a session of its own, Ctrl-C does not reach it: it gets one signal
    # from here, since a second one would end it before it has saved.
    subprocess.Popen(
      command,
      stdout=log,
      stderr=subprocess.STDOUT,
      env=environment(run.setting),
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
  return process.returncode == 0 and run.is_finished


@contextlib.contextmanager
def _only_launcher(run: Run) -> Iterator[None]:
  try:
    with records.only_writer(run.folder):
      yield
  except BlockingIOError as error:
    raise BlockingIOError(
      f"another process is running {run.folder}: wait for it"
    ) from error


def environment(setting: Setting) -> dict[str, str]:
  """Of a run: programs that runs of a scale have in common compile once."""
  return os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(
      (setting.folder / "compile_cache").absolute()
    ),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }


def log_tail(run: Run) -> str:
  """The last lines that the run has printed."""
  text = (run.folder / LOG_FILE).read_text(encoding="utf-8", errors="replace")
  return "\n".join(text.splitlines()[-SHOWN_LOG_LINES:])


def steps_done(run: Run) -> tuple[int, int] | None:
  """Steps done and steps of the whole run, by its log; None before the first."""
  path = run.folder / LOG_FILE
  lines = STEP_LINE.findall(log_tail(run)) if path.exists() else []
  return (int(lines[-1][0]), int(lines[-1][1])) if lines else None


class Progress(contextlib.AbstractContextManager):
  """Counts runs, predicts the time left, and shows both.

  On a terminal a bar that follows the run; elsewhere a line when a run starts
  and one when it is done.
  """

  def __init__(self):
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    self._console = Console(highlight=False, soft_wrap=True)
    self._bar = Bar(
      TextColumn("{task.description}"),
      BarColumn(),
      TextColumn("eta {task.fields[eta]}"),
      console=self._console,
      disable=not self._console.is_terminal,
      transient=True,
    )
    self._task = self._bar.add_task("", total=None, eta="n/a")
    self._seconds: dict[str, list[float]] = {}
    self._queue: list[Run] = []
    self._done = 0

  def __enter__(self) -> "Progress":
    self._bar.start()
    return self

  def __exit__(self, *error: object) -> None:
    self._bar.stop()

  def note(self, text: str) -> None:
    """Prints lines without disturbing the bar."""
    self._console.print(text, markup=False)

  def start(self, queue: Sequence[Run]) -> None:
    """Takes up the first run of the queue."""
    self._queue = list(queue)
    self._began = time.monotonic()
    self._first_step = (steps_done(queue[0]) or (0, 0))[0]
    if not self._console.is_terminal:
      self.note(f"{self._head()} ...")

  def watch(self) -> None:
    """Looks how far the run is."""
    step, steps = steps_done(self._queue[0]) or (0, 0)
    taken = time.monotonic() - self._began
    expected = self._expected(self._queue[0])
    if step > self._first_step:
      # The rest of it, as fast as so far.
      expected = taken * (1 + (steps - step) / (step - self._first_step))
    left = self._seconds_left(self._queue[1:], expected)
    if left is not None and expected is not None:
      left += max(expected - taken, 0.0)
    self._bar.update(
      self._task,
      description=f"{self._head()}  step {step}/{steps or '?'}",
      completed=self._done + (step / steps if steps else 0.0),
      total=self._done + len(self._queue),
      eta=_clock(left),
    )

  def finish(self, outcome: str) -> None:
    """Ends the run that was started last."""
    head = self._head()
    run, *self._queue = self._queue
    taken = time.monotonic() - self._began
    self._seconds.setdefault(run.row.name, []).append(taken)
    self._done += 1
    eta = _clock(self._seconds_left(self._queue, None))
    self.note(f"{head}: {outcome}, {taken:.0f} s, eta {eta}")

  def _head(self) -> str:
    total = self._done + len(self._queue)
    return f"run {self._done + 1}/{total}  {self._queue[0].name}"

  def _expected(self, run: Run) -> float | None:
    """Seconds that a run takes: as its row did, else as all rows did."""
    every = [second for row in self._seconds.values() for second in row]
    seconds = self._seconds.get(run.row.name) or every
    return statistics.mean(seconds) if seconds else None

  def _seconds_left(
    self, runs: Sequence[Run], fallback: float | None
  ) -> float | None:
    """Seconds that these runs take; None if nothing is known of one."""
    seconds = [self._expected(run) or fallback for run in runs]
    known = [second for second in seconds if second is not None]
    return sum(known) if len(known) == len(seconds) else None


def _clock(seconds: float | None) -> str:
  if seconds is None:
    return "n/a"
  return str(datetime.timedelta(seconds=round(seconds)))
