"""What changes from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from raptr_jax.contracts import Model, Params
from raptr_jax.optim import Optimizer


@flax.struct.dataclass
class TrainState:
  """Everything that a step reads and replaces.

  Attributes:
    step: number of steps done.
    params: float32 parameters.
    opt_state: state of the optimizer.
  """

  step: Int[Array, ""]
  params: Params
  opt_state: Any


def init_state(
  key: jax.Array,
  *,
  model: Model,
  optimizer: Optimizer,
) -> TrainState:
  """A fresh state; leaves are boxed with their logical axis names."""
  params = model.init(key)
  step = jnp.zeros((), jnp.int32)
  return TrainState(step, params, optimizer.init(params))
