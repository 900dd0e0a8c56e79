"""Where cases are tried: each in a folder with copies of data and of a run."""

import hashlib
import shutil
import subprocess
from pathlib import Path

from chaos_suites.case import Case
from chaos_suites.program import Program


class Ground:
  """Makes the folders of cases, and runs the program in them.

  Args:
    program: starts the program.
    folder: for the folders of the cases.
  """

  def __init__(self, program: Program, folder: Path):
    self._program, self._folder = program, folder

  def arranged(self, case: Case) -> Path:
    """The folder of a case, with all that the case begins with."""
    here = self._folder / case.name.replace(" ", "-")
    here.mkdir(parents=True)
    if case.has_run:
      shutil.copytree(self._program.finished, here / "run")
    if case.has_run or case.has_data:
      shutil.copytree(self._program.prepared, here / "data")
    case.arrange(here)
    return here

  def run(self, case: Case, here: Path) -> subprocess.CompletedProcess[str]:
    """Runs the program as a case wants it."""
    flags = case.flags_in(here)
    if not case.alone:
      data = repr(str(here / "data"))
      good = self._program.flags(case.run, here / "run", DATA_DIR=data)
      flags = [*good, *flags]
    return self._program.run(flags)


def contents(folder: Path) -> dict[str, str]:
  """The hash of each file below a folder, by its name there; locks left out."""
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.rglob("*")
    if path.is_file() and path.suffix != ".lock"
  }
