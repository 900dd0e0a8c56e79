"""Validates the batches, draws and keys that a model is called with.

The checks read only shapes and types, so that a compiled program pays nothing
for them. They look at values only where these are at hand anyway: at the
indices of a path that no program is being traced for.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from raptr_jax.contracts import LayerDraw, LayerPath


def check_batch(
  batch: Mapping[str, Any],
  features: Mapping[str, str],
  reader: object,
  hint: str = "",
) -> None:
  """Checks that a batch has what a model reads.

  Args:
    batch: features by name; those that the model does not read are ignored.
    features: axes of each feature that it reads, such as "B T". An axis has the
      same size wherever it occurs.
    reader: the model, for the message.
    hint: ends the message if a feature is missing.

  Raises:
    ValueError: a feature is missing, or has other axes.
  """
  missing = [name for name in features if name not in batch]
  if missing:
    raise ValueError(
      f"The batch has the features {sorted(batch)}, but"
      f" {type(reader).__name__} reads {', '.join(features)}: it lacks"
      f" {', '.join(missing)}.{hint}"
    )
  check_axes({name: batch[name] for name in features}, features)


def check_axes(arrays: Mapping[str, Any], axes: Mapping[str, str]) -> None:
  """Checks that arrays have these axes, which they share by name.

  Raises:
    ValueError: an array has another number of axes, or two arrays differ in an
      axis that they share.
  """
  first_with: dict[str, str] = {}
  sizes: dict[str, int] = {}
  for name, array in arrays.items():
    shape, letters = tuple(np.shape(array)), axes[name].split()
    if len(shape) != len(letters):
      raise ValueError(
        f"{name} has the shape {shape}, expected the axes"
        f" [{', '.join(letters)}]."
      )
    for letter, size in zip(letters, shape):
      first = first_with.setdefault(letter, name)
      if sizes.setdefault(letter, size) != size:
        raise ValueError(
          f"{name} has the shape {shape}, expected {letter} ="
          f" {sizes[letter]} in [{', '.join(letters)}], as in {first}."
        )


def check_draws(draws: object, stacks: Mapping[str, int]) -> None:
  """Checks that draws are for the stacks of a model.

  Args:
    draws: the layers that run, for each stack.
    stacks: L of each stack.

  Raises:
    TypeError: they are not a mapping by stack, or hold other types.
    ValueError: they are for other stacks or another number of layers.
  """
  example = ", ".join(f"'{name}': ..." for name in stacks)
  if not isinstance(draws, Mapping):
    raise TypeError(
      f"The draws are a {type(draws).__name__}, expected a mapping with one for"
      f" each stack: {{{example}}}."
    )
  if set(draws) != set(stacks):
    raise ValueError(
      f"The draws are for the stacks {sorted(draws)}, but the model has"
      f" {sorted(stacks)}: expected {{{example}}}."
    )
  for name, num_layers in stacks.items():
    draw = draws[name]
    if isinstance(draw, LayerPath):
      _check_path(name, draw, num_layers)
    elif isinstance(draw, LayerDraw):
      _check_mask(name, draw, num_layers)
    else:
      raise TypeError(
        f"The draw of the stack '{name}' is a {type(draw).__name__}, expected a"
        " LayerDraw or a LayerPath."
      )


def check_paths(paths: object, stacks: Mapping[str, int]) -> None:
  """Like `check_draws`, for a model that writes: masks are not accepted.

  The shape of its cache depends on the number of kept layers, which is part of
  the type of a path alone.

  Raises:
    TypeError: a draw is a mask; or as `check_draws`.
    ValueError: as `check_draws`.
  """
  check_draws(paths, stacks)
  assert isinstance(paths, Mapping)
  for name, path in paths.items():
    if isinstance(path, LayerDraw):
      raise TypeError(
        f"The draw of the stack '{name}' is a LayerDraw, but writing needs a"
        " LayerPath, whose number of layers is known: call its method path()."
      )
    if path.used is not None:
      raise TypeError(
        f"The path of the stack '{name}' has `used`, but writing needs one"
        " whose slots are all used: leave it out."
      )


def check_dropout_key(key: Any) -> None:
  """Checks that there is one key, or None.

  Raises:
    TypeError: it is no key of `jax.random.key`.
    ValueError: there are several.
  """
  if key is None:
    return
  dtype = getattr(key, "dtype", None)
  if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
    found = type(key).__name__ if dtype is None else f"{dtype}{list(key.shape)}"
    raise TypeError(
      f"dropout_key is {found}, expected a key of jax.random.key(seed), or None"
      " for no dropout."
    )
  if key.shape:
    raise ValueError(
      f"dropout_key has the shape {key.shape}, expected a single key: a model"
      " derives those of its layers by itself."
    )


def _check_path(stack: str, path: LayerPath, num_layers: int) -> None:
  shape, scale = np.shape(path.indices), np.shape(path.scale)
  used = shape if path.used is None else np.shape(path.used)
  if len(shape) != 1 or {scale, used} != {shape} or shape[0] > num_layers:
    raise ValueError(
      f"The path of the stack '{stack}' has indices of the shape {shape} and"
      f" scales of the shape {scale}, expected [k] for both (and for `used`),"
      f" with k of at most {num_layers} layers."
    )
  if isinstance(path.indices, jax.core.Tracer):
    return
  indices = np.asarray(path.indices)
  if path.used is not None:
    indices = indices[np.asarray(path.used)]
  inside = (indices >= 0) & (indices < num_layers)
  if not inside.all() or (np.diff(indices) <= 0).any():
    raise ValueError(
      f"The path of the stack '{stack}' has the layers {indices.tolist()},"
      f" expected ascending numbers from 0 to {num_layers - 1}."
    )


def _check_mask(stack: str, draw: LayerDraw, num_layers: int) -> None:
  mask, scale = np.shape(draw.mask), np.shape(draw.scale)
  if mask != (num_layers,) or scale != mask:
    raise ValueError(
      f"The draw of the stack '{stack}' has a mask of the shape {mask} and"
      f" scales of the shape {scale}, expected {(num_layers,)} for both: one"
      " value for each layer."
    )
