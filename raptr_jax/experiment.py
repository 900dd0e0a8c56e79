"""What a run is made of: built objects, checked against one another."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from raptr_jax.checkpoint import Checkpointer
from raptr_jax.contracts import Dataset, Model, Policy
from raptr_jax.execution import EXECUTIONS
from raptr_jax.growth import GrowthPlan
from raptr_jax.infill import Infilling
from raptr_jax.optim import Optimizer
from raptr_jax.partitioning import Partitioner


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """A run, ready to be planned or trained.

  Attributes:
    model: what is trained.
    policy: which of its layers run in a step; one that all stacks have in
      common (they draw independently), or one for each, by the stack's name.
    growth: how a model that is stacked grows, in the same way; None for one
      that does not grow.
    train_dataset: batches to learn from.
    eval_dataset: held-out batches.
    optimizer: updates the parameters.
    partitioner: places arrays on devices.
    checkpointer: when to save and what to start from.
    model_dir: folder of everything that the run writes.
    total_steps: length of the run.
    execution: "gather" (fast) or "cond" (one program), see `masked_stack.py`.
    random_seed: of parameters, draws and dropout.
    eval_period: steps between evaluations of the full model.
    num_eval_batches: size of the held-out sample.
    report_period: steps between rows of the report.
    num_microbatches: gradients of so many parts of a batch are accumulated.
    infilling: shows what the model has learnt, at the end; None shows nothing.
  """

  model: Model
  policy: Policy | Mapping[str, Policy]
  train_dataset: Dataset
  eval_dataset: Dataset
  optimizer: Optimizer
  partitioner: Partitioner
  checkpointer: Checkpointer
  model_dir: str
  total_steps: int
  random_seed: int
  eval_period: int
  num_eval_batches: int
  execution: str = "gather"
  report_period: int = 10
  num_microbatches: int = 1
  growth: GrowthPlan | Mapping[str, GrowthPlan] | None = None
  infilling: Infilling | None = None

  def __post_init__(self):
    if self.execution not in EXECUTIONS:
      raise ValueError(
        f"EXECUTION = {self.execution!r}, expected one of {EXECUTIONS}."
      )
    for name, policy in self.policies.items():
      if self.model.stacks[name] != policy.num_layers:
        raise ValueError(
          f"The model has {self.model.stacks[name]} layers in its {name}, the"
          f" method is for {policy.num_layers}: set NUM_LAYERS (or that of the"
          " stack, as ENCODER_LAYERS) for both."
        )
    for name, growth in self.growths.items():
      self._check_growth(growth, self.policies[name])
    for name in (
      "total_steps",
      "eval_period",
      "num_eval_batches",
      "report_period",
      "num_microbatches",
    ):
      if getattr(self, name) < 1:
        raise ValueError(
          f"Experiment.{name} = {getattr(self, name)}, expected at least 1."
        )
    if self.boundaries and self.boundaries[-1] >= self.total_steps:
      raise ValueError(
        f"The last stage begins at step {self.boundaries[-1]}, but the"
        f" run ends at step {self.total_steps}: use TRAIN_STEPS for both."
      )
    shards = self.num_microbatches * self.partitioner.mesh.shape["data"]
    if self.train_dataset.batch_size % shards:
      raise ValueError(
        f"BATCH_SIZE = {self.train_dataset.batch_size}, expected a multiple of"
        f" {shards}: Experiment.num_microbatches = {self.num_microbatches} on"
        f" {shards // self.num_microbatches} data-parallel devices."
      )

  @functools.cached_property
  def policies(self) -> dict[str, Policy]:
    """The policy of each stack."""
    return self._by_stack("POLICY", self.policy)

  @functools.cached_property
  def growths(self) -> dict[str, GrowthPlan]:
    """How each stack grows; empty if none does."""
    if self.growth is None:
      return {}
    return self._by_stack("GROWTH", self.growth)

  @property
  def boundaries(self) -> tuple[int, ...]:
    """Steps at which a new stage of any stack begins."""
    steps = (set(policy.boundaries) for policy in self.policies.values())
    return tuple(sorted(set().union(*steps)))

  @property
  def solved(self) -> dict[str, float]:
    """Numbers that were solved for to meet a FLOP factor, by name."""
    if not isinstance(self.policy, Mapping):
      return dict(self.policy.solved)
    return {
      f"{stack}, {name}": value
      for stack, policy in self.policies.items()
      for name, value in policy.solved.items()
    }

  def _by_stack(self, macro: str, part: Any) -> dict[str, Any]:
    if not isinstance(part, Mapping):
      return dict.fromkeys(self.model.stacks, part)
    if set(part) != set(self.model.stacks):
      raise ValueError(
        f"{macro} is for the stacks {sorted(part)}, but the model has"
        f" {sorted(self.model.stacks)}: give one for each, or one for all."
      )
    return {name: part[name] for name in self.model.stacks}

  def _check_growth(self, growth: GrowthPlan, policy: Policy) -> None:
    """Raises a ValueError unless the method trains what there is to train."""
    boundaries = growth.schedule.boundaries
    if boundaries != policy.boundaries:
      raise ValueError(
        f"The model grows at steps {boundaries}, but the stages of the method"
        f" begin at {policy.boundaries}: use one SCHEDULE for POLICY and"
        " GROWTH."
      )
    for step in (0, *boundaries):
      grown = np.arange(policy.num_layers) < growth.num_layers(step)
      if not np.array_equal(policy.inclusion(jnp.asarray(step)), grown):
        raise ValueError(
          f"In step {step} the method does not train the layers that the model"
          " has grown to: use POLICY = @policies.stacked() with GROWTH."
        )

  def open(self) -> None:
    """Opens the data.

    Raises:
      FileNotFoundError: if it is not prepared.
      ValueError: if it does not fit the task.
    """
    self.train_dataset.open()
    self.eval_dataset.open()
    if self.infilling:
      self.infilling.open()

  def keys(self) -> dict[str, jax.Array]:
    """Independent random keys for all that is random but the data."""
    names = ("params", "draw", "dropout", "eval")
    keys = jax.random.split(jax.random.key(self.random_seed), len(names))
    return dict(zip(names, keys))
