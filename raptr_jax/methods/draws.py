"""The draws of a whole run, laid out before its first step.

Draws are pure functions of the step, so a run knows in advance which programs
it will need, when, and how many FLOPs it will spend.

The journey of a draw: a policy draws `LayerDraw`s [N, L] into the `DrawTable`;
`DrawTable.at(step)` gives the draws of one step in the form that the execution
takes; the compiled step passes them to the model, and the model to its
`MaskedStack`s.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from raptr_jax.contracts import Draws, LayerDraw, Policy

EXECUTIONS = ("cond", "gather")


@dataclasses.dataclass(frozen=True)
class DrawTable:
  """The draws of steps 0, 1, ..., N - 1, on the host.

  Attributes:
    by_stack: one `LayerDraw` of NumPy arrays [N, L] for each stack.
    execution: "cond" hands out `LayerDraw`s, "gather" `LayerPath`s; see
      `masked_stack.py`.
  """

  by_stack: Mapping[str, LayerDraw]
  execution: str

  def at(self, step: int) -> Draws:
    """The draws of a step, in the form that the execution takes."""
    return as_executed(
      {
        name: LayerDraw(draw.mask[step], draw.scale[step])
        for name, draw in self.by_stack.items()
      },
      self.execution,
    )

  @functools.cached_property
  def stack_lengths(self) -> Mapping[str, Int[np.ndarray, "N"]]:
    """Number of layers of each stack that run in each step."""
    return {
      name: np.asarray(draw.mask).sum(axis=1)
      for name, draw in self.by_stack.items()
    }

  @functools.cached_property
  def path_lengths(self) -> Int[np.ndarray, "N"]:
    """Number of layers that run in each step, over all stacks."""
    by_stack = list(self.stack_lengths.values())
    total: np.ndarray = np.sum(by_stack, axis=0)
    return total

  def first_steps(self, start: int) -> list[int]:
    """The first step of each program that is needed from `start` on."""
    if start >= len(self.path_lengths):
      return []
    if self.execution == "cond":
      return [start]
    lengths = np.stack(list(self.stack_lengths.values()), axis=1)[start:]
    _, first = np.unique(lengths, axis=0, return_index=True)
    return [start + int(step) for step in np.sort(first)]

  def program_key(self, step: int) -> tuple[int, ...]:
    """Identifies the program of a step; steps with equal keys share one.

    Under `cond` one program serves all steps; under `gather` each combination
    of the stacks' path lengths has its own.
    """
    if self.execution == "cond":
      return ()
    return tuple(int(lengths[step]) for lengths in self.stack_lengths.values())


def as_executed(draws: Mapping[str, LayerDraw], execution: str) -> Draws:
  """Draws as the type that selects this execution."""
  if execution == "cond":
    return draws
  return {name: draw.path() for name, draw in draws.items()}


def lowest_layers(
  depths: Mapping[str, int], stacks: Mapping[str, int]
) -> dict[str, LayerDraw]:
  """Draws of the lowest `depths[name]` layers of each stack, unscaled."""
  masks = {
    name: np.arange(size) < depths[name] for name, size in stacks.items()
  }
  return {
    name: LayerDraw(mask, mask.astype(np.float32))
    for name, mask in masks.items()
  }


def draw_table(
  policies: Mapping[str, Policy],
  key: Key[Array, ""],
  total_steps: int,
  execution: str,
) -> DrawTable:
  """Draws all steps of a run; stacks draw independently.

  On the CPU where JAX has one: keys give the same bits everywhere, but another
  kind of device may round probabilities differently.
  """
  try:
    device = jax.local_devices(backend="cpu")[0]
  except RuntimeError:  # JAX_PLATFORMS names only the accelerator.
    device = jax.local_devices()[0]
  with jax.default_device(device):
    steps = jnp.arange(total_steps, dtype=jnp.int32)
    keys = stack_keys(jax.device_put(key, device), policies)
    draws = {
      name: jax.jit(jax.vmap(policy, (None, 0)))(keys[name], steps)
      for name, policy in policies.items()
    }
  return DrawTable(jax.device_get(draws), execution)


def stack_keys(
  key: Key[Array, ""], stacks: Iterable[str]
) -> dict[str, Key[Array, ""]]:
  """A key for each stack; the first stack gets `key` itself."""
  return {
    name: jax.random.fold_in(key, number) if number else key
    for number, name in enumerate(stacks)
  }
