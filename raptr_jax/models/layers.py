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
from jaxtyping import Array, Bool, Float, Int

Initializer = Callable[..., Any]
DTypeLike = str | jnp.dtype

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "silu": jax.nn.silu,
}
NEVER = -1e9  # A bias of attention; finite, so that no softmax gives NaN.


def truncated_normal(stddev: float) -> Initializer:
  """Normal, cut at two standard deviations, as BERT's initialisation is.

  The standard deviation is that of the normal before the cut.
  """
  return nn.initializers.truncated_normal(stddev)


def fan_in(scale: float = 1.0) -> Initializer:
  """Normal of variance scale / (input axes), so that outputs keep theirs."""
  return nn.initializers.variance_scaling(scale, "fan_in", "normal")


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


class RMSNorm(nn.Module):
  """Divides by the root mean square (arXiv 1910.07467), in float32."""

  epsilon: float

  @nn.compact
  def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    ones = with_axes(nn.initializers.ones, ("embed",))
    scale = self.param("scale", ones, (x.shape[-1],), jnp.float32)
    wide = x.astype(jnp.float32)
    square = jnp.square(wide).mean(-1, keepdims=True)
    return (wide * jax.lax.rsqrt(square + self.epsilon) * scale).astype(x.dtype)


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


class Attention(nn.Module):
  """Multi-head attention in two parts, so that keys and values can be kept.

  Without biases. A head of keys and values may serve several query heads
  (grouped-query attention, arXiv 2305.13245).

  Attributes:
    features: D, width of what it gives.
    num_heads: H.
    head_dim: K.
    num_kv_heads: G, heads of keys and values; divides H.
    dropout_rate: of attention weights.
    query_init: of the query kernel.
    scaled: whether logits are divided by sqrt(K).
    rotary_base: of rotary positions (RoPE, arXiv 2104.09864); None for none.
  """

  features: int
  num_heads: int
  head_dim: int
  num_kv_heads: int
  dropout_rate: float
  query_init: Initializer = fan_in()
  scaled: bool = True
  rotary_base: float | None = None

  def setup(self):
    """Parts by the names that their parameters have in a checkpoint."""
    # Shared heads may be fewer than the devices that heads are spread over.
    shared = self.num_kv_heads < self.num_heads
    kv_heads = "kv_heads" if shared else "heads"
    self.query = Dense(
      (self.num_heads, self.head_dim),
      ("embed", "heads", "kv"),
      self.query_init,
      use_bias=False,
    )
    self.key_value = Dense(
      (2, self.num_kv_heads, self.head_dim),
      ("embed", "key_value", kv_heads, "kv"),
      fan_in(),
      use_bias=False,
    )
    self.out = Dense(
      (self.features,), ("heads", "embed"), fan_in(), use_bias=False
    )
    self.dropout = nn.Dropout(self.dropout_rate)

  def keys_values(
    self,
    source: Float[Array, "B S D"],
    positions: Int[Array, "B S"] | None = None,
  ) -> tuple[Float[Array, "B G S K"], Float[Array, "B G S K"]]:
    """Keys and values of the tokens that are attended to."""
    keys, values = jnp.moveaxis(self.key_value(source), (2, 3), (0, 2))
    return self._turned(keys, positions), values

  def attend(
    self,
    x: Float[Array, "B T D"],
    keys: Float[Array, "B G S K"],
    values: Float[Array, "B G S K"],
    *biases: Float[Array, "..."],
    positions: Int[Array, "B T"] | None = None,
    deterministic: bool = True,
  ) -> Float[Array, "B T D"]:
    """What each token of x takes from the values.

    Args:
      x: the tokens that attend.
      keys: of the tokens that are attended to.
      values: of the same.
      *biases: added to the logits, each [B or 1, H or 1, T, S].
      positions: of x, for rotary positions.
      deterministic: whether dropout is off.
    """
    batch, length, _ = x.shape
    queries = jnp.moveaxis(self.query(x), 2, 1)
    queries = self._turned(queries, positions)
    # The query heads of a group stand one below the other: one product each.
    grouped = (batch, self.num_kv_heads, -1, self.head_dim)
    logits = jnp.einsum("bgmk,bgsk->bgms", queries.reshape(grouped), keys)
    logits = logits.reshape(batch, self.num_heads, length, keys.shape[2])
    logits = logits.astype(jnp.float32)
    if self.scaled:
      logits = logits * self.head_dim**-0.5
    weights = jax.nn.softmax(sum(biases, logits)).astype(x.dtype)
    weights = self.dropout(weights, deterministic)
    weights = weights.reshape(*grouped[:3], keys.shape[2])
    mixed = jnp.einsum("bgms,bgsk->bgmk", weights, values)
    mixed = mixed.reshape(batch, self.num_heads, length, self.head_dim)
    return self.out(jnp.moveaxis(mixed, 1, 2).reshape(batch, length, -1))

  def _turned(self, x, positions):
    if self.rotary_base is None:
      return x
    return rotary(x, positions, self.rotary_base)


