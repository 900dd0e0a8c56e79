"""Digests of arrays, by which a checkpoint shows that it is what was saved.

Each element is mixed with its index by a bijection of 32 bits, and the results
are added modulo 2^32. So a change of one element always changes a digest, and
one of several elements escapes two such sums once in 2^64. The sums are the
same for any placement on devices, and the arrays stay where they are.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Shaped, UInt32

# Odd numbers, two for each sum.
_MIXERS = ((0x9E3779B1, 0x85EBCA6B), (0xC2B2AE35, 0x27D4EB2F))


def digests(tree: PyTree) -> dict[str, str]:
  """Digests of all arrays of a tree, by their path; every host takes part."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  sums = jax.device_get(_sums_of_all([x for _, x in leaves]))
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): _text(found)
    for (path, _), found in zip(leaves, sums)
  }


def compile_digests(abstract: PyTree) -> None:
  """Compiles what the digests of such a tree need, before they are needed."""
  _sums_of_all.lower(jax.tree.leaves(abstract)).compile()


def _text(sums: UInt32[np.ndarray, "2"]) -> str:
  return "".join(f"{int(x):08x}" for x in sums)


@jax.jit
def _sums_of_all(leaves: list[Array]) -> UInt32[Array, "leaves 2"]:
  """The sums of all arrays, in one program."""
  return jnp.stack([_sums(x) for x in leaves])


def _sums(x: Shaped[Array, "..."]) -> UInt32[Array, "2"]:
  """The two sums of an array."""
  bits = _bits(x)
  index = _indices(bits.shape)
  return jnp.stack(
    [
      _mixed(bits ^ (index * np.uint32(by)), np.uint32(then)).sum(
        dtype=jnp.uint32
      )
      for by, then in _MIXERS
    ]
  )


def _bits(x: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
  """The elements of an array as bits."""
  if x.dtype.itemsize >= 4:
    return jax.lax.bitcast_convert_type(x, jnp.uint32)
  if jnp.issubdtype(x.dtype, jnp.floating):
    x = jax.lax.bitcast_convert_type(x, jnp.uint16)
  return x.astype(jnp.uint32)


def _indices(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
  """The index of each element, modulo 2^32."""
  axes = range(len(shape))
  strides = [np.prod(shape[axis + 1 :], dtype=np.uint64) for axis in axes]
  parts = (
    jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    * np.uint32(stride % 2**32)
    for axis, stride in zip(axes, strides)
  )
  return functools.reduce(jnp.add, parts, jnp.zeros(shape, jnp.uint32))


def _mixed(bits: UInt32[Array, "..."], by: np.uint32) -> UInt32[Array, "..."]:
  """A bijection of 32 bits."""
  bits = (bits ^ (bits >> 16)) * by
  bits = (bits ^ (bits >> 13)) * by
  return bits ^ (bits >> 16)
