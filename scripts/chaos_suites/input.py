"""Bad input: each case ends with code 2, one line that helps, and no change."""

import shutil
import subprocess
import time
from collections.abc import Iterator

from chaos_suites.bad_values import VALUES
from chaos_suites.case import Case
from chaos_suites.damage import DAMAGE
from chaos_suites.ground import Ground, contents
from chaos_suites.scene import Outcome, Scene

CASES = (*VALUES, *DAMAGE)
SECONDS = 60  # That a case may take.


def outcomes(scene: Scene) -> Iterator[Outcome]:
  """What became of each case; of a random choice if not all are wanted."""
  ground = Ground(scene.program, scene.folder)
  for case in scene.chosen(CASES):
    yield Outcome(case.name, failure(ground, case))


def failure(ground: Ground, case: Case) -> str:
  """What did not hold in a case; "" if everything did."""
  here = ground.arranged(case)
  before, begun = contents(here), time.monotonic()
  try:
    ended = ground.run(case, here)
  except subprocess.TimeoutExpired:
    return "hangs"
  seconds = time.monotonic() - begun
  found = _failure(ended, case.words_in(here))
  changed = before.items() ^ contents(here).items()
  if not found and seconds > SECONDS:
    found = f"took {seconds:.0f} s"
  if not found and changed:
    found = f"changed {sorted({name for name, _ in changed})[:3]}"
  if not found:
    shutil.rmtree(here)
  return found


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
