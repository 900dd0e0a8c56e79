"""Paths of a trained model's layers, chosen by hand."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from raptr_jax.contracts import LayerDraw, LayerPath
from raptr_jax.models.checks import check_draws

# The layers of a stack: how many, which, or a draw; None for all.
StackLayers: TypeAlias = int | Sequence[int] | LayerPath | LayerDraw | None
Layers: TypeAlias = StackLayers | Mapping[str, StackLayers]


def choose_paths(
  stacks: Mapping[str, int], layers: Layers
) -> dict[str, LayerPath]:
  """The path of each stack.

  A number k gives the first layer, the last one, and k - 2 spread evenly
  between them: layer i of the path is layer i (L - 1) / (k - 1), rounded, and
  one layer is the first. (RaPTr's first and last layer run in all paths that it
  trains. Held-out losses by path length are means over random paths instead.)
  Kept layers are not scaled, as in all evaluations.

  Args:
    stacks: L of each stack.
    layers: for all stacks, or a mapping by stack: the number of layers, their
      indices in ascending order, or a draw; None for all layers.

  Raises:
    TypeError: it is none of these.
    ValueError: a stack does not exist, or lacks a layer.
  """
  if not isinstance(layers, Mapping):
    layers = dict.fromkeys(stacks, layers)
  if set(layers) != set(stacks):
    raise ValueError(
      f"layers is for the stacks {sorted(layers)}, but the model has"
      f" {sorted(stacks)}: expected something for each, or one for all."
    )
  paths = {
    name: _path(name, size, layers[name]) for name, size in stacks.items()
  }
  check_draws(paths, stacks)
  return paths


def _path(stack: str, num_layers: int, layers: StackLayers) -> LayerPath:
  if isinstance(layers, LayerPath):
    return layers
  if isinstance(layers, LayerDraw):
    return layers.path()
  if layers is None:
    indices = np.arange(num_layers)
  elif isinstance(layers, int | np.integer) and not isinstance(layers, bool):
    indices = _evenly_spaced(stack, num_layers, int(layers))
  else:
    indices = np.asarray(layers)
  if indices.ndim and indices.dtype == bool:
    raise TypeError(
      f"layers = {indices.tolist()} is a mask, expected the indices of the"
      f" layers that run: {np.flatnonzero(indices).tolist()}."
    )
  if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
    raise TypeError(
      f"layers = {layers!r}, expected a number of layers, their indices, or a"
      " draw."
    )
  return LayerPath(indices.astype(np.int32), np.ones(len(indices), np.float32))


def _evenly_spaced(stack: str, num_layers: int, count: int) -> np.ndarray:
  """`count` evenly spaced layers, the first and the last among them."""
  if not 1 <= count <= num_layers:
    raise ValueError(
      f"layers = {count}, expected 1 to {num_layers}, the layers of the stack"
      f" '{stack}'."
    )
  steps = max(count - 1, 1)
  rounded: np.ndarray = (2 * np.arange(count) * (num_layers - 1) + steps) // (
    2 * steps
  )
  return rounded
