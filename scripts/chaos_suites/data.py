"""Kills, and other numbers of processes: what is read stays the same."""

import contextlib
import functools
import json
import socket
from collections.abc import Iterator
from pathlib import Path

from chaos_suites import ending
from chaos_suites.kill import count_rows, killed
from chaos_suites.scene import Outcome, Scene

TROUBLED = f"--gin_file={Path(__file__).with_name('troubled.gin')}"
KILLS = 5
STEPS = 24


def outcomes(scene: Scene) -> Iterator[Outcome]:
  """Five kills of one process; then 1, 2 and 4 processes in turn."""
  log = scene.folder / "unbroken.log"
  _run(scene, scene.folder / "unbroken", log, STEPS)
  unbroken = examples(log)
  for trial in range(scene.trials):
    folder = scene.folder / f"{trial}"
    log = folder.with_suffix(".log")
    if trial % 3 == 2:
      name = "1 -> 2 -> 4 processes"
      for processes, steps in ((1, 8), (2, 16), (4, STEPS)):
        _run(scene, folder, log, steps, processes)
    else:
      name = f"{KILLS} kills"
      for kill in range(KILLS):
        count = 2 + 4 * kill
        killed(
          scene.program,
          _flags(scene, folder, log, STEPS),
          folder,
          functools.partial(_has_rows, count),
          scene.random,
        )
      _run(scene, folder, log, STEPS)
    yield Outcome(name, _difference(unbroken, examples(log)))


def _has_rows(count: int, folder: Path) -> bool:
  return count_rows(folder) >= count


def examples(log: Path) -> dict[int, list[set[str]]]:
  """Examples of each step, once for each time that it was read whole."""
  found: dict[int, dict[int, list[str]]] = {}
  whole: dict[int, list[set[str]]] = {}
  for line in log.read_text("utf-8").splitlines():
    step, process, ids = json.loads(line)
    found.setdefault(step, {})[process] = ids
    read = [x for ids in found[step].values() for x in ids]
    if len(read) == 8:
      whole.setdefault(step, []).append(set(read))
      del found[step]
  return whole


def _difference(
  unbroken: dict[int, list[set[str]]], found: dict[int, list[set[str]]]
) -> str:
  for step, (ids,) in unbroken.items():
    if step < STEPS and any(read != ids for read in found.get(step, [set()])):
      return f"step {step} has other examples"
  return ""


def _flags(scene: Scene, folder: Path, log: Path, steps: int) -> list[str]:
  return [
    *scene.program.flags(
      "bert",
      folder,
      TRAIN_STEPS=str(steps),
      # So that more steps leave those done as they were.
      POLICY="@policies.full()",
      policies__full__num_layers="4",
      LEARNING_RATE_SCHEDULE="@learning_rates.constant()",
      troubled__TroubledDataset__log=repr(str(log)),
    ),
    TROUBLED,
  ]


def _run(
  scene: Scene, folder: Path, log: Path, steps: int, processes: int = 1
) -> None:
  """Trains to a step."""
  flags = _flags(scene, folder, log, steps)
  if processes > 1:
    with socket.socket() as probe:
      probe.bind(("localhost", 0))
      address = f"localhost:{probe.getsockname()[1]}"
    flags += [f"--coordinator={address}", f"--num_processes={processes}"]
  with contextlib.ExitStack() as stack:
    started = [
      stack.enter_context(
        scene.program.started(
          [*flags, *([f"--process_id={i}"] if processes > 1 else [])]
        )
      )
      for i in range(processes)
    ]
    for process in started:
      _, err = process.communicate(timeout=300)
      if process.returncode:
        raise RuntimeError(f"code {process.returncode}: {err[-500:]}")
  if steps not in ending.steps(folder):
    raise RuntimeError(f"{folder} has no checkpoint of step {steps}")
