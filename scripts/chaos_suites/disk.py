"""Disks without room, folders that cannot be written to, folders in use."""

import contextlib
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from chaos_suites import ending
from chaos_suites.ground import contents
from chaos_suites.kill import count_rows, ended_alike, run_unbroken
from chaos_suites.program import SECONDS
from chaos_suites.scene import Outcome, Scene

Result = tuple[str, str]  # The name of a trial, and what did not hold.
FILE_BYTES = 150_000  # Less than the largest file of a checkpoint.


def outcomes(scene: Scene) -> Iterator[Outcome]:
  """Kinds of trouble in turn; small and read-only disks where they can be made.

  Where not, files have a limited size, and a folder no write permission.
  """
  unbroken = run_unbroken(scene.program, scene.folder, "bert")
  has_disks = _can_make_disks(scene.folder / "disk")
  kinds = (
    _small_disk if has_disks else _small_files,
    _in_use,
    _read_only_disk if has_disks else _read_only_folder,
    _small_files,
  )
  for trial in range(scene.trials):
    kind = kinds[trial % len(kinds)]
    folder = scene.folder / f"{trial}"
    name, failure = kind(scene, folder, unbroken)
    yield Outcome(name, failure)


def _small_disk(scene: Scene, folder: Path, unbroken: Path) -> Result:
  """A disk that fills, and is enlarged after the run has ended."""
  size = scene.random.randint(1_000, 3_000)
  name = f"a disk of {size / 1000} MB"
  with _disk(folder, f"size={size}k"):
    flags = scene.program.flags("bert", folder / "run")
    failure = _told(scene.program.run(flags), "MODEL_DIR")
    if failure:
      return name, failure
    subprocess.run(
      ["mount", "-o", "remount,size=100m", str(folder)], check=True
    )
    again = scene.program.run(flags)
    return name, ended_alike(again, unbroken, folder / "run")


def _small_files(scene: Scene, folder: Path, unbroken: Path) -> Result:
  """A save that fails after it has begun."""
  name = "files cannot grow"
  flags = scene.program.flags("bert", folder)
  with scene.program.started(flags) as process:
    while count_rows(folder) < 1 and process.poll() is None:
      time.sleep(0.002)
    limit = (FILE_BYTES, FILE_BYTES)
    with contextlib.suppress(ProcessLookupError):  # It has ended.
      resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limit)
    out, err = process.communicate(timeout=SECONDS)
    done = subprocess.CompletedProcess(flags, process.returncode, out, err)
  # TensorStore prints tracebacks of its own.
  failure = _told(done, "was not saved", quiet=False)
  if failure:
    return name, failure
  return name, ended_alike(scene.program.run(flags), unbroken, folder)


def _read_only_disk(scene: Scene, folder: Path, unbroken: Path) -> Result:
  with _disk(folder, "size=100m"):

    def protect() -> None:
      subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)

    return "a read-only disk", _refused(scene, folder / "run", protect)


def _read_only_folder(scene: Scene, folder: Path, unbroken: Path) -> Result:
  run = folder / "run"

  def protect() -> None:
    run.chmod(0o555)

  try:
    return "a read-only folder", _refused(scene, run, protect)
  finally:
    run.chmod(0o755)


def _refused(scene: Scene, run: Path, protect: Callable[[], None]) -> str:
  """What does not hold of a run that was stopped, and is then protected."""
  shutil.copytree(scene.program.finished, run)
  last = max(ending.steps(run))
  shutil.rmtree(run / "checkpoints" / str(last))
  (run / "summary.json").unlink()
  protect()
  before = contents(run)
  failure = _told(scene.program.run(scene.program.flags("bert", run)), str(run))
  return failure or ("it has changed" if contents(run) != before else "")


def _in_use(scene: Scene, folder: Path, unbroken: Path) -> Result:
  """A second run while the first one is at it."""
  after = scene.random.randint(1, 12)
  flags = scene.program.flags("bert", folder)
  with scene.program.started(flags) as first:
    while count_rows(folder) < after and first.poll() is None:
      time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)  # So that it does not end meanwhile.
    failure = _told(scene.program.run(flags), f"process {first.pid}")
    first.send_signal(signal.SIGCONT)
    out, err = first.communicate(timeout=SECONDS)
    done = subprocess.CompletedProcess(flags, first.returncode, out, err)
  failure = failure or ended_alike(done, unbroken, folder)
  return f"in use, after {after} rows", failure


def _told(
  done: "subprocess.CompletedProcess[str]", word: str, *, quiet: bool = True
) -> str:
  """What is wrong with a run that has to end with one error."""
  last = done.stderr.strip().splitlines()[-1:]
  errors = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
  if done.returncode != 2:
    return f"code {done.returncode}: {last}"
  if len(errors) != 1 or word not in errors[0]:
    return f"not told: {errors}"
  if quiet and "Traceback" in done.stderr:
    return f"a traceback: {done.stderr[-300:]}"
  return ""


def _can_make_disks(folder: Path) -> bool:
  """Whether this process may mount a disk, as root often may."""
  try:
    with _disk(folder, "size=1m"):
      return True
  except (OSError, subprocess.CalledProcessError):
    return False


@contextlib.contextmanager
def _disk(folder: Path, options: str) -> Iterator[None]:
  """A disk of its own at a folder."""
  folder.mkdir(parents=True)
  command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
  subprocess.run(command, check=True, capture_output=True)
  try:
    yield
  finally:
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
