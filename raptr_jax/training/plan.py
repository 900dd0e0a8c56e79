"""What a run will do and what it will cost, known before its first step.

Draws, probabilities and learning rates are pure functions of the step, so a run
can look at all of them in advance; a plan keeps what is small of them.
`raptr --run_mode=plan` prints a plan; the loop takes its draws from one.

FLOP factors are dense FLOPs over this run's, as in the paper: 1.333 saves
25.0 %. Nominal factors come from expected path lengths, spent ones from drawn
lengths.
"""

import bisect
import collections
import dataclasses
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, PyTree

from raptr_jax.contracts import Step, StepFlops
from raptr_jax.methods.by_step import ByStep
from raptr_jax.methods.draws import DrawTable, draw_table
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.token_counts import token_positions

# Of each layer in several steps, by stack.
KeepProbabilities: TypeAlias = Mapping[str, Float[np.ndarray, "steps L"]]


@dataclasses.dataclass(frozen=True)
class PlannedStage:
  """A stage of a run; one begins where a stage of any stack does.

  Attributes:
    start: its first step.
    steps: how many steps it has.
    path_lengths: mean expected path length, by stack.
    chances: the smallest and the largest probability to run that is neither 0
      nor 1, for each stack that has one.
    always_run: for each stack, the layers that run in each of its steps.
  """

  start: int
  steps: int
  path_lengths: Mapping[str, float]
  chances: Mapping[str, tuple[float, float]]
  always_run: Mapping[str, Bool[np.ndarray, "L"]]


