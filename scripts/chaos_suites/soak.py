"""A long run, killed every minute, beside one that is left alone."""

import concurrent.futures
import dataclasses
import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from chaos_suites import ending
from chaos_suites.scene import Outcome, Scene

SECONDS = 60.0  # From the start of a process until it is killed.
STEPS_A_SECOND = 60  # So a run has that many steps for each second of a trial.
LOOK_SECONDS = 0.5
GROWTH = 1.05  # Of memory.
FILES = 4  # By which the number of open files may differ.
SAMPLES = 60  # Of a process, at least, for a word about its growth.
LIVES = 6  # Of a run, likewise.
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclasses.dataclass(frozen=True)
class Held:
  """What a process holds.

  Attributes:
    megabytes: resident memory.
    files: open files.
  """

  megabytes: float
  files: float


def outcomes(scene: Scene) -> Iterator[Outcome]:
  """A run that is killed about as often as there are trials.

  The run beside it shows what a process holds that lives all the time.
  """
  steps = int(scene.trials * SECONDS * STEPS_A_SECOND)
  bindings = {
    "TRAIN_STEPS": str(steps),
    "EVAL_PERIOD": "1000",
    "CHECKPOINT_PERIOD": "200",
    "experiment__Experiment__report_period": "50",
  }
  alone, killed = scene.folder / "alone", scene.folder / "killed"
  _ = scene.program.prepared  # Before two programs need the data.
  begun = time.monotonic()
  with (
    concurrent.futures.ThreadPoolExecutor(2) as pool,
    scene.program.started(
      scene.program.flags("bert", alone, **bindings)
    ) as process,
  ):
    reading = pool.submit(process.communicate)
    watching = pool.submit(_watched, process)
    lives = _killed_until_done(scene, killed, bindings)
    _, err = reading.result()
    samples = watching.result()
  if process.returncode:
    raise RuntimeError(f"code {process.returncode}: {err[-500:]}")
  minutes = (time.monotonic() - begun) / 60
  name = f"{steps:,} steps, {len(lives) - 1} kills in {minutes:.0f} min"
  yield Outcome(name, ending.difference(alone, killed))
  yield _flat("all the time", samples, SAMPLES)
  most = [_most(life) for life in lives[:-1]]
  yield _flat("from life to life", most, LIVES)


def _killed_until_done(
  scene: Scene, folder: Path, bindings: dict[str, str]
) -> list[list[Held]]:
  """What each process of a run held, until one comes to the end."""
  lives: list[list[Held]] = []
  flags = scene.program.flags("bert", folder, **bindings)
  while True:
    with (
      concurrent.futures.ThreadPoolExecutor(1) as pool,
      scene.program.started(flags) as process,
    ):
      reading = pool.submit(process.communicate)
      before = max(ending.steps(folder), default=0)
      life = _watched(process, SECONDS)
      # On a slow machine it would otherwise begin at the same step for ever.
      while process.poll() is None and before == max(
        ending.steps(folder), default=0
      ):
        life += _watched(process, LOOK_SECONDS)
      lives.append(life)
      ended = process.poll()
      if ended is None:
        process.kill()
      _, err = reading.result()
      if ended:
        raise RuntimeError(f"code {ended}: {err[-500:]}")
    if ended == 0:
      return lives


def _watched(
  process: "subprocess.Popen[str]", seconds: float = float("inf")
) -> list[Held]:
  """Samples of what a process holds, until its end or for so many seconds."""
  samples = []
  begun = time.monotonic()
  folder = Path("/proc", str(process.pid))
  while process.poll() is None and time.monotonic() - begun < seconds:
    try:
      pages = int((folder / "statm").read_text().split()[1])
      files = len(list((folder / "fd").iterdir()))
    except (OSError, IndexError):  # It has just ended.
      break
    samples.append(Held(pages * PAGE / 1e6, files))
    time.sleep(LOOK_SECONDS)
  return samples


def _most(samples: Sequence[Held]) -> Held:
  return Held(
    max(x.megabytes for x in samples),
    statistics.median(x.files for x in samples),
  )


def _flat(name: str, samples: Sequence[Held], enough: int) -> Outcome:
  """Whether the last third of some samples holds as much as the second."""
  if len(samples) < enough:
    return Outcome(f"{name}: too short to tell")
  third = len(samples) // 3
  middle, last = (
    Held(
      statistics.median(x.megabytes for x in part),
      statistics.median(x.files for x in part),
    )
    for part in (samples[third : 2 * third], samples[2 * third :])
  )
  shown = (
    f"{middle.megabytes:.0f}, then {last.megabytes:.0f} MB;"
    f" {middle.files:.0f}, then {last.files:.0f} files"
  )
  grown = (
    last.megabytes > GROWTH * middle.megabytes
    or abs(last.files - middle.files) > FILES
  )
  return Outcome(f"{name}: {shown}", "it grows" if grown else "")
