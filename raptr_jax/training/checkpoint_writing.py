"""Writes checkpoints, and says it in one line if that fails."""

import contextlib
import logging
import re
import shutil
from collections.abc import Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from raptr_jax.tasks import files
from raptr_jax.tasks.files import AnyPath

# What the system says within a message of Orbax or TensorStore.
CAUSE = re.compile(r"[A-Z][\w ,-]*(?= \[os_error_code)|\[Errno \d+\] .*")


class SaveError(OSError):
  """A checkpoint was not saved."""

  def __init__(self, place: str, step: int | None, reason: str):
    which = "a checkpoint" if step is None else f"the checkpoint of step {step}"
    super().__init__(
      f"{place}: {which} was not saved ({reason}). Earlier ones, if any, are"
      " unaffected: once that is mended, the same command goes on from the"
      " latest; or move the folder, and set another --gin.MODEL_DIR."
    )


def writer(folder: AnyPath, max_to_keep: int) -> ocp.CheckpointManager:
  """Saves checkpoints in a folder in the background."""
  options = ocp.CheckpointManagerOptions(
    max_to_keep=max_to_keep, enable_async_checkpointing=True
  )
  return ocp.CheckpointManager(folder, options=options)


@contextlib.contextmanager
def saving(place: str, step: int | None) -> Iterator[None]:
  """Begins to save a step, or waits until it is saved.

  Args:
    place: the setting that says where, like "MODEL_DIR = 'runs/x'".
    step: of the checkpoint; None if it is not known.

  Raises:
    SaveError: if that fails.
  """
  try:
    yield
  except (MemoryError, SaveError, jax.errors.JaxRuntimeError):
    raise  # The first and the last are not about files.
  except Exception as error:  # Writers raise all kinds.
    text = " ".join(str(error).split())
    cause = CAUSE.search(text)
    reason = cause.group().strip() if cause else text[:200]
    raise SaveError(place, step, reason) from error


def check_room(folder: AnyPath, state: PyTree) -> None:
  """Raises OSError if the disk of a folder has no room for a state.

  All hosts share the folder, and raise if one of them does.
  """
  if files.is_remote(folder):
    return
  needed = sum(array.nbytes for array in jax.tree.leaves(state))
  free = shutil.disk_usage(folder).free
  if jax.process_count() > 1:
    free = int(multihost_utils.process_allgather(np.float32(free)).min())
  if free < needed:
    raise OSError(
      f"it needs {needed / 1e6:,.1f} MB, but only {free / 1e6:,.1f} MB are free"
    )


def drop_errors_of_orbax(record: logging.LogRecord) -> bool:
  """A filter of logs, for a run: what it drops is raised, too."""
  return "orbax" not in record.pathname or record.levelno < logging.ERROR


def _drop_read_only_warning(record: logging.LogRecord) -> bool:
  """False for Orbax's warning that a folder is read only, as it should be."""
  return "directory is read only" not in str(record.msg)


LOG = logging.getLogger("absl")  # Orbax's.
LOG.addFilter(_drop_read_only_warning)