@dataclasses.dataclass(frozen=True, repr=False)
class Plan:
  """A run, laid out over its N steps.

  Attributes:
    draws: the layers that run in each step.
    stages: in order.
    learning_rates: of each step.
    step_flops: FLOPs of a step on the global batch, by kept layers.
    batch_positions: token positions in a global batch, padding included.
    stacks: L of each stack.
  """

  draws: DrawTable
  stages: tuple[PlannedStage, ...]
  learning_rates: ByStep[Float[np.ndarray, ""]]
  step_flops: StepFlops
  batch_positions: int
  stacks: Mapping[str, int]

  def __repr__(self) -> str:
    return (
      f"Plan({self.total_steps:,} steps, {len(self.stages)} stages,"
      f" {self.num_layers} layers, FLOP factor"
      f" {self.flop_factor_nominal:.3f})"
    )

  @property
  def total_steps(self) -> int:
    return self.draws.total_steps

  @property
  def boundaries(self) -> tuple[int, ...]:
    """First steps of all stages but the first."""
    return tuple(stage.start for stage in self.stages[1:])

  def stage_index(self, step: int) -> int:
    """Index of the stage that a step belongs to."""
    return bisect.bisect_right(self.boundaries, step)

  @property
  def num_layers(self) -> int:
    """Layers of all stacks together."""
    return sum(self.stacks.values())

  @property
  def expected_layers(self) -> dict[str, float]:
    """Layers of each stack that the run is expected to train, over all steps."""
    return {
      name: sum(stage.steps * stage.path_lengths[name] for stage in self.stages)
      for name in self.stacks
    }

  @property
  def always_run(self) -> Mapping[str, Bool[np.ndarray, "L"]]:
    """The layers that run in every step."""
    return {
      name: np.all([stage.always_run[name] for stage in self.stages], axis=0)
      for name in self.stacks
    }

  @property
  def dense_flops(self) -> float:
    """FLOPs of the run if every step trained the full model."""
    return self.total_steps * self.step_flops.step(self.stacks)

  def flops_spent(self, steps: int) -> float:
    """FLOPs of the first `steps` steps, on the drawn paths."""
    layers = self.step_flops.layers(self.draws.layers_run(steps))
    return layers + steps * self.step_flops.step({})

  def flops_between(self, first: int, last: int) -> dict[str, float]:
    """FLOPs of steps `first` to `last` - 1.

    Returns:
      Those `spent` on the drawn paths, and of the `layers` among them; of the
      layers, as `expected_layers`, where a part of a stage has its mean, and as
      `dense_layers`, of the full model.
    """
    layers = self.step_flops.layers
    drawn = {
      name: count - self.draws.layers_run(first)[name]
      for name, count in self.draws.layers_run(last).items()
    }
    expected = dict.fromkeys(self.stacks, 0.0)
    for stage in self.stages:
      steps = min(last, stage.start + stage.steps) - max(first, stage.start)
      for name in self.stacks:
        expected[name] += max(steps, 0) * stage.path_lengths[name]
    return {
      "spent": self.flops_spent(last) - self.flops_spent(first),
      "layers": layers(drawn),
      "expected_layers": layers(expected),
      "dense_layers": (last - first) * layers(self.stacks),
    }

  @property
  def flop_factor_nominal(self) -> float:
    """Dense over expected FLOPs, of the layers alone."""
    layers = self.step_flops.layers
    return layers(self.stacks) / layers(self._a_step(self.expected_layers))

  @property
  def flop_factor_spent(self) -> float:
    """Dense over spent FLOPs, of the layers alone."""
    layers, run = self.step_flops.layers, self.draws.layers_run
    return layers(self.stacks) / layers(self._a_step(run(self.total_steps)))

  @property
  def flop_factor_whole_step(self) -> float:
    """Dense over expected FLOPs, including embeddings and head."""
    step = self.step_flops.step
    return step(self.stacks) / step(self._a_step(self.expected_layers))

  def _a_step(self, layers: Mapping[str, float]) -> dict[str, float]:
    return {name: x / self.total_steps for name, x in layers.items()}

  def evaluated_lengths(self) -> list[dict[str, int]]:
    """Path lengths that are evaluated at the end of the run, shortest first.

    They are the stages' lengths, and a half, three quarters and all of the
    network. Reports name them by their total number of layers, so that of those
    with the same total only the first is evaluated.
    """
    lengths = [
      *(stage.path_lengths for stage in self.stages),
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
  total_steps = experiment.total_steps
  spec = experiment.train_dataset.batch_spec()
  return Plan(
    draws=draw_table(
      experiment.policies,
      experiment.keys()["draw"],
      total_steps,
      experiment.execution,
    ),
    stages=_planned_stages(experiment),
    learning_rates=ByStep(experiment.optimizer.learning_rate, total_steps),
    step_flops=experiment.model.step_flops(spec),
    batch_positions=token_positions(spec),
    stacks=experiment.model.stacks,
  )


def _planned_stages(experiment: Experiment) -> tuple[PlannedStage, ...]:
  def keep_probabilities(step: Step) -> PyTree:
    policies = experiment.policies.items()
    return {name: policy.keep_probabilities(step) for name, policy in policies}

  by_step: ByStep[KeepProbabilities] = ByStep(
    keep_probabilities, experiment.total_steps
  )
  starts = (0, *experiment.boundaries)
  ends = (*experiment.boundaries, experiment.total_steps)
  return tuple(
    _planned_stage(by_step, start, end) for start, end in zip(starts, ends)
  )


def _planned_stage(
  by_step: ByStep[KeepProbabilities], start: int, end: int
) -> PlannedStage:
  layers: dict[str, float] = collections.defaultdict(float)
  always: dict[str, list[np.ndarray]] = collections.defaultdict(list)
  chances: dict[str, list[float]] = collections.defaultdict(list)
  for piece in by_step.pieces(start, end):
    for name, p in piece.items():
      layers[name] += float(p.sum(dtype=np.float64))
      always[name].append(np.all(p >= 1, axis=0))
      chance = p[(p > 0) & (p < 1)]
      if chance.size:
        chances[name] += [float(chance.min()), float(chance.max())]
  return PlannedStage(
    start=start,
    steps=end - start,
    path_lengths={name: x / (end - start) for name, x in layers.items()},
    chances={name: (min(x), max(x)) for name, x in chances.items()},
    always_run={name: np.all(x, axis=0) for name, x in always.items()},
  )
