"""The layer stack: L identical blocks, of which a draw says which ones run.

One meaning, two executions; the type of the draw selects one:

  LayerDraw  scans over all L layers, with a conditional inside. One program
             serves every mask.
  LayerPath  scans over the k kept layers, and slices their parameters in the
             loop body: no conditional, memory for k layers only, and a program
             for each k. Shorter paths can share it: its `used` skips the slots
             without a layer, each by a conditional.

A bypassed layer is the identity: it costs no FLOPs, and its gradient is zero.
Never vmap over a draw: a batched conditional runs both of its branches.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from raptr_jax.contracts import Cache, DropoutKey, LayerDraw, LayerPath, Params
from raptr_jax.models.layers import apply
from raptr_jax.models.remat import checkpoint
from raptr_jax.models.shards import split_batch

Hidden: TypeAlias = Float[Array, "*batch D"]
Index: TypeAlias = Int[Array, ""]
Scale: TypeAlias = Float[Array, ""]
Flag: TypeAlias = Bool[Array, ""]
# Runs a block on x: (parameters of a layer, x, its index, its scale) -> x.
RunBlock: TypeAlias = Callable[[Params, Array, Array, Array], Array]


def full_path(num_layers: int) -> LayerPath:
  """The path of the full model."""
  return LayerPath(jnp.arange(num_layers), jnp.ones(num_layers))


def full_paths(stacks: Mapping[str, int]) -> dict[str, LayerPath]:
  """The full path of each stack, from its number of layers."""
  return {name: full_path(size) for name, size in stacks.items()}


class MaskedStack(nn.Module):
  """Stack of blocks with parameters [L, ...].

  Attributes:
    make_block: `make_block(parent=None)` builds a block, a module called as
      `block(x, scale, *inputs, deterministic=...)` that multiplies its residual
      branches by `scale` and returns an array of x's shape and dtype.
    num_layers: L.
    remat: one of `remat.POLICIES`: what a block keeps for its backward pass.
  """

  make_block: Callable[..., nn.Module]
  num_layers: int
  remat: str = "full"

  @nn.compact
  def __call__(
    self,
    x: Hidden,
    draw: LayerDraw | LayerPath,
    *inputs: PyTree,
    dropout_key: DropoutKey,
  ) -> Hidden:
    """Runs the layers of `draw` in order.

    Args:
      x: input of the first layer.
      draw: the layers that run; its type selects the execution.
      *inputs: passed to every block, such as an attention bias.
      dropout_key: folded with the index of each layer, so that both executions
        drop the same units; None switches dropout off.
    """
    block = self.make_block(parent=None)
    layers: Params = self.param(
      "layers", _init_layers, self.num_layers, block, x, inputs
    )

    def run_block(
      params: Params, x: Hidden, index: Index, scale: Scale
    ) -> Hidden:
      rngs = None
      if dropout_key is not None:
        rngs = {"dropout": jax.random.fold_in(dropout_key, index)}
      out: Array = apply(
        block,
        params,
        split_batch(x),
        scale.astype(x.dtype),
        *inputs,
        deterministic=dropout_key is None,
        rngs=rngs,
      )
      return out

    if isinstance(draw, LayerPath):
      return _scan_path(run_block, self.remat, layers, x, draw)
    return _scan_cond(run_block, self.remat, layers, x, draw)

  def extend(
    self, x: Hidden, path: LayerPath, cache: Cache, *inputs: PyTree
  ) -> tuple[Hidden, Cache]:
    """Runs a path on new tokens, with the cache of earlier ones.

    Args:
      x: the new tokens.
      path: the layers that run.
      cache: of each of these layers; leaves are [k, ...].
      *inputs: of `block.extend(x, scale, cache, *inputs) -> (x, cache)`.
    """

    def body(
      x: Hidden, layer: tuple[Index, Scale, Cache]
    ) -> tuple[Hidden, Cache]:
      index, scale, cache = layer
      scale = scale.astype(x.dtype)
      x, cache = self._call("extend", index, x, scale, cache, *inputs)
      return x, cache

    indices, scales = jnp.asarray(path.indices), jnp.asarray(path.scale)
    return lax.scan(body, x, (indices, scales, cache))

  def each(self, path: LayerPath, method: str, *inputs: PyTree) -> PyTree:
    """Results [k, ...] of a method of the block, for each layer of a path."""
    return lax.map(
      lambda index: self._call(method, index, *inputs), path.indices
    )

  def _call(self, method: str, index: Index, *inputs: PyTree) -> PyTree:
    layers: Params = self.get_variable("params", "layers")
    block = self.make_block(parent=None)
    return apply(block, _slice_layer(layers, index), *inputs, method=method)


def _init_layers(
  key: Key[Array, ""],
  num_layers: int,
  block: nn.Module,
  x: Hidden,
  inputs: tuple[PyTree, ...],
) -> Params:
  """Boxed parameters of all layers [L, ...], each drawn with its own key."""

  def init_block(key: Key[Array, ""]) -> Params:
    scale = jnp.ones(())
    return block.init(key, x, scale, *inputs, deterministic=True)["params"]

  params = jax.vmap(init_block)(jax.random.split(key, num_layers))
  return nn.meta.add_axis(params, 0, {nn.PARTITION_NAME: "layers"})


def _slice_layer(layers: Params, index: Index) -> Params:
  return jax.tree.map(
    lambda p: lax.dynamic_index_in_dim(p, index, keepdims=False), layers
  )


def _scan_cond(
  run_block: RunBlock, remat: str, layers: Params, x: Hidden, draw: LayerDraw
) -> Hidden:
  """Scans all layers, each in a conditional; recomputes inside of it."""
  unrolled = _unrolled(remat)
  if not unrolled:
    run_block = checkpoint(run_block, remat)

  def body(
    x: Hidden, layer: tuple[Params, Flag, Scale, Index]
  ) -> tuple[Hidden, None]:
    params, keep, scale, index = layer
    return lax.cond(keep, run_block, _skip, params, x, index, scale), None

  mask, scales = jnp.asarray(draw.mask), jnp.asarray(draw.scale)
  indices = jnp.arange(mask.shape[0])
  slots = layers, mask, scales, indices
  return lax.scan(body, x, slots, unroll=unrolled)[0]


def _scan_path(
  run_block: RunBlock, remat: str, layers: Params, x: Hidden, draw: LayerPath
) -> Hidden:
  """Scans only the kept layers, and the slots that have none."""

  def run_layer(
    layers: Params, x: Hidden, index: Index, scale: Scale, used: Flag | None
  ) -> Hidden:
    # Sliced outside of the conditional, whose gradient is then that of a layer
    # and not that of all layers; computed again inside of it, or all that a
    # block keeps would leave it at once.
    args = _slice_layer(layers, index), x, index, scale
    out: Array = (
      run_block(*args)
      if used is None
      else lax.cond(used, checkpoint(run_block, remat), _skip, *args)
    )
    return out

  unrolled = _unrolled(remat)
  run_kept = run_layer if unrolled else checkpoint(run_layer, remat)

  def body(
    x: Hidden, slot: tuple[Index, Scale, Flag | None]
  ) -> tuple[Hidden, None]:
    return run_kept(layers, x, *slot), None

  slots = jax.tree.map(jnp.asarray, (draw.indices, draw.scale, draw.used))
  return lax.scan(body, x, slots, unroll=unrolled)[0]


def _unrolled(remat: str) -> bool:
  """Whether the layers are laid out one after the other, instead of in a loop.

  A loop writes what its layers keep into arrays [k, ...], and reads it again in
  the backward pass: on a CPU that takes a sixth of the step if they keep
  everything. What recomputes stays in its loop, or XLA would merge it with the
  first computation.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  on_cpu = device is not None and device.platform == "cpu"
  return on_cpu and remat == "none"


def _skip(params: Params, x: Hidden, index: Index, scale: Scale) -> Hidden:
  return x
