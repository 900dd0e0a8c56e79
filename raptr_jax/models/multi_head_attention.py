"""Multi-head attention: its parameters, rotary positions, and its cache."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from raptr_jax.contracts import Cache
from raptr_jax.models.attention import Bias, Dropout, attend
from raptr_jax.models.layers import Dense, Initializer, fan_in, last_axis
from raptr_jax.models.masks import Mask


class SelfAttention(nn.Module):
  """Multi-head self-attention.

  One product computes query, key and value, and the head axis comes before the
  token axis in attention's own two products: both are markedly faster on CPU.

  Attributes:
    num_heads: H; K is D / H.
    kernel_init: of all kernels.
    dropout_rate: of attention weights.
    kernel: one of `attention.KERNELS`.
  """

  num_heads: int
  kernel_init: Initializer
  dropout_rate: float
  kernel: str = "auto"

  @nn.compact
  def __call__(
    self, x: Float[Array, "B T D"], mask: Mask, deterministic: bool
  ) -> Float[Array, "B T D"]:
    batch, length, width = x.shape
    head_dim = width // self.num_heads
    qkv: Array = Dense(
      (3, self.num_heads, head_dim),
      ("embed", "qkv", "heads", "kv"),
      self.kernel_init,
      name="qkv",
    )(x)
    query, key, value = jnp.moveaxis(qkv, (2, 3), (0, 2))  # 3 x [B H T K]
    mixed = attend(
      query,
      key,
      value,
      mask,
      scale=head_dim**-0.5,
      dropout=_dropout(self, deterministic),
      kernel=self.kernel,
    )
    mixed = jnp.moveaxis(mixed, 1, 2).reshape(batch, length, width)
    out = Dense((width,), ("heads", "embed"), self.kernel_init, name="out")
    result: Array = out(mixed)
    return result


class Attention(nn.Module):
  """Multi-head attention in two parts, so that keys and values can be cached.

  Its linear maps have no biases. A head of keys and values may serve several
  query heads (grouped-query attention, arXiv 2305.13245).

  Attributes:
    features: D of the output.
    num_heads: H.
    head_dim: K.
    num_kv_heads: G, heads of keys and values; divides H.
    dropout_rate: of attention weights.
    query_init: of the query kernel.
    scaled: whether logits are divided by sqrt(K).
    rotary_base: of rotary positions (RoPE, arXiv 2104.09864); None for none.
    kernel: one of `attention.KERNELS`.
  """

  features: int
  num_heads: int
  head_dim: int
  num_kv_heads: int
  dropout_rate: float
  query_init: Initializer = fan_in()
  scaled: bool = True
  rotary_base: float | None = None
  kernel: str = "auto"

  def setup(self) -> None:
    # Shared heads are not split: they may be fewer than the model shards.
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

  def keys_values(
    self,
    source: Float[Array, "B S D"],
    positions: Int[Array, "B S"] | None = None,
  ) -> tuple[Float[Array, "B G S K"], Float[Array, "B G S K"]]:
    """Computes keys and values of the tokens that are attended to."""
    keys, values = jnp.moveaxis(self.key_value(source), (2, 3), (0, 2))
    return self._rotated(keys, positions), values

  def attend(
    self,
    x: Float[Array, "B T D"],
    keys: Float[Array, "B G S K"],
    values: Float[Array, "B G S K"],
    mask: Mask,
    *,
    bias: Bias | None = None,
    positions: Int[Array, "B T"] | None = None,
    deterministic: bool = True,
  ) -> Float[Array, "B T D"]:
    """Attends from each token of x to the tokens of `keys` and `values`.

    Args:
      x: the tokens that attend.
      keys: of the tokens that are attended to.
      values: of the same tokens.
      mask: who attends to whom.
      bias: added to the logits.
      positions: of x, for rotary positions.
      deterministic: whether dropout is off.
    """
    batch, length, _ = x.shape
    queries = jnp.moveaxis(self.query(x), 2, 1)
    queries = self._rotated(queries, positions)
    mixed = attend(
      queries,
      keys,
      values,
      mask,
      scale=self.head_dim**-0.5 if self.scaled else 1.0,
      bias=bias,
      dropout=_dropout(self, deterministic),
      kernel=self.kernel,
    )
    mixed = jnp.moveaxis(mixed, 1, 2).reshape(batch, length, -1)
    out: Array = self.out(mixed)
    return out

  def _rotated(
    self, x: Float[Array, "B H T K"], positions: Int[Array, "B T"] | None
  ) -> Float[Array, "B H T K"]:
    if self.rotary_base is None:
      return x
    if positions is None:
      raise ValueError("Attention.rotary_base is set: expected positions.")
    return rotary(x, positions, self.rotary_base)


def _dropout(
  module: SelfAttention | Attention, deterministic: bool
) -> Dropout | None:
  """Dropout of a module's attention weights, if there is any."""
  if deterministic or module.dropout_rate == 0:
    return None
  return Dropout(module.make_rng("dropout"), module.dropout_rate)


def rotary(
  x: Float[Array, "B H T K"], positions: Int[Array, "B T"], base: float
) -> Float[Array, "B H T K"]:
  """Rotates pairs of coordinates by an angle that grows with the position.

  RoPE (arXiv 2104.09864), with coordinate i paired with i + K / 2. The product
  of two rotated vectors depends only on the difference of their positions.
  """
  half = x.shape[-1] // 2
  frequencies = base ** -(jnp.arange(half) / half)
  angles = positions[:, None, :, None] * last_axis(frequencies, 4)
  sin, cos = jnp.sin(angles), jnp.cos(angles)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def write_slots(
  cache: Cache,
  new: tuple[Float[Array, "B G T K"], Float[Array, "B G T K"]],
  slot: Int[Array, ""],
) -> Cache:
  """Writes keys and values of T tokens to the slots from `slot` on.

  Args:
    cache: of a layer, with `keys` and `values` [B G S K].
    new: keys and values of the tokens.
    slot: of the first token.
  """
  start = (0, 0, slot, 0)
  return cache | {
    name: jax.lax.dynamic_update_slice(cache[name], value, start)
    for name, value in zip(("keys", "values"), new)
  }
