"""Which tensor of another library is which part of which of our arrays.

An entry says so once, and is read in both directions. Layers are rows of our
arrays, and tensors of their own elsewhere; so is each of query, key and value.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import flax
import jax
import numpy as np

from raptr_jax.contracts import Params

Tensors: TypeAlias = Mapping[str, np.ndarray]
Shape: TypeAlias = tuple[int, ...]


class ExchangeError(ValueError):
  """A model cannot be read from, or written to, the form of another library."""


@dataclasses.dataclass(frozen=True)
class Entry:
  """A tensor, and the part of an array of ours that it is.

  Attributes:
    theirs: name of the tensor.
    ours: path of the array, such as `stack/layers/attention/qkv/kernel`.
    index: the part of that array; () for all of it.
    inputs: of a matrix, the number of leading axes of that part that are
      inputs: the tensor is `[outputs, inputs]`, and ours `[*inputs, *outputs]`.
      None for what is no matrix: the tensor has the part's axes, or one axis
      for all of them if it is a `vector`.
    vector: see `inputs`.
    factor: ours is the tensor times this number.
  """

  theirs: str
  ours: str
  index: tuple[int | slice, ...] = ()
  inputs: int | None = None
  vector: bool = False
  factor: float = 1.0

  def shape(self, part: Shape) -> Shape:
    """The shape of the tensor, from that of the part."""
    if self.inputs is not None:
      return math.prod(part[self.inputs :]), math.prod(part[: self.inputs])
    return (math.prod(part),) if self.vector else part

  def to_ours(self, tensor: np.ndarray, part: Shape) -> np.ndarray:
    """The part, from the tensor."""
    tensor = tensor.T if self.inputs is not None else tensor
    return tensor.reshape(part).astype(np.float32) * np.float32(self.factor)

  def to_theirs(self, part: np.ndarray) -> np.ndarray:
    """The tensor, from the part."""
    shape = self.shape(part.shape)
    part = part / np.float32(self.factor)
    if self.inputs is not None:
      return np.ascontiguousarray(part.reshape(shape[::-1]).T)
    return np.ascontiguousarray(part.reshape(shape))


def vectors(theirs: str, ours: str, *index: int | slice) -> Entry:
  """An entry for weights that are no matrix, such as a bias."""
  return Entry(theirs, ours, index, vector=True)


def matrix(
  theirs: str, ours: str, *index: int | slice, inputs: int = 1
) -> Entry:
  """An entry for a matrix."""
  return Entry(theirs, ours, index, inputs=inputs)


def params_from(
  tensors: Tensors,
  entries: Sequence[Entry],
  shapes: Params,
  *,
  ignored: Sequence[str] = (),
  tied: Mapping[str, str] | None = None,
) -> Params:
  """Our parameters, as NumPy arrays; reads one tensor at a time.

  Args:
    tensors: by name.
    entries: for all parts of all arrays.
    shapes: a tree of what has the shapes of our arrays.
    ignored: names of tensors that have no part in them.
    tied: the name of what stands for a tensor that is missing, by its own.

  Raises:
    ExchangeError: a tensor is missing, has another shape, or has no entry.
  """
  wanted = flax.traverse_util.flatten_dict(shapes, sep="/")
  arrays = {name: np.empty(x.shape, np.float32) for name, x in wanted.items()}
  filled = dict.fromkeys(wanted, 0)
  for entry in entries:
    name = entry.theirs
    if name not in tensors:
      name = (tied or {}).get(name, name)
    if name not in tensors:
      raise ExchangeError(f"there is no tensor {name}")
    part = arrays[entry.ours][entry.index]
    tensor = tensors[name]
    if tensor.shape != entry.shape(part.shape):
      raise ExchangeError(
        f"the tensor {entry.theirs} has the shape {list(tensor.shape)}, expected"
        f" {list(entry.shape(part.shape))} for {entry.ours}"
      )
    arrays[entry.ours][entry.index] = entry.to_ours(tensor, part.shape)
    filled[entry.ours] += part.size
  known = {entry.theirs for entry in entries}.union(ignored)
  if surplus := sorted(set(tensors) - known):
    raise ExchangeError(
      f"the model has no place for the tensors {_some(surplus)}"
    )
  for name, array in arrays.items():
    assert filled[name] == array.size, f"{name} is not filled by the entries"
  tree: Params = flax.traverse_util.unflatten_dict(arrays, sep="/")
  return tree


def tensors_from(
  params: Params, entries: Sequence[Entry]
) -> Iterator[tuple[str, np.ndarray]]:
  """Their tensors by name, one at a time."""
  arrays = flax.traverse_util.flatten_dict(params, sep="/")
  for entry in entries:
    part = np.asarray(jax.device_get(arrays[entry.ours][entry.index]))
    yield entry.theirs, entry.to_theirs(part)


def only_rows(params: Params, stack: str, rows: Sequence[int]) -> Params:
  """Parameters in which a stack has only some of its layers."""
  chosen = np.asarray(rows)
  return {
    name: jax.tree.map(lambda x: x[chosen], part) if name == stack else part
    for name, part in params.items()
  }


def _some(names: Sequence[Any], most: int = 3) -> str:
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(map(str, names[:most])) + more
