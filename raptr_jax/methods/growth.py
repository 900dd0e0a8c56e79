"""Stacking: how a model grows deeper while it trains.

Parameters have the shape [L, ...] from the first step to the last. A model of n
layers runs rows 0 to n - 1 (`policies.stacked`). To grow to m layers, row i
becomes a copy of the old row source[i]. So checkpoints, placement and the
jitted step never change shape.

A way to grow is a function (n, m) -> the source of each of the m layers.
`GrowthPlan.new_layers` takes such a function, or a name in `NEW_LAYERS`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from raptr_jax.methods.layer_rows import TreePath, of_stack
from raptr_jax.methods.schedule import StageSchedule

OPTIMIZER_STATES = ("copy", "reset")
Tree = TypeVar("Tree")
Leaf: TypeAlias = Array | np.ndarray


def last_block(old: int, new: int) -> list[int]:
  """New layers copy the last ones (gradual stacking, Reddi et al. 2023)."""
  if new > 2 * old:
    raise ValueError(f"{old} layers have no last block of {new - old}")
  return [*range(old), *range(2 * old - new, old)]


def middle_block(old: int, new: int) -> list[int]:
  """Repeats the middle block (MidAS, Saunshi et al., 2024).

  Of n blocks of new - old layers, that is block ceil(n / 2), counted from 1.
  """
  size = new - old
  if old % size:
    raise ValueError(f"{old} layers do not divide into blocks of {size}")
  end = -(-(old // size) // 2) * size
  return [*range(end), *range(end - size, old)]


def repeated(old: int, new: int) -> list[int]:
  """Repeats the whole model (progressive stacking, Gong et al. 2019).

  A model of one layer gives its parameters to all others.
  """
  if old == 0 or new % old:
    raise ValueError(f"{new} layers are not a multiple of {old}")
  return [i % old for i in range(new)]


def untrained(old: int, new: int) -> list[int]:
  """New layers keep their initial parameters."""
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
  """When a model grows, and which layers its new layers copy.

  Attributes:
    schedule: number of layers in each stage.
    new_layers: name in `NEW_LAYERS`, or a function like those.
    optimizer_state: "copy" gives new rows the optimizer state of their source,
      "reset" sets it to zero. A reset keeps Adam's step count, so that the
      first updates of these rows are larger than its bias correction intends;
      Adafactor counts by row, and its counts are reset as well.

  Raises:
    ValueError: if a stage has no whole number of layers, or if the model
      cannot grow in this way.
  """

  schedule: StageSchedule
  new_layers: str | RowSources = "last"
  optimizer_state: str = "copy"

  def __post_init__(self) -> None:
    for name, choices in (
      ("new_layers", tuple(NEW_LAYERS)),
      ("optimizer_state", OPTIMIZER_STATES),
    ):
      value = getattr(self, name)
      is_function = name == "new_layers" and callable(value)
      if value not in choices and not is_function:
        raise ValueError(
          f"growth.GrowthPlan.{name} = {value!r}, expected one of {choices}."
        )
    for step in self.schedule.boundaries:
      self.source(step)

  def num_layers(self, step: int) -> int:
    """Layers that the model has in this step."""
    stage = np.searchsorted(self.schedule.boundaries, step, side="right")
    return int(self.schedule.stages[stage].path_length)

  def source(self, step: int) -> Int[np.ndarray, "L"] | None:
    """The old row that each row copies before this step; None if it stays."""
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
    way = self.new_layers
    sources = NEW_LAYERS[way] if isinstance(way, str) else way
    try:
      rows = sources(int(old), int(new))
    except ValueError as error:
      raise ValueError(
        f"growth.GrowthPlan.new_layers = {way!r} cannot grow from"
        f" {old:g} to {new:g} layers: {error}. Set other numbers of layers"
        " (STACKING_LENGTHS, DOUBLING_LENGTHS) or another way to grow."
      ) from None
    if len(rows) != new or not all(0 <= row < new for row in rows):
      raise ValueError(
        f"growth.GrowthPlan.new_layers = {way!r} gives the sources {rows},"
        f" expected {new:g} rows, each from 0 to {new - 1:g}."
      )
    return np.asarray([*rows, *range(int(new), self.schedule.num_layers)])


def is_copy(source: Sequence[int] | np.ndarray) -> Bool[np.ndarray, "L"]:
  """True for each row whose source an earlier row already has."""
  rows = list(source)
  return np.asarray([row in rows[:i] for i, row in enumerate(rows)])


def row_moves(
  growths: Mapping[str, GrowthPlan], step: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """The arguments `sources` and `resets` of `grow` before this step.

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
  opt_state: PyTree,
  sources: Mapping[str, Int[Array | np.ndarray, "L"]],
  resets: Mapping[str, Bool[Array | np.ndarray, "L"]],
) -> tuple[Tree, PyTree]:
  """Rearranges the rows of all stacked layers.

  Args:
    params: leaves of layer stacks are [L, ...]; other leaves stay.
    opt_state: the optimizer's state, by the same rule.
    sources: for each stack: row i becomes row source[i].
    resets: for each stack: rows of the optimizer state that become zero.
  """

  def rearranged(path: TreePath, leaf: Leaf) -> Leaf:
    source = of_stack(path, sources)
    return leaf if source is None else leaf[source]

  def rearranged_state(path: TreePath, leaf: Leaf) -> Leaf:
    source, reset = of_stack(path, sources), of_stack(path, resets)
    if source is None or reset is None:
      return leaf
    rows = reset.reshape(-1, *[1] * (leaf.ndim - 1))
    return jnp.where(rows, 0, leaf[source]).astype(leaf.dtype)

  tree_map = jax.tree_util.tree_map_with_path
  return tree_map(rearranged, params), tree_map(rearranged_state, opt_state)
