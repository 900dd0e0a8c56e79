"""An object store for tests, in a folder: no appending, renaming or locking.

An object appears when its file is closed. A folder is there as long as it has
objects. What uses an address meets the store through fsspec, as it would meet
a real one; TensorStore, which has drivers of its own, is led to its folder.
"""

import contextlib
import io
import shutil

from etils.epath import backend
from fsspec import AbstractFileSystem
from fsspec.registry import _registry
from orbax.checkpoint._src.path import gcs_utils


class _Upload(io.BytesIO):
  """An object that is being written."""

  def __init__(self, path):
    super().__init__()
    self._path = path

  def close(self):
    if not self.closed:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      partial = self._path.with_name(f"{self._path.name}~")
      partial.write_bytes(self.getvalue())
      partial.replace(self._path)
    super().close()


def object_store(scheme, root):
  """A class of file systems whose objects lie in the folder `root`."""

  class ObjectStore(AbstractFileSystem):
    protocol = scheme
    cachable = False

    def _file(self, path):
      return root / self._strip_protocol(path)

    def info(self, path, **kwargs):
      file, name = self._file(path), self._strip_protocol(path)
      if file.is_file():
        found = file.stat()
        return {
          "name": name,
          "type": "file",
          "size": found.st_size,
          "etag": str(found.st_mtime_ns),
        }
      if not any(path.is_file() for path in file.rglob("*")):
        raise FileNotFoundError(path)
      return {"name": name, "type": "directory", "size": 0}

    def ls(self, path, detail=True, **kwargs):
      entries = [self.info(path)]
      if entries[0]["type"] == "directory":
        entries = []
        for file in sorted(self._file(path).iterdir()):
          with contextlib.suppress(FileNotFoundError):
            entries.append(self.info(file.relative_to(root).as_posix()))
      return entries if detail else [entry["name"] for entry in entries]

    def _open(self, path, mode="rb", **kwargs):
      if mode == "rb":
        if not self._file(path).is_file():
          raise FileNotFoundError(path)
        return self._file(path).open("rb")
      if mode != "wb":
        raise NotImplementedError(f"objects are not opened by {mode!r}")
      return _Upload(self._file(path))

    def rm_file(self, path):
      self._file(path).unlink()

    def rm(self, path, recursive=False, maxdepth=None):
      if recursive:
        shutil.rmtree(self._file(path))
      else:
        self.rm_file(path)

    def mv(self, *args, **kwargs):
      raise NotImplementedError("objects are not renamed")

    cp_file = mv

    def mkdir(self, path, create_parents=True, **kwargs):
      pass

    def makedirs(self, path, exist_ok=False):
      pass

  return ObjectStore


def install(monkeypatch, root):
  """Lets gs://x and s3://x lead to the folders gs/x and s3/x of `root`."""
  for scheme, names in (("gs", ("gs", "gcs")), ("s3", ("s3",))):
    store = object_store(scheme, root / scheme)
    for name in names:
      monkeypatch.setitem(_registry, name, store)
  # Without what it remembers of real ones.
  monkeypatch.setattr(
    backend.fsspec_backend, "_get_filesystem", lambda name: _registry[name]()
  )
  monkeypatch.setenv("EPATH_USE_TF", "true")
  monkeypatch.setattr(
    gcs_utils,
    "get_kvstore_for_gcs",
    lambda path: {
      "driver": "file",
      "path": str(root / "gs" / path.removeprefix("gs://")),
    },
  )
  monkeypatch.setattr(
    gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False
  )
