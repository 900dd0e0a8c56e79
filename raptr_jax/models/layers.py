"""Parts of a transformer block; none of them knows of dropped layers.

Parameters are float32 and carry logical axis names, which `partitioning.py`
maps to the mesh. Products run in the compute dtype; norms, softmax and the
scores that go into it are float32.

LayerNorm, RMSNorm and Embedding are ours, although Flax has them: see each for
what Flax does differently.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from raptr_jax.contracts import DropoutKey, Params
from raptr_jax.models.shards import heads_are_split, look_up

Initializer = Callable[..., PyTree]  # Of an array, or of one with axis names.
DTypeLike = str | jnp.dtype


def gelu(x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
  """The exact GELU (arXiv 1606.08415) by `erf`, in float32.

  JAX's takes `erfc`, which costs a CPU more.
  """
  wide = x.astype(jnp.float32)
  out = 0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))
  return out.astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "gelu": gelu,
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "silu": jax.nn.silu,
}


def apply(
  module: nn.Module, params: Params, *args: PyTree, **kwargs: Any
) -> PyTree:
  """`module.apply` with these parameters and no other variables."""
  return module.apply({"params": params}, *args, **kwargs)


def truncated_normal(stddev: float) -> Initializer:
  """Normal, cut at two standard deviations, like BERT's initialisation.

  The standard deviation is that of the normal before the cut.
  """
  return nn.initializers.truncated_normal(stddev)


def fan_in(scale: float = 1.0) -> Initializer:
  """Normal of variance scale / input size: keeps the variance at scale 1."""
  return nn.initializers.variance_scaling(scale, "fan_in", "normal")


def with_axes(init: Initializer, names: Sequence[str]) -> Initializer:
  """An initializer whose values carry the logical names of their axes."""
  return nn.with_logical_partitioning(init, tuple(names))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scores(
  axes: str, x: Float[Array, "..."], y: Float[Array, "..."]
) -> Float[Array, "..."]:
  """`einsum(axes, x, y)`, accumulated and returned in float32.

  For what goes into a softmax: rounded to bfloat16, the largest scores tie.
  The backward pass rounds the gradient to x's dtype before its own products:
  accelerators multiply float32 at a fraction of their speed in bfloat16. Both
  factors have one dtype.
  """
  return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)


def _scores_forward(
  axes: str, x: Float[Array, "..."], y: Float[Array, "..."]
) -> tuple[Float[Array, "..."], tuple[Array, Array]]:
  return scores(axes, x, y), (x, y)


def _scores_backward(
  axes: str, factors: tuple[Array, Array], gradient: Float[Array, "..."]
) -> tuple[Array, Array]:
  _, pull_back = jax.vjp(functools.partial(jnp.einsum, axes), *factors)
  of_x, of_y = pull_back(gradient.astype(factors[0].dtype))
  return of_x, of_y


scores.defvjp(_scores_forward, _scores_backward)


def dense(
  x: Float[Array, "*batch D"],
  kernel: Float[Array, "D *out"],
  bias: Float[Array, "*out"] | None,
  wide: bool = False,
) -> Float[Array, "..."]:
  """X @ kernel + bias, in x's dtype, or as `scores` in float32 if `wide`.

  Leading axes are flattened into one: with several, XLA's CPU backend computes
  the weight gradient through transposed copies, in twice the time. Output axes
  are flattened as well, unless the mesh splits one of them: the parts of a
  device are not contiguous then, and XLA would gather the kernel.
  """
  features = kernel.shape[1:]
  flat, kernel = x.reshape(-1, x.shape[-1]), kernel.astype(x.dtype)
  if not heads_are_split():
    kernel = kernel.reshape(kernel.shape[0], -1)
  outputs = "fghi"[: kernel.ndim - 1]
  product = scores if wide else jnp.einsum
  out = product(f"bd,d{outputs}->b{outputs}", flat, kernel)
  if bias is not None:
    out = out + bias.reshape(1, *kernel.shape[1:]).astype(out.dtype)
  return out.reshape(*x.shape[:-1], *features)


class Dense(nn.Module):
  """Linear map of the last axis to `features`, one axis or several.

  Attributes:
    features: sizes of the output axes.
    axes: logical names of the kernel's axes, input first.
    kernel_init: called with the shape [input, product of outputs].
    use_bias: whether to add a bias, initialised to zero.
    wide: whether the output is float32 whatever the input is, see `scores`.
  """

  features: Sequence[int]
  axes: Sequence[str]
  kernel_init: Initializer
  use_bias: bool = True
  wide: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "..."]:
    shape = (x.shape[-1], *self.features)

    def init(key: Key[Array, ""]) -> Float[Array, "D *out"]:
      flat = (shape[0], math.prod(self.features))
      kernel: Array = self.kernel_init(key, flat, jnp.float32)
      return kernel.reshape(shape)

    names = self.axes
    kernel = self.param("kernel", with_axes(init, names))
    bias = None
    if self.use_bias:
      zeros = with_axes(nn.initializers.zeros, names[1:])
      bias = self.param("bias", zeros, tuple(self.features), jnp.float32)
    return dense(x, kernel, bias, self.wide)


def output_layer(vocab_size: int) -> Dense:
  """An untied output layer: scores of all V entries, in float32."""
  return Dense(
    (vocab_size,), ("embed", "vocab"), fan_in(), use_bias=False, wide=True
  )


class LayerNorm(nn.Module):
  """Layer norm with scale and bias, in float32.

  Flax's multiplies the scale into the inverse root first, and so rounds
  differently: runs would no longer be bit-identical.

  Attributes:
    epsilon: added to the variance.
    dtype: of the output; that of the input if None.
  """

  epsilon: float
  dtype: DTypeLike | None = None

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
    normed = normed * last_axis(scale, x.ndim) + last_axis(bias, x.ndim)
    return normed.astype(self.dtype or x.dtype)


class RMSNorm(nn.Module):
  """Divides by the root mean square (arXiv 1910.07467), in float32.

  Not Flax's, which rounds differently; see `LayerNorm`.

  Attributes:
    epsilon: added to the mean square.
    dtype: of the output; that of the input if None.
  """

  epsilon: float
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    ones = with_axes(nn.initializers.ones, ("embed",))
    scale = self.param("scale", ones, (x.shape[-1],), jnp.float32)
    wide = x.astype(jnp.float32)
    square = jnp.square(wide).mean(-1, keepdims=True)
    normed = wide * jax.lax.rsqrt(square + self.epsilon)
    normed = normed * last_axis(scale, x.ndim)
    return normed.astype(self.dtype or x.dtype)


class Embedding(nn.Module):
  """A table of vectors, looked up by index.

  Flax's casts the whole table to the compute dtype before each look-up, and its
  `attend` is an unflattened product, slower on CPU (see `dense`).
  """

  num_embeddings: int
  features: int
  axis: str
  embedding_init: Initializer
  dtype: DTypeLike

  def setup(self) -> None:
    self.embedding = self.param(
      "embedding",
      with_axes(self.embedding_init, (self.axis, "embed")),
      (self.num_embeddings, self.features),
      jnp.float32,
    )

  def __call__(self, index: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    vectors = look_up(self.embedding, index, by_rows=self.axis == "vocab")
    return vectors.astype(self.dtype)

  def attend(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
    """Scores of all entries, in float32: a tied output layer."""
    return dense(x, self.embedding.T, None, wide=True)


class GatedMlp(nn.Module):
  """Two linear maps multiplied, one through an activation; then a third.

  See arXiv 2002.05202.
  """

  mlp_dim: int
  activation: str
  dropout_rate: float

  @nn.compact
  def __call__(
    self, x: Float[Array, "*batch D"], deterministic: bool = True
  ) -> Float[Array, "*batch D"]:
    hidden: Array = Dense(
      (2, self.mlp_dim),
      ("embed", "gate", "mlp"),
      fan_in(),
      use_bias=False,
      name="wi",
    )(x)
    gate, linear = hidden[..., 0, :], hidden[..., 1, :]
    hidden = ACTIVATIONS[self.activation](gate) * linear
    hidden = nn.Dropout(self.dropout_rate)(hidden, deterministic)
    out: Array = Dense(
      (x.shape[-1],), ("mlp", "embed"), fan_in(), use_bias=False, name="wo"
    )(hidden)
    return out


class Mlp(nn.Module):
  """Two linear maps with an activation between them."""

  mlp_dim: int
  activation: str
  kernel_init: Initializer

  @nn.compact
  def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    init = self.kernel_init
    wi = Dense((self.mlp_dim,), ("embed", "mlp"), init, name="wi")
    wo = Dense((x.shape[-1],), ("mlp", "embed"), init, name="wo")
    out: Array = wo(ACTIVATIONS[self.activation](wi(x)))
    return out


def split_key(key: DropoutKey, count: int) -> tuple[DropoutKey, ...]:
  """Keys split from one; Nones from None, which switches dropout off."""
  return (None,) * count if key is None else tuple(jax.random.split(key, count))


def last_axis(x: Shaped[Array, "D"], ndim: int) -> Shaped[Array, "*ones D"]:
  """A vector with leading axes of size 1, to broadcast along the last axis."""
  return jnp.expand_dims(x, tuple(range(ndim - 1)))
