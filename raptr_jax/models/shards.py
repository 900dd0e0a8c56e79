"""What each shard of a batch computes by itself: sums, and vectors of a table.

Left to XLA, a sum that grows in a loop is reduced over the devices in each
round. Here each shard adds up its own part, and the parts are added once.

A program knows the mesh that it is compiled for from `Partitioner.on_mesh`;
without one, there is a single shard.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

Whole = TypeVar("Whole", bound=PyTree)
Split = TypeVar("Split", bound=PyTree)
Sums = TypeVar("Sums", bound=PyTree)

TENSOR_AXIS = "tensor"  # It splits heads; other axes of a mesh split batches.
FSDP_AXIS = "fsdp"  # Of those, the one that also splits parameters along D.


def automatic_axes() -> set[str]:
  """The mesh axes that are left to XLA where this is called."""
  mesh = jax.sharding.get_abstract_mesh()
  kinds = zip(mesh.axis_names, mesh.axis_types)
  return {name for name, kind in kinds if kind != AxisType.Manual}


def batch_axes() -> tuple[str, ...]:
  """Those of them over which batches are spread."""
  mesh = jax.sharding.get_abstract_mesh()
  return tuple(
    name
    for name in mesh.axis_names
    if name in automatic_axes() - {TENSOR_AXIS} and mesh.shape[name] > 1
  )


def num_shards(axes: tuple[str, ...]) -> int:
  """Number of shards along these axes of the mesh."""
  shape = jax.sharding.get_abstract_mesh().shape
  return math.prod(shape[name] for name in axes)


def heads_are_split() -> bool:
  """Whether the mesh splits heads, MLPs and the vocabulary."""
  size: int = jax.sharding.get_abstract_mesh().shape.get(TENSOR_AXIS, 1)
  return size > 1


def split_batch(x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
  """The same array, whose examples stay where their batch is.

  Parameters may be split over the devices that share the batch. Left to XLA,
  activations would be split like them, along D, and their examples gathered.
  """
  axes = batch_axes()
  if not axes:
    return x
  placed: Array = lax.with_sharding_constraint(x, PartitionSpec(axes))
  return placed


def look_up(
  table: Float[Array, "N D"], index: Int[Array, "B ..."], *, by_rows: bool
) -> Float[Array, "B ... D"]:
  """Rows of a table, which both other axes of the mesh may split.

  Left to XLA, every device would then look up the whole batch, and get all
  rows and their gradients. Here it gathers the rest of its own rows, as of any
  parameters, and looks up its own examples; the devices of `tensor` add up
  what they have found.

  Args:
    table: its columns are split over `fsdp`.
    index: of rows, by examples.
    by_rows: whether rows are split over `tensor`.
  """
  axes = batch_axes()
  if FSDP_AXIS not in axes or not heads_are_split():
    return table[index]
  row_axes = (TENSOR_AXIS,) if by_rows else ()
  copies = tuple(axis for axis in axes if axis != FSDP_AXIS)
  splits = zip((len(index), *table.shape), (axes, row_axes, (FSDP_AXIS,)))
  if any(size % num_shards(names) for size, names in splits):
    return table[index]

  def of_shard(
    part: Float[Array, "n d"], index: Int[Array, "b ..."]
  ) -> Float[Array, "b ... D"]:
    # Here, so that gradients are split before they are summed over copies.
    part = lax.pcast(part, copies, to="varying")
    rows: Array = lax.all_gather(part, FSDP_AXIS, axis=1, tiled=True)
    if not by_rows:
      return rows[index]
    own = index - len(rows) * lax.axis_index(TENSOR_AXIS)
    is_own = (own >= 0) & (own < len(rows))
    found = jnp.where(is_own[..., None], rows[own], 0)
    vectors: Array = lax.psum(found, TENSOR_AXIS)
    return vectors

  mapped: Callable[..., Array] = jax.shard_map(
    of_shard,
    in_specs=(
      PartitionSpec(row_axes, FSDP_AXIS),
      PartitionSpec(axes),
    ),
    out_specs=PartitionSpec(axes),
    axis_names={*axes, TENSOR_AXIS},
  )
  return mapped(table, index)


def sum_over_shards(
  function: Callable[[Whole, Split], Sums],
  whole: Whole,
  split: Split,
  axes: tuple[str, ...],
) -> Sums:
  """`function(whole, split)`, by one shard at a time.

  Args:
    function: returns sums over the examples of `split`.
    whole: every shard has all of it.
    split: arrays whose first axis is spread over `axes` of the mesh.
    axes: such as those of `batch_axes`; the function is called as it is if
      there are none.
  """
  if not axes:
    return function(whole, split)

  def of_shard(whole: Whole, split: Split) -> Sums:
    sums: Sums = lax.psum(function(whole, split), axes)
    return sums

  mapped: Callable[[Whole, Split], Sums] = jax.shard_map(
    of_shard,
    in_specs=(PartitionSpec(), PartitionSpec(axes)),
    out_specs=PartitionSpec(),
    axis_names=set(axes),
    check_vma=False,
  )
  return mapped(whole, split)
