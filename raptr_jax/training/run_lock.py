"""Keeps two runs from writing to one folder."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import jax

from raptr_jax.tasks import files

LOCK_FILE = "in_use"


@contextlib.contextmanager
def alone_in(model_dir: str | os.PathLike[str]) -> Iterator[None]:
  """Locks a run's folder, until this context or this process ends.

  The first process locks it for all. Addresses such as gs://... have no locks.

  Raises:
    BlockingIOError: another run has locked it.
    OSError: the folder cannot be written to.
  """
  folder = files.path("MODEL_DIR", model_dir)
  if files.is_remote(folder) or jax.process_index() != 0:
    yield
    return
  folder.mkdir(parents=True, exist_ok=True)
  path = Path(folder) / LOCK_FILE
  with contextlib.ExitStack() as stack:
    while True:
      file = stack.enter_context(path.open("a+", encoding="utf-8"))
      _lock(file, fcntl.LOCK_EX, model_dir)
      if _is_at(path, file.fileno()):
        break  # And not removed by the one before.
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    try:
      yield
    finally:
      path.unlink(missing_ok=True)


def check_unlocked(model_dir: str | os.PathLike[str]) -> None:
  """Looks whether a run has locked its folder, and leaves all as it is.

  Raises:
    BlockingIOError: it has.
  """
  path = files.path("MODEL_DIR", model_dir) / LOCK_FILE
  if files.is_remote(path):
    return
  unlocked = contextlib.suppress(FileNotFoundError)
  with unlocked, Path(path).open(encoding="utf-8") as file:
    _lock(file, fcntl.LOCK_SH, model_dir)


def _lock(file: TextIO, kind: int, model_dir: str | os.PathLike[str]) -> None:
  """Locks an open file without waiting."""
  try:
    fcntl.flock(file, kind | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    raise BlockingIOError(
      f"MODEL_DIR = '{model_dir}' is in use by {file.read().strip()}: wait"
      " until that has ended, or set another --gin.MODEL_DIR."
    ) from None


def _is_at(path: Path, descriptor: int) -> bool:
  """Whether an open file is the one at a path."""
  try:
    found = path.stat()
  except FileNotFoundError:
    return False
  return os.path.samestat(found, os.fstat(descriptor))
