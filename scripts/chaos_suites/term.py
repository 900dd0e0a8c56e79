"""SIGTERM and SIGINT, to one process or to one of two."""

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from chaos_suites import ending
from chaos_suites.kill import count_rows, ended_alike, reached, run_unbroken
from chaos_suites.scene import Outcome, Scene

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
AT_ONCE = 5.0  # Seconds in which a second signal ends.


def outcomes(scene: Scene) -> Iterator[Outcome]:
  """Signals in turn; of ten, three to one of two processes, two at start-up."""
  unbroken = run_unbroken(scene.program, scene.folder, "bert")
  for trial in range(scene.trials):
    number = tuple(CODES)[trial % 2]
    folder = scene.folder / f"{trial}"
    kind = ("one", "two", "one", "twice", "one", "start")[trial % 6]
    after = 0 if kind == "start" else scene.random.randint(1, 16)
    name = f"{signal.Signals(number).name} after {after} rows, {kind}"
    if kind == "two":
      failure = _two(scene, folder, number, after)
    else:
      failure = _one(scene, folder, number, after, kind, unbroken)
    yield Outcome(f"{name}: {reached(folder)}", failure)


def _one(
  scene: Scene,
  folder: Path,
  number: signal.Signals,
  after: int,
  kind: str,
  unbroken: Path,
) -> str:
  flags = scene.program.flags("bert", folder)
  with scene.program.started(flags) as process:
    if kind == "start":
      time.sleep(scene.random.uniform(1.0, 4.0))
    _wait_for_rows(folder, after, process)
    process.send_signal(number)
    begun = time.monotonic()
    if kind == "twice":
      time.sleep(0.01)
      process.send_signal(number)
    out, err = process.communicate(timeout=60)
    seconds = time.monotonic() - begun
  if kind == "twice" and seconds > AT_ONCE:
    return f"the second signal took {seconds:.1f} s"
  if kind not in ("start", "twice"):
    failure = _saved(process.returncode, number, out, folder)
    if failure:
      return f"{failure}: {err[-200:]}"
  elif process.returncode not in (CODES[number], -number):
    return f"code {process.returncode}: {err[-200:]}"
  if "Traceback" in err:
    return f"a traceback: {err[-200:]}"
  return ended_alike(scene.program.run(flags), unbroken, folder)


def _two(scene: Scene, folder: Path, number: signal.Signals, after: int) -> str:
  """A signal to one of two processes of a device each: both save."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
  flags = [
    *scene.program.flags("bert", folder, TRAIN_STEPS="2000"),
    f"--coordinator={address}",
    "--num_processes=2",
  ]
  start = scene.program.started
  with (
    start([*flags, "--process_id=0"]) as first,
    start([*flags, "--process_id=1"]) as second,
  ):
    _wait_for_rows(folder, after, first)
    receiver = scene.random.choice((first, second))
    receiver.send_signal(number)
    ends = [process.communicate(timeout=90) for process in (first, second)]
  other = second if receiver is first else first
  if other.returncode not in CODES.values():
    return f"the other process ended with {other.returncode}: {ends}"[-300:]
  return _saved(receiver.returncode, number, ends[0][0], folder)


def _wait_for_rows(
  folder: Path, count: int, process: "subprocess.Popen[str]"
) -> None:
  while count_rows(folder) < count and process.poll() is None:
    time.sleep(0.002)


def _saved(code: int, number: signal.Signals, out: str, folder: Path) -> str:
  """What is wrong with a stop: its code, its message, or its checkpoint."""
  if code != CODES[number]:
    return f"code {code}, expected {CODES[number]}"
  saved = ending.steps(folder)
  last = max(saved) if saved else None
  if f"stopped after step {last}: run it again to resume" not in out:
    return f"no message about step {last}: {out[-200:]}"
  return ""
