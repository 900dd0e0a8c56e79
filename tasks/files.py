"""Files that are written whole or not at all, by one process at a time."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock


def check_local(macro: str, folder: str) -> None:
  """Raises ValueError for an address such as gs://bucket/folder.

  As a path it would be a folder of that name on this machine, and be lost with
  the machine.
  """
  scheme, is_address, _ = folder.partition("://")
  if is_address:
    raise ValueError(
      f"{macro}={folder!r} is an address ({scheme}), expected a folder: mount "
      f"the bucket, such as with gcsfuse or mountpoint-s3, and set "
      f"--gin.{macro} to where it is"
    )


def write_json(path: Path, value: Mapping[str, Any]) -> None:
  """Writes indented JSON, whole or not at all."""
  with replacing(path) as partial:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    partial.write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
  """A temporary path that becomes `path` if the block succeeds."""
  partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
  try:
    yield partial
    with partial.open("rb") as file:
      os.fsync(file.fileno())
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


@contextlib.contextmanager
def only_writer(folder: Path, activity: str) -> Iterator[None]:
  """Keeps other processes on this machine from writing to a folder.

  Args:
    folder: an existing folder.
    activity: what a writer does, for the message: "preparing", "running".

  Raises:
    BlockingIOError: another process is writing to the folder.
  """
  try:
    # Beside the folder, so that it holds nothing but what its writers leave.
    with filelock.FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
      yield
  except filelock.Timeout as error:
    raise BlockingIOError(
      f"another process is {activity} {folder}: wait for it to finish"
    ) from error
