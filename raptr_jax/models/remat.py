"""Rematerialisation: what a forward pass keeps for its backward pass."""

from collections.abc import Callable
from typing import ParamSpec

import jax
from jax.extend.core import Primitive
from jaxtyping import Array

Args = ParamSpec("Args")

ATTENTION = "attention"  # Marks attention's output, by `checkpoint_name`.
# The forward pass of cuDNN's attention, as JAX names it: what it returns is all
# that its backward pass needs.
CUDNN = "dot_product_attention_fwd_wrapper"


def checkpoint(
  function: Callable[Args, Array], remat: str
) -> Callable[Args, Array]:
  """The function, keeping what `remat` says for its backward pass.

  Args:
    function: run inside of a loop.
    remat: one of `POLICIES`, from the least memory to the most. "full" keeps
      nothing, and runs the function again; "attention" keeps the output of
      attention; "products" keeps also that of each product with parameters, so
      that only element-wise operations run again; "none" keeps all
      intermediate values.
  """
  return jax.checkpoint(function, policy=POLICIES[remat], prevent_cse=False)


def _attention(primitive: Primitive, *_: object, **params: object) -> bool:
  """Keeps the output of attention, and what a fused kernel needs of it."""
  if primitive.name == "name":
    return params["name"] == ATTENTION
  return primitive.name == CUDNN


def _products(primitive: Primitive, *args: object, **params: object) -> bool:
  """Keeps as `_attention` does, and the products without a batch axis."""
  no_batch = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  return _attention(primitive, *args, **params) or no_batch(
    primitive, *args, **params
  )


def _all_but_slices(primitive: Primitive, *_: object, **__: object) -> bool:
  """Keeps all that a backward pass needs but copies of k layers' parameters.

  Those are slices of the stacked parameters, and reshapes of slices.
  """
  return primitive.name not in ("dynamic_slice", "squeeze", "reshape")


POLICIES = {
  "full": None,
  "attention": _attention,
  "products": _products,
  "none": _all_but_slices,
}
