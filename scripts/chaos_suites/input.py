"""Bad input: each case ends with code 2, one line that helps, and no change."""

import functools
import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from chaos_suites.bad_values import VALUES
from chaos_suites.case import Case
from chaos_suites.damage import DAMAGE
from chaos_suites.program import Program
from chaos_suites.scene import Outcome, Scene

CASES = (*VALUES, *DAMAGE)
SECONDS = 60  # That a case may take.


def outcomes(scene: Scene) -> Iterator[Outcome]:
  """What became of each case; a random choice if not all are wanted."""
  cases = list(CASES)
  if scene.trials < len(cases):
    cases = scene.random.sample(cases, scene.trials)
  ground = Ground(scene.program, scene.folder)
  for case in cases:
    yield Outcome(case.name, ground.failure(case))


class Ground:
  """Where cases are tried: each in a folder with a copy of a finished run.

  Args:
    program: starts the program.
    folder: for the finished run, and for the cases.
  """

  def __init__(self, program: Program, folder: Path):
    self._program, self._folder = program, folder

  @functools.cached_property
  def _finished(self) -> Path:
    """The folder of a finished run, whose data is prepared, too."""
    folder = self._folder / "finished"
    data = repr(str(folder / "data"))
    flags = self._program.flags("bert", folder / "run", DATA_DIR=data)
    finished = self._program.run(flags)
    if finished.returncode:
      raise RuntimeError(finished.stderr)
    return folder

  def failure(self, case: Case) -> str:
    """What did not hold in a case; "" if everything did."""
    here = self._folder / case.name.replace(" ", "-")
    shutil.copytree(self._finished, here)
    if not case.has_run:
      shutil.rmtree(here / "run")
    case.arrange(here)
    before = _contents(here)
    begun = time.monotonic()
    try:
      ended = self._program.run(self._flags(case, here))
    except subprocess.TimeoutExpired:
      return "hangs"
    seconds = time.monotonic() - begun
    sys.stdout.flush()
    found = _failure(ended, case.words_in(here))
    if not found and seconds > SECONDS:
      found = f"took {seconds:.0f} s"
    changed = before.items() ^ _contents(here).items()
    if not found and changed:
      found = f"changed {sorted({name for name, _ in changed})[:3]}"
    if not found:
      shutil.rmtree(here)
    return found

  def _flags(self, case: Case, here: Path) -> list[str]:
    """The command line of a case."""
    if case.alone:
      return case.flags_in(here)
    flags = self._program.flags(
      case.run, here / "run", DATA_DIR=repr(str(here / "data"))
    )
    return [*flags, *case.flags_in(here)]


def _failure(ended: subprocess.CompletedProcess[str], words: list[str]) -> str:
  """What is wrong with how the program ended."""
  lines = ended.stderr.splitlines()
  errors = [line for line in lines if line.startswith("error: ")]
  if "Traceback" in ended.stderr:
    return f"traceback: {lines[-1]}"
  if ended.returncode != 2:
    return f"code {ended.returncode}: {' / '.join(lines[-2:])}"
  if len(errors) != 1:
    return f"{len(errors)} lines of errors: {' / '.join(lines[-2:])}"
  missing = [word for word in words if word not in errors[0]]
  return f"lacks {missing}: {errors[0]}" if missing else ""


def _contents(folder: Path) -> dict[str, str]:
  """The hash of each file below a folder, by its name there."""
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.rglob("*")
    if path.is_file() and path.suffix != ".lock"
  }
