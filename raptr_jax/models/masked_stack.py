"""The layer stack: L identical blocks, of which a draw says which ones run.

One meaning, two executions, chosen by the type of the draw:

  LayerDraw  scan over all L layers with a conditional inside. One program for
             every mask: the form that everyone can check by eye.
  LayerPath  scan over the k kept layers, whose parameters are sliced from the
             stacked ones in the body. No predicate, and memory for k layers
             only; one program for each k.

A bypassed layer is the identity: it costs no FLOPs, and its gradient is zero.
Never vmap over a draw: a batched conditional runs both of its branches.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from raptr_jax.contracts import LayerDraw, LayerPath

Cache: TypeAlias = Any  # A pytree: what layers keep of the tokens they saw.

# Slices of the stacked parameters, and what only changes their shape.
_SLICING = ("dynamic_slice", "squeeze", "reshape")


def _all_but_slices(primitive, *_, **__) -> bool:
  """Keeps all that a backward pass needs but copies of k layers' parameters."""
  return primitive.name not in _SLICING


# What a block's forward pass keeps for its backward pass.
REMAT_POLICIES = {"none": _all_but_slices, "full": None}


def full_path(num_layers: int) -> LayerPath:
  """The path of the full model."""
  return LayerPath(jnp.arange(num_layers), jnp.ones(num_layers))


class MaskedStack(nn.Module):
  """Stack of blocks with parameters [L, ...].

  Attributes:
    make_block: `make_block(parent=None)` builds a block, a module called as
      `block(x, scale, *inputs, deterministic=...)` that multiplies its residual
      branches by `scale` and returns x's shape and dtype.
    num_layers: L.
    remat: "full" recomputes a block in its backward pass; "none" stores its
      intermediate values.
  """

  make_block: Callable[..., nn.Module]
  num_layers: int
  remat: str = "full"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    draw: LayerDraw | LayerPath,
    *inputs: Any,
    dropout_key: jax.Array | None,
  ) -> Float[Array, "B T D"]:
    """Runs the layers of `draw` in order.

    Args:
      x: input of the first layer.
      draw: the layers that run; its type says how.
      *inputs: passed to every block, such as an attention bias.
      dropout_key: layer l drops out by this key folded with l, so that both
        executions drop the same units; None switches dropout off.
    """
    block = self.make_block(parent=None)

    def init(key: jax.Array):
      """Parameters of all layers [L, ...], each layer drawn by its own key."""
      keys = jax.random.split(key, self.num_layers)
      scale = jnp.ones(())

      def init_block(key):
        return block.init(key, x, scale, *inputs, deterministic=True)["params"]

      params = jax.vmap(init_block)(keys)
      return nn.meta.add_axis(params, 0, {nn.PARTITION_NAME: "layers"})

    layers = self.param("layers", init)

    def run_block(params, x, index, scale):
      """Layer `index` on x [B, T, D], with parameters that are its own."""
      rngs = None
      if dropout_key is not None:
        rngs = {"dropout": jax.random.fold_in(dropout_key, index)}
      return block.apply(
        {"params": params},
        x,
        scale.astype(x.dtype),
        *inputs,
        deterministic=dropout_key is None,
        rngs=rngs,
      )

    def checkpoint(function):
      policy = REMAT_POLICIES[self.remat]
      return jax.checkpoint(function, policy=policy, prevent_cse=False)

    if isinstance(draw, LayerPath):
      return _scan_path(run_block, checkpoint, layers, x, draw)
    return _scan_cond(run_block, checkpoint, layers, x, draw)

  def extend(
    self,
    x: Float[Array, "B T D"],
    path: LayerPath,
    cache: Cache,
    *inputs: Any,
  ) -> tuple[Float[Array, "B T D"], Cache]:
    """Runs a path on new tokens, with what its layers keep of earlier ones.

    Args:
      x: the new tokens.
      path: the layers that run.
      cache: of each of these layers; leaves are [k, ...].
      *inputs: passed to the method `extend` of every block, called as
        `block.extend(x, scale, cache, *inputs)`; it returns x and its cache.
    """

    def body(x, layer):
      index, scale, cache = layer
      return self._call(
        "extend", index, x, scale.astype(x.dtype), cache, *inputs
      )

    return lax.scan(body, x, (path.indices, path.scale, cache))

  def each(self, path: LayerPath, method: str, *inputs: Any) -> Any:
    """What this method of a block gives in each layer of a path [k, ...]."""
    return lax.map(
      lambda index: self._call(method, index, *inputs), path.indices
    )

  def _call(self, method: str, index, *inputs):
    """Calls a method of the block that is layer `index`."""
    layers: Any = self.get_variable("params", "layers")
    block = self.make_block(parent=None)
    return block.apply(
      {"params": _slice_layer(layers, index)}, *inputs, method=method
    )


def _slice_layer(layers, index):
  return jax.tree.map(
    lambda p: lax.dynamic_index_in_dim(p, index, keepdims=False), layers
  )


def _scan_cond(run_block, checkpoint, layers, x, draw: LayerDraw):
  """All layers, each behind a conditional; recomputation is inside of it."""
  run_block = checkpoint(run_block)

  def body(x, layer):
    params, keep, scale, index = layer
    x = lax.cond(
      keep, lambda x: run_block(params, x, index, scale), lambda x: x, x
    )
    return x, None

  indices = jnp.arange(draw.mask.shape[0])
  return lax.scan(body, x, (layers, draw.mask, draw.scale, indices))[0]


def _scan_path(run_block, checkpoint, layers, x, draw: LayerPath):
  """The kept layers alone."""

  @checkpoint
  def run_layer(layers, x, index, scale):
    return run_block(_slice_layer(layers, index), x, index, scale)

  def body(x, layer):
    index, scale = layer
    return run_layer(layers, x, index, scale), None

  return lax.scan(body, x, (draw.indices, draw.scale))[0]
