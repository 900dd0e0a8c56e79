"""Draws of a whole run, and the compiled programs that execute them.

Draws are pure functions of the step, so all of a run's are known before its
first: which programs it needs, when, and how many FLOPs it will spend.
"""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from raptr_jax.contracts import LayerDraw, LayerPath, Policy

EXECUTIONS = ("cond", "gather")


@dataclasses.dataclass(frozen=True)
class DrawTable:
  """The draws of steps 0, 1, ..., S - 1, on the host.

  Attributes:
    mask: layers that run.
    scale: factor on their residual branches.
  """

  mask: Bool[np.ndarray, "S L"]
  scale: Float[np.ndarray, "S L"]

  @functools.cached_property
  def path_lengths(self) -> Int[np.ndarray, "S"]:
    """Number of layers that run in each step."""
    return self.mask.sum(axis=1)

  def draw(self, step: int, execution: str) -> LayerDraw | LayerPath:
    """The draw of a step, in the form of that execution, as NumPy arrays."""
    return as_executed(self.mask[step], self.scale[step], execution)


def as_executed(
  mask: Bool[np.ndarray, "L"], scale: Float[np.ndarray, "L"], execution: str
) -> LayerDraw | LayerPath:
  """A draw in the form that makes the stack execute it this way."""
  return (
    to_path(mask, scale) if execution == "gather" else LayerDraw(mask, scale)
  )


def to_path(
  mask: Bool[np.ndarray, "L"], scale: Float[np.ndarray, "L"]
) -> LayerPath:
  """A mask by the indices of its kept layers."""
  indices = np.flatnonzero(mask).astype(np.int32)
  return LayerPath(indices, scale[indices])


def draw_table(policy: Policy, key: jax.Array, total_steps: int) -> DrawTable:
  """Draws all steps of a run, on the CPU where jax may use it.

  Keys give the same bits everywhere, but probabilities may be rounded
  differently by another kind of device.
  """
  try:
    device = jax.local_devices(backend="cpu")[0]
  except RuntimeError:  # JAX_PLATFORMS names the accelerator alone.
    device = jax.local_devices()[0]
  with jax.default_device(device):
    steps = jnp.arange(total_steps, dtype=jnp.int32)
    key = jax.device_put(key, device)
    draws = jax.jit(jax.vmap(policy, (None, 0)))(key, steps)
  return DrawTable(np.asarray(draws.mask), np.asarray(draws.scale))


def abstract_draw(draw: Any, sharding: jax.sharding.Sharding) -> Any:
  """Shapes, types and placement of a draw."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), draw
  )


class StepPrograms:
  """A step function, compiled for each form of draw that a run will meet.

  Under `gather` each path length is a program of its own. All are compiled in
  a background thread in the order of their first use, so that training waits
  for the first only, unless a stage begins before its program is ready.
  """

  def __init__(
    self,
    step_fn: Any,
    abstract_state: Any,
    abstract_batch: Any,
    draws: DrawTable,
    *,
    start: int,
    execution: str,
    draw_sharding: jax.sharding.Sharding,
  ):
    """Starts to compile what steps `start`, `start + 1`, ... need.

    Args:
      step_fn: a jitted (state, batch, draw) -> (state, metrics).
      abstract_state: shapes, types and placement of the state.
      abstract_batch: the same of a batch.
      draws: of the whole run.
      start: first step that is going to run.
      execution: form of the draws.
      draw_sharding: placement of the draws.
    """
    # Under cond one program serves all steps.
    lengths = draws.path_lengths
    self._keys = lengths if execution == "gather" else np.zeros_like(lengths)
    self._pool = concurrent.futures.ThreadPoolExecutor(1, "compile")
    self._programs: dict[int, concurrent.futures.Future] = {}

    def compile_for(draw):
      abstract = abstract_draw(draw, draw_sharding)
      program = step_fn.lower(abstract_state, abstract_batch, abstract)
      return program.compile()

    keys, first = np.unique(self._keys[start:], return_index=True)
    for number in np.argsort(first):
      draw = draws.draw(start + int(first[number]), execution)
      future = self._pool.submit(compile_for, draw)
      self._programs[int(keys[number])] = future

  def ready(self, step: int) -> bool:
    """Whether the program of `step` can run without a wait."""
    return self._programs[int(self._keys[step])].done()

  def program(self, step: int) -> Callable[..., Any]:
    """The program of `step`; waits until it is compiled."""
    return self._programs[int(self._keys[step])].result()

  def close(self) -> None:
    """Gives up what is not compiled yet."""
    self._pool.shutdown(wait=True, cancel_futures=True)