def rotary(
  x: Float[Array, "B H T K"], positions: Int[Array, "B T"], base: float
) -> Float[Array, "B H T K"]:
  """Turns pairs of coordinates by an angle that grows with the position.

  RoPE (arXiv 2104.09864), with coordinate i paired with i + K / 2. Products of
  two turned vectors depend on the difference of their positions alone.
  """
  half = x.shape[-1] // 2
  frequencies = base ** -(jnp.arange(half) / half)
  angles = positions[:, None, :, None] * frequencies
  sin, cos = jnp.sin(angles), jnp.cos(angles)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class GatedMlp(nn.Module):
  """Two linear maps, one through an activation, multiplied (arXiv 2002.05202)."""

  mlp_dim: int
  activation: str
  dropout_rate: float

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T D"], deterministic: bool = True
  ) -> Float[Array, "B T D"]:
    hidden = Dense(
      (2, self.mlp_dim),
      ("embed", "gate", "mlp"),
      fan_in(),
      use_bias=False,
      name="wi",
    )(x)
    gate, linear = hidden[..., 0, :], hidden[..., 1, :]
    hidden = ACTIVATIONS[self.activation](gate) * linear
    hidden = nn.Dropout(self.dropout_rate)(hidden, deterministic)
    return Dense(
      (x.shape[-1],), ("mlp", "embed"), fan_in(), use_bias=False, name="wo"
    )(hidden)


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
  source_ids: Int[Array, "B S"] | None = None,
) -> Float[Array, "B 1 T S"]:
  """0 between tokens of one packed segment, very negative elsewhere.

  Padding has segment 0 and attends to padding alone; nothing reads its output.
  """
  source_ids = segment_ids if source_ids is None else source_ids
  same = segment_ids[:, None, :, None] == source_ids[:, None, None, :]
  return mask_bias(same)


def mask_bias(allowed: Bool[Array, "..."]) -> Float[Array, "..."]:
  """0 where attention is allowed, very negative elsewhere."""
  return jnp.where(allowed, 0.0, NEVER).astype(jnp.float32)


def write_slots(
  cache: dict[str, Float[Array, "B G S K"]],
  new: tuple[Float[Array, "B G T K"], Float[Array, "B G T K"]],
  slot: Int[Array, ""],
) -> dict[str, Float[Array, "B G S K"]]:
  """Puts keys and values of T tokens into the slots from `slot` on."""
  start = (0, 0, slot, 0)
  return cache | {
    name: jax.lax.dynamic_update_slice(cache[name], value, start)
    for name, value in zip(("keys", "values"), new)
  }


def check_choices(config: Any, **choices: tuple[str, ...]) -> None:
  """Raises ValueError if a field is none of its choices."""
  for name, allowed in choices.items():
    if getattr(config, name) not in allowed:
      raise ValueError(
        f"{type(config).__name__}.{name} = {getattr(config, name)!r}, expected"
        f" one of {allowed}."
      )
