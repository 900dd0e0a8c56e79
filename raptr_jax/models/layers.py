"""Parts of a transformer block; none of them knows of dropped layers.

Parameters are float32 and carry logical axis names, which `partitioning.py`
maps to the mesh; products run in the compute dtype, norms and softmax in
float32.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Initializer = Callable[..., Any]
DTypeLike = str | jnp.dtype

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def truncated_normal(stddev: float) -> Initializer:
  """Normal, cut at two standard deviations, as BERT's initialisation is.

  The standard deviation is that of the normal before the cut.
  """
  return nn.initializers.truncated_normal(stddev)


def with_axes(init: Initializer, names: Sequence[str]) -> Initializer:
  """An initializer whose values carry the logical names of their axes."""
  return nn.with_logical_partitioning(init, tuple(names))


def dense(
  x: Float[Array, "*batch D"],
  kernel: Float[Array, "D *out"],
  bias: Float[Array, "*out"] | None,
) -> Array:
  """X @ kernel + bias, in x's dtype.

  Leading axes are flattened into one: XLA's CPU backend computes the weight
  gradient of a product with several leading axes through transposed copies,
  at twice the time. The reshapes themselves are free.
  """
  flat = x.reshape(-1, x.shape[-1])
  out = flat @ kernel.reshape(kernel.shape[0], -1).astype(x.dtype)
  if bias is not None:
    out = out + bias.reshape(-1).astype(x.dtype)
  return out.reshape(*x.shape[:-1], *kernel.shape[1:])


class Dense(nn.Module):
  """Linear map of the last axis to `features`, which may be several axes.

  Attributes:
    features: output axes.
    axes: logical names of the kernel's axes, input first.
    kernel_init: drawn with the shape [input, product of outputs].
    use_bias: whether to add a bias, zero at first.
  """

  features: Sequence[int]
  axes: Sequence[str]
  kernel_init: Initializer
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, "*batch D"]) -> Array:
    shape = (x.shape[-1], *self.features)

    def init(key):
      flat = (shape[0], math.prod(self.features))
      return self.kernel_init(key, flat, jnp.float32).reshape(shape)

    names = self.axes
    kernel = self.param("kernel", with_axes(init, names))
    bias = None
    if self.use_bias:
      zeros = with_axes(nn.initializers.zeros, names[1:])
      bias = self.param("bias", zeros, tuple(self.features), jnp.float32)
    return dense(x, kernel, bias)


class LayerNorm(nn.Module):
  """Layer norm with scale and bias, computed in float32."""

  epsilon: float

  @nn.compact
  def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    ones = with_axes(nn.initializers.ones, ("embed",))
    zeros = with_axes(nn.initializers.zeros, ("embed",))
    scale = self.param("scale", ones, (x.shape[-1],), jnp.float32)
    bias = self.param("bias", zeros, (x.shape[-1],), jnp.float32)
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(variance + self.epsilon)
    return (normed * scale + bias).astype(x.dtype)


class Embedding(nn.Module):
  """A table of vectors, looked up by index."""

  num_embeddings: int
  features: int
  axis: str
  embedding_init: Initializer
  dtype: DTypeLike

  def setup(self):
    self.embedding = self.param(
      "embedding",
      with_axes(self.embedding_init, (self.axis, "embed")),
      (self.num_embeddings, self.features),
      jnp.float32,
    )

  def __call__(self, index: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    return self.embedding[index].astype(self.dtype)

  def attend(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
    """Scores of all entries, with the same table: a tied output layer."""
    return dense(x, self.embedding.T, None)


class SelfAttention(nn.Module):
  """Multi-head attention of a sequence to itself.

  Query, key and value come from one product, and heads lead their tokens in
  the two products of attention: both are markedly faster on CPU.
  """

  num_heads: int
  kernel_init: Initializer
  dropout_rate: float

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B T D"],
    bias: Float[Array, "B 1 T T"],
    deterministic: bool,
  ) -> Float[Array, "B T D"]:
    batch, length, width = x.shape
    head_dim = width // self.num_heads
    qkv = Dense(
      (3, self.num_heads, head_dim),
      ("embed", "qkv", "heads", "kv"),
      self.kernel_init,
      name="qkv",
    )(x)
    query, key, value = jnp.moveaxis(qkv, (2, 3), (0, 2))  # 3 x [B H T K]
    logits = jnp.einsum("bhtk,bhsk->bhts", query, key)
    logits = logits.astype(jnp.float32) * head_dim**-0.5 + bias
    weights = jax.nn.softmax(logits).astype(x.dtype)
    weights = nn.Dropout(self.dropout_rate)(weights, deterministic)
    mixed = jnp.einsum("bhts,bhsk->bhtk", weights, value)
    mixed = jnp.moveaxis(mixed, 1, 2).reshape(batch, length, width)
    return Dense((width,), ("heads", "embed"), self.kernel_init, name="out")(
      mixed
    )


class Mlp(nn.Module):
  """Two linear maps with an activation between them."""

  mlp_dim: int
  activation: str
  kernel_init: Initializer

  @nn.compact
  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    hidden = Dense(
      (self.mlp_dim,), ("embed", "mlp"), self.kernel_init, name="wi"
    )(x)
    hidden = ACTIVATIONS[self.activation](hidden)
    return Dense((x.shape[-1],), ("mlp", "embed"), self.kernel_init, name="wo")(
      hidden
    )


def segment_bias(
  segment_ids: Int[Array, "B T"],
) -> Float[Array, "B 1 T T"]:
  """0 between tokens of one packed segment, very negative elsewhere.

  The value is finite, so that no softmax gives NaN. Padding has segment 0 and
  attends to padding alone; nothing reads its output.
  """
  same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
  return jnp.where(same, 0.0, -1e9).astype(jnp.float32)
