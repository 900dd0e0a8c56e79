"""Tensors in the files of a folder: `model.safetensors`, or several and an index.

The format holds names, types, shapes and numbers, and no code. Files are read
one tensor at a time, and so is what is written.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from raptr_jax.exchange.tensor_map import ExchangeError
from raptr_jax.tasks import files

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
SHARD_BYTES = 4 * 10**9


class SafetensorsFolder(Mapping[str, np.ndarray]):
  """The tensors of a folder by name; each is read when it is asked for.

  Args:
    folder: of a model.

  Raises:
    ExchangeError: it has none, or they are damaged.
  """

  def __init__(self, folder: Path):
    self._files: dict[str, Path] = {}
    for path in _paths(folder):
      with _opened(path) as file:
        self._files |= dict.fromkeys(file.keys(), path)

  def __getitem__(self, name: str) -> np.ndarray:
    with _opened(self._files[name]) as file:
      tensor = file.get_tensor(name)
    return np.asarray(tensor)

  def __iter__(self) -> Iterator[str]:
    return iter(self._files)

  def __len__(self) -> int:
    return len(self._files)


def _paths(folder: Path) -> list[Path]:
  """The files that hold tensors."""
  if (folder / INDEX).is_file():
    try:
      index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
      names = sorted(set(index["weight_map"].values()))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
      raise ExchangeError(
        f"{folder / INDEX} is damaged, expected a weight_map"
      ) from None
    for name in names:
      files.check_name(str(folder / INDEX), name)  # A file of this folder.
    return [folder / name for name in names]
  if (folder / SINGLE).is_file():
    return [folder / SINGLE]
  pickles = [name for name in PICKLES if (folder / name).exists()]
  if pickles:
    raise ExchangeError(
      f"{folder} has {pickles[0]}, a pickle, which can run code when it is read:"
      f" expected {SINGLE}, as save_pretrained of transformers writes it"
    )
  raise ExchangeError(f"{folder} has neither {SINGLE} nor {INDEX}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
  """A file of tensors.

  Raises:
    ExchangeError: it is missing or damaged.
  """
  import safetensors

  try:
    with safetensors.safe_open(str(path), framework="numpy") as file:
      yield file
  except (OSError, safetensors.SafetensorError) as error:
    raise ExchangeError(f"{path} cannot be read ({error})") from error


def write_safetensors(
  folder: Path,
  tensors: Iterable[tuple[str, np.ndarray]],
  *,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes tensors to a folder, in as many files as they need.

  Args:
    folder: that exists.
    tensors: by name, of which memory holds those of one file.
    shard_bytes: bytes of tensors in a file, at most, unless one is larger.
  """
  shards: list[list[str]] = []
  total = 0
  for number, shard in enumerate(_shards(tensors, shard_bytes), start=1):
    _write(folder / f"{number}.partial", shard)
    shards.append(list(shard))
    total += sum(tensor.nbytes for tensor in shard.values())
  if len(shards) == 1:
    (folder / "1.partial").rename(folder / SINGLE)
    return
  weight_map: dict[str, str] = {}
  for number, names in enumerate(shards, start=1):
    file = f"model-{number:05}-of-{len(shards):05}.safetensors"
    (folder / f"{number}.partial").rename(folder / file)
    weight_map |= dict.fromkeys(names, file)
  index = {"metadata": {"total_size": total}, "weight_map": weight_map}
  files.write_json(folder / INDEX, index)


def _shards(
  tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int
) -> Iterator[dict[str, np.ndarray]]:
  shard: dict[str, np.ndarray] = {}
  size = 0
  for name, tensor in tensors:
    if shard and size + tensor.nbytes > shard_bytes:
      yield shard
      shard, size = {}, 0
    shard[name] = tensor
    size += tensor.nbytes
  yield shard


def _write(path: Path, tensors: dict[str, np.ndarray]) -> None:
  from safetensors.numpy import save_file

  with files.replacing(path) as partial:
    partial.touch()  # With the permissions of files of this user.
    mode = partial.stat().st_mode
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.chmod(mode)
