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


class Part(TypedDict):
  """Steps of a run with one configuration.

  Attributes:
    first_step: of the part.
    steps: how many it has so far.
    changes: of the configuration, with which it began.
    random_seed: see `Experiment`.
    boundaries: likewise, for the whole run.
    stage_path_lengths: mean expected path length of each stage.
    solved_for: numbers that a FLOP factor determined, by name.
    flops: of its steps, see `Plan.flops_between`.
  """

  first_step: int
  steps: int
  changes: list[str]
  random_seed: int
  boundaries: list[int]
  stage_path_lengths: list[float]
  solved_for: dict[str, float]
  flops: dict[str, float]


class Progress(TypedDict, total=False):
  """What a checkpoint holds besides the state, as JSON; empty at step 0.

  Attributes:
    examples: training examples consumed.
    places: of all hosts in streamed data, see `contracts.StreamedDataset`.
    facts: that have to stay the same, see `history.py`.
    parts: of the run up to this step.
    sums: metrics since the last entry of the report.
    skipped: steps up to that entry that changed nothing.
    skipped_in_a_row: such steps just before this checkpoint.
    losses: of the last steps, for a `LossWatch`; None for those left out.
    tokens: read up to that entry, without padding.
    train_seconds: seconds of training.
    lap_seconds: seconds of training since the last entry of the report.
  """

  examples: int
  places: list[list[list[int]]]
  facts: dict[str, str]
  parts: list[Part]
  sums: dict[str, float]
  skipped: int
  skipped_in_a_row: int
  losses: list[float | None]
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
