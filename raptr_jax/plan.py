"""What a run is going to do and to cost, known before its first step.

Draws and learning rates are pure functions of the step, so all of them can be
laid out beforehand. `python -m raptr_jax.main --dry_run` prints a plan; the
loop takes its draws from one.

FLOP factors are dense FLOPs over this run's, as in the paper: 1.333 means that
25.0 % are saved. Nominal ones come from expected path lengths, spent ones from
the lengths that are drawn.

Below the plan are the shapes and programs that planning and training share:
what a run allocates and compiles, before it does.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from raptr_jax import execution, flops
from raptr_jax.experiment import Experiment
from raptr_jax.growth import grow
from raptr_jax.state import TrainState, init_state
from raptr_jax.train_step import train_step


@dataclasses.dataclass(frozen=True)
class Plan:
  """A run, laid out over its S steps.

  Attributes:
    draws: layers of each step.
    inclusion: probability of each layer to run in each step.
    stages: number of each step's stage, from 0.
    learning_rates: of each step.
    step_flops: FLOPs of a step on the global batch, by kept layers.
    batch_tokens: token positions in a global batch.
    num_layers: L.
  """

  draws: execution.DrawTable
  inclusion: Float[np.ndarray, "S L"]
  stages: Int[np.ndarray, "S"]
  learning_rates: Float[np.ndarray, "S"]
  step_flops: flops.StepFlops
  batch_tokens: int
  num_layers: int

  @property
  def total_steps(self) -> int:
    return len(self.stages)

  @functools.cached_property
  def expected_lengths(self) -> Float[np.ndarray, "S"]:
    """Expected path length of each step."""
    return self.inclusion.sum(axis=1, dtype=np.float64)

  @property
  def always_run(self) -> Bool[np.ndarray, "L"]:
    """Layers that no step leaves out."""
    return np.all(self.inclusion >= 1, axis=0)

  @functools.cached_property
  def _layers_until(self) -> Int[np.ndarray, "S"]:
    """Layers that have run after 1, 2, ... steps."""
    return np.cumsum(self.draws.path_lengths)

  @property
  def dense_flops(self) -> float:
    """FLOPs of the run if every step trained the full model."""
    return self.total_steps * self.step_flops.step(self.num_layers)

  def flops_spent(self, steps: int) -> float:
    """FLOPs of the first `steps` steps, of the paths that are drawn."""
    if not steps:
      return 0.0
    return steps * self.step_flops.step(self._layers_until[steps - 1] / steps)

  @property
  def flop_factor_nominal(self) -> float:
    """Dense over expected FLOPs, of the transformer blocks alone."""
    return self.num_layers / float(self.expected_lengths.mean())

  @property
  def flop_factor_spent(self) -> float:
    """Dense over spent FLOPs, of the transformer blocks alone."""
    return self.num_layers / float(self.draws.path_lengths.mean())

  @property
  def flop_factor_whole_step(self) -> float:
    """Dense over expected FLOPs, embeddings and head counted as well."""
    step = self.step_flops.step
    return step(self.num_layers) / step(float(self.expected_lengths.mean()))

  def stage_table(self) -> list[tuple[int, int, float]]:
    """(first step, number of steps, mean expected length) of each stage."""
    table = []
    for stage in range(int(self.stages[-1]) + 1):
      steps = np.flatnonzero(self.stages == stage)
      mean = float(self.expected_lengths[steps].mean())
      table.append((int(steps[0]), len(steps), mean))
    return table

  def evaluated_lengths(self) -> list[int]:
    """Lengths at which paths are evaluated in the end.

    Those of the stages, and the quarters from half of the network on.
    """
    stages = {round(length) for _, _, length in self.stage_table()}
    quarters = {round(self.num_layers * part / 4) for part in (2, 3, 4)}
    return sorted((stages | quarters) - {0})


def make_plan(experiment: Experiment) -> Plan:
  """Lays out a run; reads no data."""
  policy, total_steps = experiment.policy, experiment.total_steps
  steps = jnp.arange(total_steps)
  inclusion = jax.jit(jax.vmap(policy.inclusion))(steps)
  spec = experiment.train_dataset.batch_spec()
  return Plan(
    draws=execution.draw_table(policy, experiment.keys()["draw"], total_steps),
    inclusion=np.asarray(inclusion),
    stages=np.searchsorted(
      np.asarray(policy.boundaries), np.arange(total_steps), side="right"
    ),
    learning_rates=np.asarray(
      jax.jit(jax.vmap(experiment.optimizer.learning_rate))(steps)
    ),
    step_flops=experiment.model.step_flops(spec),
    batch_tokens=spec["tokens"].size,
    num_layers=policy.num_layers,
  )


def abstract_state(experiment: Experiment) -> TrainState:
  """Shapes, types and placement of the state, without allocating it."""
  boxed = jax.eval_shape(_init(experiment), experiment.keys()["params"])
  sharding = experiment.partitioner.state_sharding(boxed)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    nn.unbox(boxed),
    sharding,
  )


def fresh_state(experiment: Experiment, abstract: TrainState) -> TrainState:
  """The state of step 0, each part made on the devices where it belongs."""
  sharding = jax.tree.map(lambda x: x.sharding, abstract)
  init = _init(experiment)
  return jax.jit(lambda key: nn.unbox(init(key)), out_shardings=sharding)(
    experiment.keys()["params"]
  )


def _init(experiment: Experiment):
  return functools.partial(
    init_state, model=experiment.model, optimizer=experiment.optimizer
  )


def abstract_batch(experiment: Experiment) -> dict[str, Any]:
  """Shapes, types and placement of a global batch."""
  sharding = experiment.partitioner.batch_sharding
  return {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    for name, x in experiment.train_dataset.batch_spec().items()
  }


def jitted_step(experiment: Experiment, abstract: TrainState) -> Any:
  """`train_step` for this run; donates the state, and leaves it in place."""
  step = functools.partial(
    train_step,
    model=experiment.model,
    optimizer=experiment.optimizer,
    dropout_key=experiment.keys()["dropout"],
    num_microbatches=experiment.num_microbatches,
  )
  sharding = jax.tree.map(lambda x: x.sharding, abstract)
  return jax.jit(
    step,
    donate_argnums=0,
    out_shardings=(sharding, experiment.partitioner.replicated),
  )


def jitted_grow(abstract: TrainState) -> Any:
  """(state, source, reset) -> the state with its layers' rows rearranged.

  The arguments are those of `growth.grow`; the state is donated.
  """

  def grown(state, source, reset):
    params, opt_state = grow(state.params, state.opt_state, source, reset)
    return TrainState(state.step, params, opt_state)

  sharding = jax.tree.map(lambda x: x.sharding, abstract)
  return jax.jit(grown, donate_argnums=0, out_shardings=sharding)


def parameter_count(abstract: TrainState) -> int:
  """Number of parameters."""
  return sum(x.size for x in jax.tree.leaves(abstract.params))
