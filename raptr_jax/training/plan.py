"""What a run will do and what it will cost, known before its first step.

Draws and learning rates are pure functions of the step, so a run can lay all
of them out in advance. `raptr --run_mode=plan` prints a plan; the loop takes
its draws from one.

FLOP factors are dense FLOPs over this run's, as in the paper: 1.333 saves
25.0 %. Nominal factors come from expected path lengths, spent ones from drawn
lengths.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from raptr_jax.contracts import StepFlops
from raptr_jax.methods.draws import DrawTable, draw_table
from raptr_jax.training.experiment import Experiment

# Features of a batch that hold the tokens a model reads.
TOKENS = ("tokens", "encoder_tokens")


@dataclasses.dataclass(frozen=True, repr=False)
class Plan:
  """A run, laid out over its N steps.

  Attributes:
    draws: the layers that run in each step.
    keep_probabilities: for each stack, of each layer in each step.
    stages: index of each step's stage.
    learning_rates: of each step.
    step_flops: FLOPs of a step on the global batch, by kept layers.
    batch_tokens: token positions in a global batch.
    stacks: L of each stack.
  """

  draws: DrawTable
  keep_probabilities: Mapping[str, Float[np.ndarray, "N L"]]
  stages: Int[np.ndarray, "N"]
  learning_rates: Float[np.ndarray, "N"]
  step_flops: StepFlops
  batch_tokens: int
  stacks: Mapping[str, int]

  def __repr__(self) -> str:
    return (
      f"Plan({self.total_steps:,} steps, {len(self.boundaries) + 1} stages,"
      f" {self.num_layers} layers, FLOP factor"
      f" {self.flop_factor_nominal:.3f})"
    )

  @property
  def total_steps(self) -> int:
    return len(self.stages)

  @property
  def boundaries(self) -> tuple[int, ...]:
    """First steps of all stages but the first."""
    return tuple(int(n) for n in np.flatnonzero(np.diff(self.stages)) + 1)

  @property
  def num_layers(self) -> int:
    """Layers of all stacks together."""
    return sum(self.stacks.values())

  @functools.cached_property
  def expected_lengths(self) -> Mapping[str, Float[np.ndarray, "N"]]:
    """Expected path length of each step, of each stack."""
    return {
      name: probabilities.sum(axis=1, dtype=np.float64)
      for name, probabilities in self.keep_probabilities.items()
    }

  @property
  def always_run(self) -> Mapping[str, Bool[np.ndarray, "L"]]:
    """The layers that run in every step."""
    return {
      name: np.all(probabilities >= 1, axis=0)
      for name, probabilities in self.keep_probabilities.items()
    }

  @functools.cached_property
  def _layers_until(self) -> Mapping[str, Int[np.ndarray, "ends"]]:
    """Layers of each stack that have run after 0, 1, ..., N steps."""
    return {
      name: np.concatenate([[0], np.cumsum(lengths)])
      for name, lengths in self.draws.stack_lengths.items()
    }

  @property
  def dense_flops(self) -> float:
    """FLOPs of the run if every step trained the full model."""
    return self.total_steps * self.step_flops.step(self.stacks)

  def flops_spent(self, steps: int) -> float:
    """FLOPs of the first `steps` steps, on the drawn paths."""
    kept = {name: float(x[steps]) for name, x in self._layers_until.items()}
    return self.step_flops.layers(kept) + steps * self.step_flops.step({})

  @property
  def flop_factor_nominal(self) -> float:
    """Dense over expected FLOPs, of the layers alone."""
    layers = self.step_flops.layers
    return layers(self.stacks) / layers(self._mean(self.expected_lengths))

  @property
  def flop_factor_spent(self) -> float:
    """Dense over spent FLOPs, of the layers alone."""
    layers = self.step_flops.layers
    return layers(self.stacks) / layers(self._mean(self.draws.stack_lengths))

  @property
  def flop_factor_whole_step(self) -> float:
    """Dense over expected FLOPs, including embeddings and head."""
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
    """Path lengths that are evaluated at the end of the run, shortest first.

    They are the stages' lengths, and a half, three quarters and all of the
    network. Reports name them by their total number of layers, so that of those
    with the same total only the first is evaluated.
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
    draws=draw_table(
      policies, experiment.keys()["draw"], total_steps, experiment.execution
    ),
    keep_probabilities={
      name: np.asarray(jax.jit(jax.vmap(policy.keep_probabilities))(steps))
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
