"""Writes checkpoints, and says it in one line if that fails."""

import contextlib
import logging
import re
import shutil
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from raptr_jax.tasks import files
from raptr_jax.tasks.files import AnyPath

# What the system says inside of a message of Orbax or TensorStore.
CAUSE = re.compile(r"[A-Z][\w ,-]*(?= \[os_error_code)|\[Errno \d+\] .*")


class SaveError(OSError):
  """A checkpoint was not saved."""

  def __init__(self, place: str, step: int, reason: str):
    super().__init__(
      f"{place}: the checkpoint of step {step} was not saved ({reason})."
      " Earlier ones are unaffected: the same command resumes from the latest,"
      " once there is room; or move the folder, and set another"
      " --gin.MODEL_DIR."
    )


def writer(folder: AnyPath, max_to_keep: int) -> ocp.CheckpointManager:
  """Saves checkpoints in a folder in the background."""
  options = ocp.CheckpointManagerOptions(
    max_to_keep=max_to_keep, enable_async_checkpointing=True
  )
  return ocp.CheckpointManager(folder, options=options)


@contextlib.contextmanager
def saving(place: str, step: int) -> Iterator[None]:
  """Begins to save a step, or waits until it is saved.

  Args:
    place: the setting that says where, like "MODEL_DIR = 'runs/x'".
    step: of the checkpoint.

  Raises:
    SaveError: that has failed.
  """
  try:
    yield
  except SaveError:
    raise
  except Exception as error:  # Writers raise all kinds.
    text = " ".join(str(error).split())
    cause = CAUSE.search(text)
    reason = cause.group().strip() if cause else text[:200]
    raise SaveError(place, step, reason) from error


def check_room(folder: AnyPath, state: PyTree) -> None:
  """Raises OSError if a disk has no room for this host's part of a state."""
  if files.is_remote(folder):
    return
  needed = sum(
    shard.data.nbytes
    for array in jax.tree.leaves(state)
    for shard in array.addressable_shards
    if shard.replica_id == 0
  )
  free = shutil.disk_usage(folder).free
  if free < needed:
    raise OSError(
      f"it has {needed / 1e6:,.1f} MB, but {free / 1e6:,.1f} MB are free"
    )


def _is_told_elsewhere(record: logging.LogRecord) -> bool:
  """Whether a line of Orbax's log repeats what a run says itself.

  Its errors are raised, too. That a folder is read only is as it should be.
  """
  by_orbax = "orbax" in record.pathname
  read_only = "directory is read only" in str(record.msg)
  return by_orbax and (read_only or record.levelno >= logging.ERROR)


logging.getLogger("absl").addFilter(lambda r: not _is_told_elsewhere(r))
