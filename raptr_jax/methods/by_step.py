"""Values of pure functions of the step, for all steps of a run.

They are computed for `PIECE` steps at a time, when somebody asks: the draws of
ten million steps would take gigabytes, and those of a piece take milliseconds.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from raptr_jax.contracts import Step

# Fits a processor's cache: larger pieces took more than twice the time.
PIECE = 16_384

Value = TypeVar("Value")


class ByStep(Generic[Value]):
  """A function of the step, evaluated on the host.

  On the CPU where JAX has one: keys give the same bits everywhere, but another
  kind of device may round probabilities differently, and is busy training.
  """

  def __init__(
    self, function: Callable[..., PyTree], total_steps: int, *args: PyTree
  ):
    """Evaluates nothing yet.

    Args:
      function: (*args, step) -> a tree of arrays or numbers; traceable.
      total_steps: N.
      *args: such as keys, which would be constants of the program otherwise.
    """
    self.total_steps = total_steps
    self._size = size = min(PIECE, total_steps)

    def values(first: Step, *args: PyTree) -> PyTree:
      # No function is asked about steps after the last.
      steps = jnp.minimum(first + jnp.arange(size), total_steps - 1)
      return jax.vmap(function, (*[None] * len(args), 0))(*args, steps)

    device = _host()
    args, jitted = jax.device_put(args, device), jax.jit(values)

    @functools.lru_cache(maxsize=1)  # Steps come one after another.
    def piece(first: int) -> Value:
      with jax.default_device(device):
        found: Value = jax.device_get(jitted(first, *args))
      return _rows(found, 0, total_steps - first)

    self._piece = piece

  def at(self, step: int) -> Value:
    """The value of a step, as NumPy arrays."""
    first = step // self._size * self._size
    row = step - first
    return cast(Value, jax.tree.map(lambda x: x[row], self._piece(first)))

  def pieces(self, start: int, stop: int) -> Iterator[Value]:
    """Values of steps `start` to `stop` - 1, some at a time.

    Their arrays have a leading axis of steps.
    """
    for first in range(start // self._size * self._size, stop, self._size):
      yield _rows(self._piece(first), max(start - first, 0), stop - first)

  def between(self, start: int, stop: int) -> Value:
    """The same, all at once."""
    pieces = self.pieces(start, stop)
    return cast(Value, jax.tree.map(lambda *x: np.concatenate(x), *pieces))


def _rows(tree: Value, start: int, stop: int) -> Value:
  return cast(Value, jax.tree.map(lambda x: x[start:stop], tree))


def _host() -> jax.Device:
  try:
    return jax.local_devices(backend="cpu")[0]
  except RuntimeError:  # JAX_PLATFORMS names only the accelerator.
    return jax.local_devices()[0]
