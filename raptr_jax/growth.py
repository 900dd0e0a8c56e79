"""Stacking: how a model grows deeper while it trains.

Parameters have the shape [L, ...] from the first step to the last. A model of n
layers runs rows 0 ... n - 1 (`policies.stacked`), and growing to m layers means
that row i becomes row source[i] of what was before. So checkpoints, placement
and the jitted step never change shape.

To add a way to grow, write a function (n, m) -> the source of each of m rows,
and name it in `NEW_LAYERS`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from raptr_jax.contracts import of_stack
from raptr_jax.schedule import StageSchedule

OPTIMIZER_STATES = ("copy", "reset")
Tree = TypeVar("Tree")


def last_block(old: int, new: int) -> list[int]:
  """The new layers copy the last ones (gradual stacking, Reddi et al. 2023)."""
  if new > 2 * old:
    raise ValueError(f"{old} layers have no last block of {new - old}")
  return [*range(old), *range(2 * old - new, old)]


def middle_block(old: int, new: int) -> list[int]:
  """The middle block is there twice (MidAS, Saunshi et al., 2024).

  Of n blocks as large as what is added, it is number ceil(n / 2), from 1.
  """
  size = new - old
  if old % size:
    raise ValueError(f"{old} layers are not made of blocks of {size}")
  end = -(-(old // size) // 2) * size
  return [*range(end), *range(end - size, old)]


def repeated(old: int, new: int) -> list[int]:
  """The whole model again on top (progressive stacking, Gong et al. 2019).

  From one layer it gives all others that layer's parameters.
  """
  if old == 0 or new % old:
    raise ValueError(f"{new} layers are no multiple of {old}")
  return [i % old for i in range(new)]


def untrained(old: int, new: int) -> list[int]:
  """New layers have their initial parameters."""
  return list(range(new))


RowSources = Callable[[int, int], list[int]]
NEW_LAYERS: dict[str, RowSources] = {
  "last": last_block,
  "middle": middle_block,
  "repeated": repeated,
  "untrained": untrained,
}


@dataclasses.dataclass(frozen=True)
class GrowthPlan:
  """When the layers of a model are rearranged, and how.

  Attributes:
    schedule: number of layers in each stage.
    new_layers: name in `NEW_LAYERS`.
    optimizer_state: "copy" gives new rows the optimizer state of their source,
      "reset" gives them zeros. Adam's step count stays, so that after a reset
      its first updates of these rows are larger than its bias correction
      means; Adafactor's counts are by row, and are reset as well.

  Raises:
    ValueError: if a stage has no whole number of layers, or cannot grow so.
  """

  schedule: StageSchedule
  new_layers: str = "last"
  optimizer_state: str = "copy"

  def __post_init__(self):
    for name, choices in (
      ("new_layers", tuple(NEW_LAYERS)),
      ("optimizer_state", OPTIMIZER_STATES),
    ):
      if getattr(self, name) not in choices:
        raise ValueError(
          f"GrowthPlan.{name} = {getattr(self, name)!r}, expected one of"
          f" {choices}."
        )
    for step in self.schedule.boundaries:
      self.source(step)

  def num_layers(self, step: int) -> int:
    """Layers that the model has in this step."""
    stage = np.searchsorted(self.schedule.boundaries, step, side="right")
    return int(self.schedule.stages[stage].path_length)

  def source(self, step: int) -> Int[np.ndarray, "L"] | None:
    """Row of the old model for each new one, before this step; mostly None."""
    if step not in self.schedule.boundaries:
      return None
    lengths = [stage.path_length for stage in self.schedule.stages]
    stage = self.schedule.boundaries.index(step)
    old, new = lengths[stage : stage + 2]
    if old != int(old) or new != int(new) or new <= old:
      raise ValueError(
        f"The model cannot grow from {old:g} to {new:g} layers: set whole and"
        " growing numbers of layers (STACKING_LENGTHS, DOUBLING_LENGTHS)."
      )
    try:
      rows = NEW_LAYERS[self.new_layers](int(old), int(new))
    except ValueError as error:
      raise ValueError(
        f"GrowthPlan.new_layers = {self.new_layers!r} cannot grow from"
        f" {old:g} to {new:g} layers: {error}. Set other numbers of layers"
        " (STACKING_LENGTHS, DOUBLING_LENGTHS) or another way to grow."
      ) from None
    if len(rows) != new or not all(0 <= row < new for row in rows):
      raise ValueError(
        f"GrowthPlan.new_layers = {self.new_layers!r} gives the sources {rows},"
        f" expected {new:g} rows, each from 0 to {new - 1:g}."
      )
    return np.asarray([*rows, *range(int(new), self.schedule.num_layers)])


def is_copy(source: Sequence[int] | np.ndarray) -> Bool[np.ndarray, "L"]:
  """Rows whose source another row, further down, has as well."""
  rows = list(source)
  return np.asarray([row in rows[:i] for i, row in enumerate(rows)])


def row_moves(
  growths: Mapping[str, GrowthPlan], step: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """What `grow` takes before this step: sources and resets of each stack.

  Both are empty if no stack grows then.
  """
  found = {name: growth.source(step) for name, growth in growths.items()}
  if all(source is None for source in found.values()):
    return {}, {}
  sources, resets = {}, {}
  for name, growth in growths.items():
    source, stay = found[name], np.arange(growth.schedule.num_layers)
    sources[name] = stay if source is None else source
    reset = growth.optimizer_state == "reset"
    resets[name] = is_copy(sources[name]) & reset
  return sources, resets


def grow(
  params: Tree,
  opt_state: Any,
  sources: Mapping[str, Int[Array | np.ndarray, "L"]],
  resets: Mapping[str, Bool[Array | np.ndarray, "L"]],
) -> tuple[Tree, Any]:
  """Rearranges the rows of all stacked layers.

  Args:
    params: leaves of layer stacks are [L, ...]; others stay.
    opt_state: the same.
    sources: of each stack; row i becomes row source[i].
    resets: of each stack; rows of the optimizer state that become zero.
  """

  def rearranged(path, leaf):
    source = of_stack(path, sources)
    return leaf if source is None else leaf[source]

  def rearranged_state(path, leaf):
    source, reset = of_stack(path, sources), of_stack(path, resets)
    if source is None or reset is None:
      return leaf
    rows = reset.reshape(-1, *[1] * (leaf.ndim - 1))
    return jnp.where(rows, 0, leaf[source]).astype(leaf.dtype)

  tree_map = jax.tree_util.tree_map_with_path
  return tree_map(rearranged, params), tree_map(rearranged_state, opt_state)
