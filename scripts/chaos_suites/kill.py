"""SIGKILL at any moment, and the same command again."""

import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from chaos_suites import ending
from chaos_suites.program import RUNS, Program
from chaos_suites.scene import Outcome, Scene

Moment = Callable[[Path], bool]  # Whether it has come, by the run's folder.


def outcomes(scene: Scene) -> Iterator[Outcome]:
  """Kills runs of all kinds in turn, each once, at moments of all kinds."""
  unbroken: dict[str, Path] = {}
  for trial in range(scene.trials):
    run = RUNS[trial % len(RUNS)]
    if run not in unbroken:
      unbroken[run] = run_unbroken(scene.program, scene.folder, run)
    folder = scene.folder / f"{trial}"
    name, moment = _moment(scene.random, trial)
    flags = scene.program.flags(run, folder)
    reached = killed(scene.program, flags, folder, moment, scene.random)
    again = scene.program.run(flags)
    failure = ended_alike(again, unbroken[run], folder)
    yield Outcome(f"{run}, {name}, {reached}", failure)


def run_unbroken(
  program: Program, folder: Path, run: str, **bindings: str
) -> Path:
  """The folder of a run to compare with; it is run if it is not there."""
  path = folder / f"unbroken_{run}"
  if not (path / "summary.json").exists():
    done = program.run(program.flags(run, path, **bindings))
    if done.returncode:
      raise RuntimeError(f"{run} does not run: {done.stderr}")
  return path


def ended_alike(
  done: "subprocess.CompletedProcess[str]", unbroken: Path, folder: Path
) -> str:
  """What is wrong with a run that has gone on to its end; "" for nothing."""
  if done.returncode:
    return f"code {done.returncode}: {done.stderr.strip()[-300:]}"
  return ending.difference(unbroken, folder)


def killed(
  program: Program,
  flags: list[str],
  folder: Path,
  moment: Moment,
  chance: random.Random,
) -> str:
  """Kills a run at a moment, or a little later; says how far it had come."""
  later = chance.choice((0.0, 0.01, 0.05, 0.2))
  with program.started(flags) as process:
    while process.poll() is None and not moment(folder):
      time.sleep(0.002)
    time.sleep(later)
  return reached(folder)


def reached(folder: Path) -> str:
  """How far a run has come."""
  rows = ending.rows(folder) if (folder / "metrics.jsonl").exists() else []
  last = f"row of step {rows[-1]['step']}" if rows else "no row"
  saved = ending.steps(folder)
  return f"{last}, checkpoint {max(saved) if saved else '-'}"


def _moment(chance: random.Random, trial: int) -> tuple[str, Moment]:
  """A moment, and its name."""
  kinds = ("start-up", "row", "save", "row", "end")
  kind = kinds[trial % len(kinds)]
  if kind == "start-up":
    begin, wait = time.monotonic(), chance.uniform(0.5, 6.0)
    return kind, lambda folder: time.monotonic() - begin > wait
  if kind == "row":
    count = chance.randint(1, 22)
    return kind, lambda folder: count_rows(folder) >= count
  if kind == "save":
    count = chance.randint(1, 5)
    seen: set[str] = set()

    def saving(folder: Path) -> bool:
      seen.update(p.name.split(".")[0] for p in folder.glob("checkpoints/*"))
      return len(seen) >= count

    return kind, saving
  name = chance.choice(("summary.json", "curves.png", "checkpoints/24"))
  return kind, lambda folder: (folder / name).exists()


def count_rows(folder: Path) -> int:
  """Rows of metrics.jsonl."""
  try:
    return (folder / "metrics.jsonl").read_bytes().count(b"\n")
  except FileNotFoundError:
    return 0
