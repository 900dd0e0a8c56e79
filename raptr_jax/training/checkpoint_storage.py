"""Where checkpoints lie: where Orbax writes them, or copies of what it writes.

Orbax writes to folders of this machine and to gs://. Checkpoints at another
address, such as s3://bucket/run, are written to a temporary folder and copied.
There a checkpoint counts once an empty object beside its folder says so, since
its own objects appear one after the other.
"""

import concurrent.futures
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from raptr_jax.tasks import files
from raptr_jax.tasks.files import AnyPath

COMPLETE = ".complete"  # Ending of the object that says that a copy is whole.


class Storage(contextlib.AbstractContextManager["Storage"]):
  """A folder to which Orbax writes.

  Attributes:
    path: where Orbax writes.
  """

  def __init__(self, path: AnyPath):
    self.path = path

  def __exit__(self, *error: object) -> None:
    pass

  def wait(self) -> None:
    """Waits until what `keep` was told of is safe."""

  def steps(self, manager: ocp.CheckpointManager) -> set[int]:
    """Steps of all checkpoints that there are."""
    return set(manager.all_steps())

  def fetch(self, step: int) -> None:
    """Lets the checkpoint of a step be read from `path`."""

  def delete(self, manager: ocp.CheckpointManager, step: int) -> None:
    """Removes the checkpoint of a step."""
    manager.delete(step)

  def keep(self, manager: ocp.CheckpointManager, step: int) -> None:
    """Called when Orbax has begun to save a step."""


class CopiedStorage(Storage):
  """A temporary folder, whose checkpoints are copied to an address.

  Args:
    folder: the address.
    keep: number of latest checkpoints to keep there.
  """

  def __init__(self, folder: AnyPath, keep: int):
    self._stack = contextlib.ExitStack()
    super().__init__(self._stack.enter_context(readable(folder, None)))
    pool = concurrent.futures.ThreadPoolExecutor(1)
    self._pool = self._stack.enter_context(pool)
    self._folder, self._keep = folder, keep
    self._sent: concurrent.futures.Future[None] | None = None

  def __exit__(self, *error: object) -> None:
    with self._stack:
      self.wait()

  def wait(self) -> None:
    sent, self._sent = self._sent, None
    if sent is not None:
      sent.result()  # Raises what has failed.

  def steps(self, manager: ocp.CheckpointManager) -> set[int]:
    return super().steps(manager) | set(saved_steps(self._folder))

  def fetch(self, step: int) -> None:
    if not (self.path / str(step)).exists():
      files.copy_folder(self._folder / str(step), self.path / str(step))

  def delete(self, manager: ocp.CheckpointManager, step: int) -> None:
    self._remove(step)
    if step in manager.all_steps():
      manager.delete(step)

  def keep(self, manager: ocp.CheckpointManager, step: int) -> None:
    manager.wait_until_finished()
    self._sent = self._pool.submit(self._send, step)

  def _send(self, step: int) -> None:
    """Copies a step, and then removes those that are too old."""
    files.copy_folder(self.path / str(step), self._folder / str(step))
    files.write_text(self._folder / f"{step}{COMPLETE}", "")
    for old in saved_steps(self._folder)[: -self._keep]:
      self._remove(old)

  def _remove(self, step: int) -> None:
    # First it no longer counts.
    (self._folder / f"{step}{COMPLETE}").unlink()
    files.remove_folder(self._folder / str(step))


def storage(folder: AnyPath, keep: int) -> Storage:
  """Where Orbax writes the checkpoints of a folder.

  Args:
    folder: of all checkpoints of a run.
    keep: number of latest checkpoints to keep.

  Raises:
    OSError: several processes would write to an address other than gs://.
  """
  if _is_orbax_able(folder):
    return Storage(folder)
  if jax.process_count() > 1:
    raise OSError(
      f"MODEL_DIR = '{folder.parent}', but {jax.process_count()} processes"
      " expected gs://... or a folder that they share: set --gin.MODEL_DIR."
    )
  return CopiedStorage(folder, keep)


def saved_steps(folder: AnyPath) -> list[int]:
  """Steps of all checkpoints in a folder that are whole, ascending."""
  if _is_orbax_able(folder):
    with reader(folder) as manager:
      return sorted(manager.all_steps())
  if not folder.is_dir():
    return []
  names = (path.name for path in folder.iterdir())
  return sorted(
    int(name.removesuffix(COMPLETE)) for name in names if COMPLETE in name
  )


@contextlib.contextmanager
def readable(folder: AnyPath, step: int | None) -> Iterator[AnyPath]:
  """A folder from which Orbax can read the checkpoint of a step, if not None."""
  if _is_orbax_able(folder):
    yield folder
    return
  with tempfile.TemporaryDirectory() as temporary:
    copies = Path(temporary)
    if step is not None:
      files.copy_folder(folder / str(step), copies / str(step))
    yield copies


def reader(folder: AnyPath) -> ocp.CheckpointManager:
  """Reads the checkpoints of a folder."""
  # Orbax warns about these options unless they agree with `read_only`.
  options = ocp.CheckpointManagerOptions(
    read_only=True, create=False, save_interval_steps=0
  )
  return ocp.CheckpointManager(folder, options=options)


def _is_orbax_able(folder: AnyPath) -> bool:
  return not files.is_remote(folder) or str(folder).startswith("gs://")
