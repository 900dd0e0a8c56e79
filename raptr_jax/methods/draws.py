"""The draws of a whole run, known before its first step.

Draws are pure functions of the step, so a run knows in advance which programs
it will need, when, and how many FLOPs it will spend. For that it keeps the path
lengths, a byte for each step of a stack. The draws themselves are drawn again
when their steps come; see `by_step.py`.

The journey of a draw: a policy draws `LayerDraw`s; `DrawTable.at(step)` gives
those of a step in the form that the execution takes; the compiled step passes
them to the model, and the model to its `MaskedStack`s.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Key, UInt, UInt8

from raptr_jax.contracts import Draws, LayerDraw, LayerPath, Policy, Step
from raptr_jax.methods.by_step import PIECE, ByStep
from raptr_jax.methods.path_buckets import Bucket, buckets_of_run

EXECUTIONS = ("cond", "gather")

Drawn: TypeAlias = Mapping[str, LayerDraw]


@dataclasses.dataclass(frozen=True)
class DrawTable:
  """The draws of steps 0, 1, ..., N - 1, on the host.

  Attributes:
    drawn: what the policies draw in each step, by stack.
    stacks: L of each stack.
    stack_lengths: number of layers of each stack that run in each step.
    execution: "cond" hands out `LayerDraw`s, "gather" `LayerPath`s; see
      `masked_stack.py`.
  """

  drawn: ByStep[Drawn]
  stacks: Mapping[str, int]
  stack_lengths: Mapping[str, UInt[np.ndarray, "N"]]
  execution: str

  @property
  def total_steps(self) -> int:
    return self.drawn.total_steps

  def at(self, step: int) -> Draws:
    """The draws of a step, in the form that its program takes."""
    return self._for_program(self.drawn.at(step), self.program(step))

  def slots(self, program: int) -> dict[str, int]:
    """The most layers of each stack that a program runs."""
    if self.execution == "cond":
      return dict(self.stacks)
    return dict(zip(self.stacks, self._buckets[program].slots))

  def example(self, program: int) -> Draws:
    """Draws of that many layers, in the form that a program takes."""
    draws = lowest_layers(self.slots(program), self.stacks)
    return self._for_program(draws, program)

  def _for_program(self, draws: Drawn, program: int) -> Draws:
    if self.execution == "cond":
      return draws
    bucket = self._buckets[program]
    paths = {name: draws[name].path() for name in self.stacks}
    return {
      name: path if filled else with_slots(path, slots)
      for (name, path), slots, filled in zip(
        paths.items(), bucket.slots, bucket.filled
      )
    }

  def program(self, step: int) -> int:
    """The number of the program that runs a step.

    One program serves all steps under `cond`; see `path_buckets.py` for those
    of `gather`.
    """
    return 0 if self.execution == "cond" else int(self._bucket_of_step[step])

  def first_steps(self, start: int) -> list[int]:
    """The first step of each program that is needed from `start` on."""
    if start >= self.total_steps:
      return []
    if self.execution == "cond":
      return [start]
    left = self._bucket_of_step[start:]
    return sorted(start + int(np.argmax(left == n)) for n in np.unique(left))

  @functools.cached_property
  def _run(self) -> tuple[list[Bucket], UInt8[np.ndarray, "N"]]:
    return buckets_of_run(list(self.stack_lengths.values()))

  @property
  def _buckets(self) -> list[Bucket]:
    return self._run[0]

  @property
  def _bucket_of_step(self) -> UInt8[np.ndarray, "N"]:
    return self._run[1]

  @functools.cached_property
  def path_lengths(self) -> UInt[np.ndarray, "N"]:
    """Number of layers that run in each step, over all stacks."""
    dtype = np.min_scalar_type(sum(self.stacks.values()))
    total = np.zeros(self.total_steps, dtype)
    for lengths in self.stack_lengths.values():
      total += lengths
    return total

  def layers_run(self, steps: int) -> dict[str, int]:
    """Layers of each stack that the first `steps` steps run."""
    pieces = steps // PIECE
    return {
      name: int(
        self._layers_of_pieces[name][:pieces].sum()
        + lengths[pieces * PIECE : steps].sum()
      )
      for name, lengths in self.stack_lengths.items()
    }

  @functools.cached_property
  def _layers_of_pieces(self) -> Mapping[str, UInt[np.ndarray, "pieces"]]:
    starts = range(0, self.total_steps, PIECE)
    return {
      name: np.asarray([lengths[n : n + PIECE].sum() for n in starts])
      for name, lengths in self.stack_lengths.items()
    }


def as_executed(draws: Drawn, execution: str) -> Draws:
  """Draws as the type that selects this execution."""
  if execution == "cond":
    return draws
  return {name: draw.path() for name, draw in draws.items()}


def with_slots(path: LayerPath, slots: int) -> LayerPath:
  """The same path in a larger program; the unused slots are at its end."""
  length = len(path.indices)
  indices, scale = (
    np.pad(x, (0, slots - length)) for x in (path.indices, path.scale)
  )
  return LayerPath(indices, scale, np.arange(slots) < length)


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
  """Draws all steps of a run, of which it keeps the path lengths.

  Stacks draw independently.
  """

  def draw(keys: Mapping[str, Key[Array, ""]], step: Step) -> Drawn:
    return {name: policies[name](keys[name], step) for name in policies}

  keys = stack_keys(key, policies)
  drawn: ByStep[Drawn] = ByStep(draw, total_steps, keys)
  stacks = {name: policy.num_layers for name, policy in policies.items()}
  lengths: dict[str, list[np.ndarray]] = {name: [] for name in stacks}
  for piece in drawn.pieces(0, total_steps):
    for name, size in stacks.items():
      mask = np.asarray(piece[name].mask)
      lengths[name].append(mask.sum(axis=1, dtype=np.min_scalar_type(size)))
  stack_lengths = {name: np.concatenate(x) for name, x in lengths.items()}
  return DrawTable(drawn, stacks, stack_lengths, execution)


def stack_keys(
  key: Key[Array, ""], stacks: Iterable[str]
) -> dict[str, Key[Array, ""]]:
  """A key for each stack; the first stack gets `key` itself."""
  return {
    name: jax.random.fold_in(key, number) if number else key
    for number, name in enumerate(stacks)
  }
