"""What changes from step to step."""

from typing import TypedDict

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from raptr_jax.contracts import Model, Params
from raptr_jax.training.optim import Optimizer, OptState


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
  opt_state: OptState


class Progress(TypedDict, total=False):
  """What a checkpoint holds besides the state, as JSON; empty at step 0.

  Attributes:
    examples: training examples consumed.
    places: of all hosts in streamed data, see `contracts.StreamedDataset`.
    sums: metrics since the last entry of the report.
    tokens: read up to that entry, without padding.
    train_seconds: seconds of training.
    lap_seconds: seconds of training since the last entry of the report.
  """

  examples: int
  places: list[list[list[int]]]
  sums: dict[str, float]
  tokens: float
  train_seconds: float
  lap_seconds: float


def init_state(
  key: Key[Array, ""], *, model: Model, optimizer: Optimizer
) -> TrainState:
  """A fresh state; leaves are boxed with their logical axis names."""
  params = model.init(key)
  step = jnp.zeros((), jnp.int32)
  return TrainState(step, params, optimizer.init(params))
