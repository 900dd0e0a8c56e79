"""Rematerialisation: what a forward pass keeps for its backward pass."""

from collections.abc import Callable
from typing import ParamSpec

import jax
from jax.extend.core import Primitive
from jaxtyping import Array

Args = ParamSpec("Args")


def checkpoint(
  function: Callable[Args, Array], remat: str
) -> Callable[Args, Array]:
  """The function, keeping what `remat` says for its backward pass.

  Args:
    function: run inside of a loop.
    remat: "full" keeps nothing, and runs the function again; "none" keeps all
      intermediate values.
  """
  policy = {"none": _all_but_slices, "full": None}[remat]
  return jax.checkpoint(function, policy=policy, prevent_cse=False)


def _all_but_slices(primitive: Primitive, *_: object, **__: object) -> bool:
  """Keeps all that a backward pass needs but copies of k layers' parameters.

  Those are slices of the stacked parameters, and reshapes of slices.
  """
  return primitive.name not in ("dynamic_slice", "squeeze", "reshape")
