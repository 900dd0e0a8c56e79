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
from collections.abc import Mapping
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

# Features of a batch that hold the tokens that a model reads.
TOKENS = ("tokens", "encoder_tokens")


@dataclasses.dataclass(frozen=True)
class Plan:
  """A run, laid out over its N steps.

  Attributes:
    draws: layers of each step.
    inclusion: probability of each layer to run in each step, of each stack.
    stages: number of each step's stage, from 0.
    learning_rates: of each step.
    step_flops: FLOPs of a step on the global batch, by kept layers.
    batch_tokens: token positions in a global batch.
    stacks: L of each stack.
  """

  draws: execution.DrawTable
  inclusion: Mapping[str, Float[np.ndarray, "N L"]]
  stages: Int[np.ndarray, "N"]
  learning_rates: Float[np.ndarray, "N"]
  step_flops: flops.StepFlops
  batch_tokens: int
  stacks: Mapping[str, int]

  @property
  def total_steps(self) -> int:
    return len(self.stages)

  @property
  def num_layers(self) -> int:
    """Layers of all stacks together."""
    return sum(self.stacks.values())

  @functools.cached_property
  def expected_lengths(self) -> Mapping[str, Float[np.ndarray, "N"]]:
    """Expected path length of each step, of each stack."""
    return {
      name: chances.sum(axis=1, dtype=np.float64)
      for name, chances in self.inclusion.items()
    }

  @property
  def always_run(self) -> Mapping[str, Bool[np.ndarray, "L"]]:
    """Layers that no step leaves out."""
    return {
      name: np.all(chances >= 1, axis=0)
      for name, chances in self.inclusion.items()
    }

  @functools.cached_property
  def _layers_until(self) -> Mapping[str, Int[np.ndarray, "N + 1"]]:
    """Layers of each stack that have run after 0, 1, 2, ... steps."""
    return {
      name: np.concatenate([[0], np.cumsum(lengths)])
      for name, lengths in self.draws.stack_lengths.items()
    }

  @property
  def dense_flops(self) -> float:
    """FLOPs of the run if every step trained the full model."""
    return self.total_steps * self.step_flops.step(self.stacks)

  def flops_spent(self, steps: int) -> float:
    """FLOPs of the first `steps` steps, of the paths that are drawn."""
    kept = {name: float(x[steps]) for name, x in self._layers_until.items()}
    return self.step_flops.layers(kept) + steps * self.step_flops.step({})

  @property
  def flop_factor_nominal(self) -> float:
    """Dense over expected FLOPs, of the transformer blocks alone."""
    layers = self.step_flops.layers
    return layers(self.stacks) / layers(self._mean(self.expected_lengths))

  @property
  def flop_factor_spent(self) -> float:
    """Dense over spent FLOPs, of the transformer blocks alone."""
    layers = self.step_flops.layers
    return layers(self.stacks) / layers(self._mean(self.draws.stack_lengths))

  @property
  def flop_factor_whole_step(self) -> float:
    """Dense over expected FLOPs, embeddings and head counted as well."""
    step = self.step_flops.step
    return step(self.stacks) / step(self._mean(self.expected_lengths))

  def _mean(
    self, lengths: Mapping[str, np.ndarray], steps: slice = slice(None)
  ) -> dict[str, float]:
    return {name: float(x[steps].mean()) for name, x in lengths.items()}

  def stage_table(self) -> list[tuple[int, int, dict[str, float]]]:
    """(first step, number of steps, mean expected lengths) of each stage."""
    table = []
    for stage in range(int(self.stages[-1]) + 1):
      steps = np.flatnonzero(self.stages == stage)
      start, count = int(steps[0]), len(steps)
      mean = self._mean(self.expected_lengths, slice(start, start + count))
      table.append((start, count, mean))
    return table

  def evaluated_lengths(self) -> list[dict[str, int]]:
    """Lengths at which paths are evaluated in the end, shortest first.

    Those of the stages, and the quarters from half of the network on; the first
    of those that add up to as many layers, by which rows of a report are named.
    """
    lengths = [
      *(mean for _, _, mean in self.stage_table()),
      *(
        {name: size * part / 4 for name, size in self.stacks.items()}
        for part in (2, 3, 4)
      ),
    ]
    by_layers: dict[int, dict[str, int]] = {}
    for mean in lengths:
      found = {name: round(length) for name, length in mean.items()}
      if all(found.values()):
        by_layers.setdefault(sum(found.values()), found)
    return [found for _, found in sorted(by_layers.items())]


def make_plan(experiment: Experiment) -> Plan:
  """Lays out a run; reads no data."""
  policies, total_steps = experiment.policies, experiment.total_steps
  steps = jnp.arange(total_steps)
  spec = experiment.train_dataset.batch_spec()
  return Plan(
    draws=execution.draw_table(
      policies, experiment.keys()["draw"], total_steps
    ),
    inclusion={
      name: np.asarray(jax.jit(jax.vmap(policy.inclusion))(steps))
      for name, policy in policies.items()
    },
    stages=np.searchsorted(
      np.asarray(experiment.boundaries), np.arange(total_steps), side="right"
    ),
    learning_rates=np.asarray(
      jax.jit(jax.vmap(experiment.optimizer.learning_rate))(steps)
    ),
    step_flops=experiment.model.step_flops(spec),
    batch_tokens=sum(spec[name].size for name in TOKENS if name in spec),
    stacks=experiment.model.stacks,
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
  """(state, sources, resets) -> the state with its layers' rows rearranged.

  The arguments are those of `growth.grow`; the state is donated.
  """

  def grown(state, sources, resets):
    params, opt_state = grow(state.params, state.opt_state, sources, resets)
    return TrainState(state.step, params, opt_state)

  sharding = jax.tree.map(lambda x: x.sharding, abstract)
  return jax.jit(grown, donate_argnums=0, out_shardings=sharding)


def parameter_count(abstract: TrainState) -> int:
  """Number of parameters."""
  return sum(x.size for x in jax.tree.leaves(abstract.params))
