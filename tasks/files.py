"""Files that are written whole or not at all, here or at an address.

This is the only module that knows folders of this machine from addresses of an
object store, such as gs://bucket/run. An object store has no locks, cannot
append to an object, and has no folders to rename; but an object appears at
once, or not at all. So what grows, and what libraries write to or read from
files alone, lies on this machine and is copied.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import filelock
import fsspec
from etils import epath
from etils.epath import gpath
from fsspec.core import url_to_fs

# What both have in common: names, exists, open, read_text, unlink, and such.
AnyPath: TypeAlias = Path | epath.Path

SCHEMES = ("gs", "s3", "az", "hf")  # Those that epath knows.
EXTRAS = {"gs": "gcs", "s3": "s3"}
COPIES_AT_ONCE = 8


def path(macro: str, value: str | os.PathLike[str]) -> AnyPath:
  """A folder or file of this machine, or at an address such as gs://bucket/run.

  Args:
    macro: what sets it, such as MODEL_DIR, for the message.
    value: a path, whose ~ is expanded; or an address.

  Raises:
    ValueError: it is an address of a kind that is not known.
    ModuleNotFoundError: the package for such addresses is not installed.
  """
  scheme, is_address, _ = os.fspath(value).partition("://")
  if not is_address:
    return Path(value).expanduser()
  if scheme not in SCHEMES:
    raise ValueError(
      f"{macro}={value!r} is an address that begins with {scheme}://, expected "
      f"a folder, or an address that begins with one of {SCHEMES} and ://: set "
      f"--gin.{macro}"
    )
  try:
    fsspec.get_filesystem_class(scheme)
  except ImportError as error:
    how = str(error)
    if scheme in EXTRAS:
      how = f"pip install 'raptr_jax[{EXTRAS[scheme]}]'"
    raise ModuleNotFoundError(
      f"{macro}={value!r} needs a package that is not installed: {how}"
    ) from error
  # Otherwise epath takes TensorFlow where it is installed, which has no S3. It
  # may have looked for it already, on behalf of a path of this machine.
  os.environ["EPATH_USE_TF"] = "false"
  gpath._is_tf_installed.cache_clear()
  # Others write to the folder, too: Orbax, and other hosts.
  fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
  return epath.Path(value)


def check_name(setting: str, name: object) -> None:
  """Raises ValueError unless a name stays in the folder that it is joined to.

  Args:
    setting: what sets the name, such as MIXTURE_OR_TASK_NAME.
    name: the name of a file or a folder.
  """
  if (
    not isinstance(name, str)
    or name in ("", ".", "..")
    or not set(name).isdisjoint("/\\\0")
  ):
    raise ValueError(
      f"{setting}={name!r} must be a name without slashes, which does not lead "
      f"out of its folder: correct {setting}"
    )


def is_remote(path: AnyPath) -> bool:
  """Whether a path is at an address, and not on this machine."""
  return "://" in os.fspath(path)


def absolute(path: AnyPath) -> AnyPath:
  """The path from the root of this machine; addresses are absolute."""
  return path if is_remote(path) else path.resolve()


def find(root: AnyPath, pattern: str) -> list[tuple[AnyPath, int]]:
  """Files below a folder whose names match, with their sizes in bytes.

  Raises:
    NotImplementedError, ValueError: it is not a pattern.
  """
  if not is_remote(root):
    found = (path for path in root.glob(pattern) if path.is_file())
    return [sized(path) for path in found]
  if not pattern or pattern.startswith("/"):
    raise ValueError(f"unacceptable pattern: {pattern!r}")
  system, place = url_to_fs(os.fspath(root))
  listed = system.glob(f"{place}/{pattern}", detail=True)
  return [
    (epath.Path(system.unstrip_protocol(name)), info["size"])
    for name, info in listed.items()
    if info["type"] == "file"
  ]


def sized(path: AnyPath) -> tuple[AnyPath, int]:
  """A file and its size in bytes, like those of `find`."""
  if not is_remote(path):
    return path, os.stat(path).st_size
  return path, epath.Path(path).stat().length


def write_json(path: AnyPath, value: Mapping[str, Any]) -> None:
  """Writes indented JSON, whole or not at all."""
  text = json.dumps(value, indent=2, ensure_ascii=False)
  write_text(path, text + "\n")


def write_text(path: AnyPath, text: str) -> None:
  """Writes text in UTF-8, whole or not at all."""
  with replacing(path) as partial:
    partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def naming(path: AnyPath) -> Iterator[None]:
  """Errors of the system name this file, where they name none."""
  try:
    yield
  except OSError as error:
    if error.errno is None or error.filename is not None:
      raise
    raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def replacing(path: AnyPath) -> Iterator[Path]:
  """A temporary file of this machine that becomes `path` if the block succeeds.

  At an address it is uploaded as one object, which appears once it is complete.
  """
  if is_remote(path):
    with tempfile.TemporaryDirectory() as temporary:
      partial = Path(temporary, path.name)
      yield partial
      _upload(partial, path)
    return
  partial = Path(path.with_name(f"{path.name}.{os.getpid()}.partial"))
  partial.unlink(missing_ok=True)  # It may be a link that others have left.
  try:
    with naming(path):
      yield partial
      with partial.open("rb") as file:
        os.fsync(file.fileno())
      os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def _upload(source: Path, path: AnyPath) -> None:
  system, place = url_to_fs(os.fspath(path))
  system.put_file(str(source), place)


def copy_folder(source: AnyPath, target: AnyPath) -> None:
  """Copies all files of a folder; one of the two is at an address.

  Raises:
    ValueError: an object's name would lead out of the folder.
  """
  if is_remote(target):
    system, place = url_to_fs(os.fspath(target))
    found = [p for p in Path(source).rglob("*") if p.is_file()]
    names = [path.relative_to(source).as_posix() for path in found]
    system.put(
      [str(path) for path in found], [f"{place}/{name}" for name in names]
    )
  else:
    system, place = url_to_fs(os.fspath(source))
    found = system.find(place)
    names = [name.removeprefix(f"{place}/") for name in found]
    for name in names:
      for part in name.split("/"):
        check_name(f"the object {place}/{name}", part)
    system.get(found, [str(target / name) for name in names])


def remove_folder(path: AnyPath) -> None:
  """Removes a folder, and all that is in it."""
  epath.Path(path).rmtree()


@contextlib.contextmanager
def only_writer(folder: AnyPath, activity: str) -> Iterator[None]:
  """Keeps other processes on this machine from writing to a folder.

  Object stores have no locks: at an address nothing is kept from writing. Two
  that write the same there write the same objects; the last one stays.

  Args:
    folder: an existing folder.
    activity: what a writer does, for the message: "preparing", "running".

  Raises:
    BlockingIOError: another process is writing to the folder.
  """
  if is_remote(folder):
    yield
    return
  try:
    # Beside the folder, so that it holds nothing but what its writers leave.
    with filelock.FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):
      yield
  except filelock.Timeout as error:
    raise BlockingIOError(
      f"another process is {activity} {folder}: wait for it to finish"
    ) from error


class Growing:
  """Files that grow, below a folder; see `growing`.

  Attributes:
    path: where to write them; the folder itself, if it is on this machine.
  """

  def __init__(self, folder: AnyPath, path: Path):
    self._folder = folder
    self.path = path
    self._versions: dict[Path, tuple[int, int]] = {}  # As published.
    self._last = time.monotonic()

  def publish(self, *, after_seconds: float = 0.0) -> None:
    """Lets others read what has been written; files must have been flushed.

    Args:
      after_seconds: does nothing until so long after the last time.
    """
    if not is_remote(self._folder):
      return
    if time.monotonic() - self._last < after_seconds:
      return
    for path in sorted(self.path.rglob("*")):
      found = path.stat()
      version = found.st_size, found.st_mtime_ns
      if path.is_file() and version != self._versions.get(path):
        _upload(path, self._folder / path.relative_to(self.path).as_posix())
        self._versions[path] = version
    self._last = time.monotonic()


@contextlib.contextmanager
def growing(folder: AnyPath) -> Iterator[Growing]:
  """Where to write files that grow, or that a library writes to a folder.

  For an address that is a temporary folder of this machine, empty at first.
  `publish` copies its files, whole, to their places, as does the end of the
  block, even if it fails.
  """
  if not is_remote(folder):
    yield Growing(folder, Path(folder))
    return
  with tempfile.TemporaryDirectory() as temporary:
    files = Growing(folder, Path(temporary))
    try:
      yield files
    finally:
      files.publish()


def local_copies(paths: Sequence[AnyPath]) -> list[Path]:
  """Each file on this machine, for readers that know nothing else.

  Files at addresses are copied to ~/.cache/raptr_jax/copies (XDG_CACHE_HOME is
  obeyed), and copied again when they have changed.
  """
  with concurrent.futures.ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
    return list(pool.map(local_copy, paths))


def local_copy(path: AnyPath) -> Path:
  """A file on this machine, see `local_copies`."""
  if not is_remote(path):
    return Path(path)
  system, place = url_to_fs(os.fspath(path))
  # By what the store says of it: size, time, and its own fingerprint.
  version = hashlib.sha256(system.ukey(place).encode()).hexdigest()[:16]
  address = hashlib.sha256(os.fspath(path).encode()).hexdigest()[:32]
  root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  copies = Path(root).expanduser() / "raptr_jax" / "copies" / address
  copy = copies / version / path.name
  if not copy.is_file():
    for outdated in set(copies.glob("*")) - {copy.parent}:
      shutil.rmtree(outdated, ignore_errors=True)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with replacing(copy) as partial:
      system.get_file(place, str(partial))
  return copy
