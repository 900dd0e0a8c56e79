"""Attention: one meaning, and the implementations that compute it.

  plain    all logits [B, H, T, S] at once: the reference, and fast for short
           rows.
  chunked  a few queries at a time, computed again in the backward pass: memory
           grows with S, not with T S. Any device, bias and dropout.
  cudnn    cuDNN's flash attention, through `jax.nn.dot_product_attention`:
           NVIDIA GPUs, 16-bit types; no bias, no dropout.
  splash   JAX's Pallas kernel for TPUs: rows of a multiple of 128 tokens; no
           bias, no dropout.

"auto" takes the fused kernel of the device that is compiled for, if it can do
what is asked, else "plain" for short rows and "chunked" for long ones.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Key

from raptr_jax.models.fused_attention import SPLASH_MULTIPLE, cudnn, splash
from raptr_jax.models.layers import scores
from raptr_jax.models.masks import Mask
from raptr_jax.models.remat import ATTENTION

KERNELS = ("auto", "plain", "chunked", "cudnn", "splash")
NEVER = -1e9  # A logit that is masked; finite, so that no softmax gives NaN.
# Queries of a chunk. Larger ones are hardly faster on any device.
CHUNK = 256


class Bias(Protocol):
  """A bias that is computed for some queries at a time; a pytree."""

  def __call__(
    self, first: int | Int[Array, ""], rows: int, columns: int
  ) -> Float[Array, "1 H rows columns"]:
    """What is added to the logits of the queries from `first` on."""


@flax.struct.dataclass
class Dropout:
  """Dropout of attention weights; every query has a key of its own.

  So all implementations, and chunks of any size, drop the same weights.

  Attributes:
    key: folded with the index of each query.
    rate: the probability of a weight to be dropped.
  """

  key: Key[Array, ""]
  rate: float = flax.struct.field(pytree_node=False)

  def __call__(
    self, weights: Float[Array, "B H rows S"], first: int | Int[Array, ""]
  ) -> Float[Array, "B H rows S"]:
    """Weights of the queries from `first` on, some of them dropped."""
    batch, heads, rows, columns = weights.shape
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
      self.key, first + jnp.arange(rows)
    )
    keep = jax.vmap(
      lambda key: jax.random.bernoulli(
        key, 1 - self.rate, (batch, heads, columns)
      ),
      out_axes=2,
    )(keys)
    return jnp.where(keep, weights / (1 - self.rate), 0)


def attend(
  query: Float[Array, "B H T K"],
  keys: Float[Array, "B G S K"],
  values: Float[Array, "B G S K"],
  mask: Mask,
  *,
  scale: float,
  bias: Bias | None = None,
  dropout: Dropout | None = None,
  kernel: str = "auto",
) -> Float[Array, "B H T K"]:
  """The mean of values, weighted by softmax(scale query . keys + bias).

  Args:
    query: of the tokens that attend.
    keys: of the tokens that are attended to. H is a multiple of G: that many
      neighbouring heads share keys and values.
    values: of the same tokens.
    mask: who attends to whom.
    scale: of the logits.
    bias: added to the logits, such as T5's relative positions.
    dropout: of the weights; None for none.
    kernel: one of `KERNELS`.

  Raises:
    ValueError: the kernel cannot do what is asked.
  """
  obstacle = _obstacle_to_fusion(bias, dropout)
  if kernel == "auto":
    kernel = _choose(query, keys, fusible=not obstacle)
  elif kernel in FUSED and obstacle:
    raise ValueError(
      f"ATTENTION_KERNEL = {kernel!r} cannot compute {obstacle}: expected"
      " 'auto', 'plain' or 'chunked'."
    )
  function = IMPLEMENTATIONS[kernel]
  if kernel in FUSED:  # What these keep has marks of their own.
    return function(query, keys, values, mask, scale)
  mixed = function(query, keys, values, mask, scale, bias, dropout)
  marked: Array = checkpoint_name(mixed, ATTENTION)
  return marked


def _obstacle_to_fusion(bias: Bias | None, dropout: Dropout | None) -> str:
  """What no fused kernel can compute; "" if there is nothing."""
  if bias is not None:
    return "relative positions"
  if dropout is not None:
    return "dropout of attention weights (ATTENTION_DROPOUT_RATE)"
  return ""


def _choose(
  query: Float[Array, "B H T K"],
  keys: Float[Array, "B G S K"],
  *,
  fusible: bool,
) -> str:
  """The implementation for these shapes on the device of the mesh."""
  length, source_length, width = query.shape[2], keys.shape[2], query.shape[3]
  device = jax.sharding.get_abstract_mesh().abstract_device

  def are_multiples(size: int) -> bool:
    return length % size == 0 and source_length % size == 0

  if fusible and device is not None:
    if device.platform == "tpu" and are_multiples(SPLASH_MULTIPLE):
      return "splash"
    fits = are_multiples(2) and width % 8 == 0 and width <= 128
    if "NVIDIA" in device.device_kind and query.dtype.itemsize == 2 and fits:
      return "cudnn"
  return "plain" if length <= CHUNK else "chunked"


def _rows(
  query: Float[Array, "B H rows K"],
  keys: Float[Array, "B G S K"],
  values: Float[Array, "B G S K"],
  mask: Mask,
  scale: float,
  bias: Bias | None,
  dropout: Dropout | None,
  first: int | Int[Array, ""] = 0,
) -> Float[Array, "B H rows K"]:
  """Attention of the queries from `first` on."""
  batch, heads, rows, width = query.shape
  groups, columns = keys.shape[1:3]
  # Query heads that share keys are stacked along T: one product per group.
  grouped = query.reshape(batch, groups, -1, width)
  logits = scores("bgmk,bgsk->bgms", grouped, keys)
  logits = logits.reshape(batch, heads, rows, columns) * scale
  if bias is not None:
    logits = logits + bias(first, rows, columns)
  logits = jnp.where(mask.allowed(first, rows), logits, NEVER)
  weights = jax.nn.softmax(logits).astype(query.dtype)
  if dropout is not None:
    weights = dropout(weights, first)
  weights = weights.reshape(batch, groups, -1, columns)
  mixed = jnp.einsum("bgms,bgsk->bgmk", weights, values)
  return mixed.reshape(query.shape)


def _chunked(
  query: Float[Array, "B H T K"],
  keys: Float[Array, "B G S K"],
  values: Float[Array, "B G S K"],
  mask: Mask,
  scale: float,
  bias: Bias | None,
  dropout: Dropout | None,
) -> Float[Array, "B H T K"]:
  """`_rows` for `CHUNK` queries at a time; nothing is kept between chunks."""
  batch, heads, length, width = query.shape
  rows = min(CHUNK, length)
  count = -(-length // rows)
  extra = count * rows - length
  query = jnp.pad(query, ((0, 0), (0, 0), (0, extra), (0, 0)))
  queries = jnp.pad(mask.queries, ((0, 0), (0, extra)))
  mask = dataclasses.replace(mask, queries=queries)
  chunks = jnp.moveaxis(query.reshape(batch, heads, count, rows, width), 2, 0)
  # In float32, since their gradients are sums over chunks.
  wide = keys.astype(jnp.float32), values.astype(jnp.float32)

  @functools.partial(jax.checkpoint, prevent_cse=False)
  def chunk(
    first: Int[Array, ""], query: Float[Array, "B H rows K"]
  ) -> Float[Array, "B H rows K"]:
    keys, values = (x.astype(query.dtype) for x in wide)
    return _rows(query, keys, values, mask, scale, bias, dropout, first)

  firsts = jnp.arange(count) * rows
  mixed = lax.map(lambda x: chunk(*x), (firsts, chunks))
  mixed = jnp.moveaxis(mixed, 0, 2).reshape(batch, heads, -1, width)
  return mixed[:, :, :length]


FUSED = ("cudnn", "splash")
IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
  "plain": _rows,
  "chunked": _chunked,
  "cudnn": cudnn,
  "splash": splash,
}
