"""Draws of a whole run, and the compiled programs that execute them.

Draws are pure functions of the step, so all of a run's are known before its
first: which programs it needs, when, and how many FLOPs it will spend.
"""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from raptr_jax.contracts import Draws, LayerDraw, LayerPath, Policy

EXECUTIONS = ("cond", "gather")


@dataclasses.dataclass(frozen=True)
class DrawTable:
  """The draws of steps 0, 1, ..., N - 1, on the host, of each stack.

  Attributes:
    mask: layers that run.
    scale: factor on their residual branches.
  """

  mask: Mapping[str, Bool[np.ndarray, "N L"]]
  scale: Mapping[str, Float[np.ndarray, "N L"]]

  @functools.cached_property
  def stack_lengths(self) -> Mapping[str, Int[np.ndarray, "N"]]:
    """Number of layers of each stack that run in each step."""
    return {name: mask.sum(axis=1) for name, mask in self.mask.items()}

  @functools.cached_property
  def path_lengths(self) -> Int[np.ndarray, "N"]:
    """Number of layers that run in each step, of all stacks together."""
    return np.sum(list(self.stack_lengths.values()), axis=0)

  def draws(self, step: int, execution: str) -> Draws:
    """The draws of a step, in the form of that execution, as NumPy arrays."""
    return {
      name: as_executed(mask[step], self.scale[name][step], execution)
      for name, mask in self.mask.items()
    }


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


def draw_table(
  policies: Mapping[str, Policy], key: jax.Array, total_steps: int
) -> DrawTable:
  """Draws all steps of a run, on the CPU where jax may use it.

  Keys give the same bits everywhere, but probabilities may be rounded
  differently by another kind of device. Stacks draw independently.
  """
  try:
    device = jax.local_devices(backend="cpu")[0]
  except RuntimeError:  # JAX_PLATFORMS names the accelerator alone.
    device = jax.local_devices()[0]
  with jax.default_device(device):
    steps = jnp.arange(total_steps, dtype=jnp.int32)
    keys = stack_keys(jax.device_put(key, device), policies)
    draws = {
      name: jax.jit(jax.vmap(policy, (None, 0)))(keys[name], steps)
      for name, policy in policies.items()
    }
  return DrawTable(
    {name: np.asarray(draw.mask) for name, draw in draws.items()},
    {name: np.asarray(draw.scale) for name, draw in draws.items()},
  )


def stack_keys(
  key: jax.Array, stacks: Mapping[str, Any]
) -> dict[str, jax.Array]:
  """A key for each stack; the first one's is the key itself."""
  return {
    name: jax.random.fold_in(key, number) if number else key
    for number, name in enumerate(stacks)
  }


def abstract_draw(draw: Any, sharding: jax.sharding.Sharding) -> Any:
  """Shapes, types and placement of a draw."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), draw
  )


class StepPrograms:
  """A step function, compiled for each form of draw that a run will meet.

  Under `gather` each path length (with several stacks: each combination of
  them) is a program of its own. All are compiled in a background thread in the
  order of their first use, so that training waits for the first only, unless a
  stage begins before its program is ready.
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
      step_fn: a jitted (state, batch, draws) -> (state, metrics).
      abstract_state: shapes, types and placement of the state.
      abstract_batch: the same of a batch.
      draws: of the whole run.
      start: first step that is going to run.
      execution: form of the draws.
      draw_sharding: placement of the draws.
    """
    # Under cond one program serves all steps.
    lengths = np.stack(list(draws.stack_lengths.values()), axis=1)
    if execution != "gather":
      lengths = np.zeros_like(lengths)
    self._keys = [tuple(row) for row in lengths.tolist()]
    self._pool = concurrent.futures.ThreadPoolExecutor(1, "compile")
    self._programs: dict[tuple[int, ...], concurrent.futures.Future] = {}

    def compile_for(draw):
      abstract = abstract_draw(draw, draw_sharding)
      program = step_fn.lower(abstract_state, abstract_batch, abstract)
      return program.compile()

    for step in range(start, len(self._keys)):
      if self._keys[step] not in self._programs:
        future = self._pool.submit(compile_for, draws.draws(step, execution))
        self._programs[self._keys[step]] = future

  def ready(self, step: int) -> bool:
    """Whether the program of `step` can run without a wait."""
    return self._programs[self._keys[step]].done()

  def program(self, step: int) -> Callable[..., Any]:
    """The program of `step`; waits until it is compiled."""
    return self._programs[self._keys[step]].result()

  def close(self) -> None:
    """Gives up what is not compiled yet."""
    self._pool.shutdown(wait=True, cancel_futures=True)
