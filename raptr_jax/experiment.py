"""What a run is made of: built objects, checked against one another."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from raptr_jax.checkpoint import Checkpointer
from raptr_jax.contracts import Dataset, Model, Policy
from raptr_jax.execution import EXECUTIONS
from raptr_jax.growth import GrowthPlan
from raptr_jax.optim import Optimizer
from raptr_jax.partitioning import Partitioner


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """A run, ready to be planned or trained.

  Attributes:
    model: what is trained.
    policy: which of its layers run in a step.
    growth: how a model that is stacked grows; None for one that is not.
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
  """

  model: Model
  policy: Policy
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
  growth: GrowthPlan | None = None

  def __post_init__(self):
    if self.execution not in EXECUTIONS:
      raise ValueError(
        f"EXECUTION = {self.execution!r}, expected one of {EXECUTIONS}."
      )
    if self.model.num_layers != self.policy.num_layers:
      raise ValueError(
        f"The model has {self.model.num_layers} layers, the method is for"
        f" {self.policy.num_layers}: set NUM_LAYERS for both."
      )
    if self.growth:
      self._check_growth(self.growth)
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
    if (
      self.policy.boundaries and self.policy.boundaries[-1] >= self.total_steps
    ):
      raise ValueError(
        f"The last stage begins at step {self.policy.boundaries[-1]}, but the"
        f" run ends at step {self.total_steps}: use TRAIN_STEPS for both."
      )
    shards = self.num_microbatches * self.partitioner.mesh.shape["data"]
    if self.train_dataset.batch_size % shards:
      raise ValueError(
        f"BATCH_SIZE = {self.train_dataset.batch_size}, expected a multiple of"
        f" {shards}: Experiment.num_microbatches = {self.num_microbatches} on"
        f" {shards // self.num_microbatches} data-parallel devices."
      )

  def _check_growth(self, growth: GrowthPlan) -> None:
    """Raises a ValueError unless the method trains what there is to train."""
    boundaries = growth.schedule.boundaries
    if boundaries != self.policy.boundaries:
      raise ValueError(
        f"The model grows at steps {boundaries}, but the stages of the method"
        f" begin at {self.policy.boundaries}: use one SCHEDULE for POLICY and"
        " GROWTH."
      )
    for step in (0, *boundaries):
      grown = np.arange(self.policy.num_layers) < growth.num_layers(step)
      if not np.array_equal(self.policy.inclusion(jnp.asarray(step)), grown):
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

  def keys(self) -> dict[str, jax.Array]:
    """Independent random keys for all that is random but the data."""
    names = ("params", "draw", "dropout", "eval")
    keys = jax.random.split(jax.random.key(self.random_seed), len(names))
    return dict(zip(names, keys))
