"""The parts of a run: built objects, checked against one another."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from raptr_jax.contracts import Dataset, Model, Params, Policy
from raptr_jax.methods.draws import EXECUTIONS
from raptr_jax.methods.growth import GrowthPlan
from raptr_jax.reports.trackers import Tracker
from raptr_jax.tasks import files
from raptr_jax.training.checkpoint import Checkpointer
from raptr_jax.training.loss_watch import LossWatch
from raptr_jax.training.optim import Optimizer
from raptr_jax.training.partitioning import Partitioner

Part = TypeVar("Part")


class AtEnd(Protocol):
  """A task for the trained model at the end of a run.

  Attributes:
    file_name: of the page that it leaves in the run's folder; the run is not
      complete without it.
  """

  @property
  def file_name(self) -> str: ...

  def open(self, model: Model) -> None:
    """Raises now, before training, what would otherwise fail after it."""

  def __call__(
    self, model: Model, params: Params, partitioner: Partitioner
  ) -> str:
    """The page, as Markdown."""


class Scorer(Protocol):
  """Judges a model, beside its held-out loss."""

  def __call__(self, step: int, params: Params) -> Mapping[str, float]:
    """Scores of the full model after `step` steps, for the run's record.

    A run that was killed may ask for those of a step again.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """A run, ready to be planned or trained.

  Attributes:
    model: what is trained.
    policy: which of its layers run in a step: one policy for all stacks, which
      still draw independently, or a mapping with one for each.
    growth: how a stacked model grows, for all stacks or by stack; None for a
      model that does not grow.
    train_dataset: batches to learn from.
    eval_dataset: held-out batches.
    optimizer: updates the parameters.
    model_dir: folder of everything that the run writes.
    total_steps: length of the run.
    partitioner: places arrays on devices; by default it splits batches over all
      of them.
    checkpointer: when to save and what to start from.
    random_seed: of parameters, draws and dropout.
    eval_period: steps between evaluations of the full model.
    num_eval_batches: size of the held-out sample.
    execution: "gather" (fast) or "cond" (one program), see `masked_stack.py`.
    report_period: steps between entries of training metrics.
    num_microbatches: parts of a batch whose gradients are accumulated.
    max_skipped_steps: so many steps in a row end the run if their loss or
      gradient is not finite, or their loss a spike; such a step changes no
      parameter.
    loss_watch: what counts as a spike of the loss; None for nothing.
    scorer: called at each evaluation of the full model; None for no scores but
      the loss.
    at_end: called with the trained model, in this order.
    profile_steps: (first, end) of the steps to trace, see `profiling.py`; the
      last traced step is end - 1. None traces nothing.
    trackers: programs that keep records of runs, see `trackers.py`.
  """

  model: Model
  policy: Policy | Mapping[str, Policy]
  train_dataset: Dataset
  eval_dataset: Dataset
  optimizer: Optimizer
  model_dir: str
  total_steps: int
  partitioner: Partitioner = dataclasses.field(default_factory=Partitioner)
  checkpointer: Checkpointer = dataclasses.field(default_factory=Checkpointer)
  random_seed: int = 0
  eval_period: int = 1000
  num_eval_batches: int = 8
  execution: str = "gather"
  report_period: int = 10
  num_microbatches: int = 1
  max_skipped_steps: int = 10
  loss_watch: LossWatch | None = None
  growth: GrowthPlan | Mapping[str, GrowthPlan] | None = None
  scorer: Scorer | None = None
  at_end: Sequence[AtEnd] = ()
  profile_steps: tuple[int, int] | None = None
  trackers: Sequence[Tracker] = ()

  def __post_init__(self) -> None:
    if not self.model_dir:
      raise ValueError(
        "MODEL_DIR = '', expected a folder: set --gin.MODEL_DIR=\"'runs/x'\"."
      )
    files.path("MODEL_DIR", self.model_dir)  # Raises for what cannot be read.
    if self.execution not in EXECUTIONS:
      raise ValueError(
        f"EXECUTION = {self.execution!r}, expected one of {EXECUTIONS}."
      )
    self._check_trackers()
    for name, policy in self.policies.items():
      if self.model.stacks[name] != policy.num_layers:
        raise ValueError(
          f"The model's {name} has {self.model.stacks[name]} layers, but the"
          f" method is for {policy.num_layers}: set NUM_LAYERS (or that of the"
          " stack, such as ENCODER_LAYERS) for both."
        )
    for name, growth in self.growths.items():
      self._check_growth(growth, self.policies[name])
    for name, binding in (
      ("total_steps", "TRAIN_STEPS"),
      ("eval_period", "EVAL_PERIOD"),
      ("num_eval_batches", "EVAL_BATCHES"),
      ("report_period", "experiment.Experiment.report_period"),
      ("num_microbatches", "experiment.Experiment.num_microbatches"),
      ("max_skipped_steps", "experiment.Experiment.max_skipped_steps"),
    ):
      if getattr(self, name) < 1:
        raise ValueError(
          f"Experiment.{name} = {getattr(self, name)}, expected at least 1: set"
          f" --gin.{binding}."
        )
    self._check_lengths()
    if self.boundaries and self.boundaries[-1] >= self.total_steps:
      raise ValueError(
        f"The last stage begins at step {self.boundaries[-1]}, but the"
        f" run ends at step {self.total_steps}: use TRAIN_STEPS for both."
      )
    first, end = self.profile_steps or (0, 1)
    if not 0 <= first < end <= self.total_steps:
      raise ValueError(
        f"Experiment.profile_steps = {self.profile_steps}, expected steps 0 <="
        f" first < end <= TRAIN_STEPS = {self.total_steps}: set"
        " --profile_steps=FIRST:END."
      )
    shards = self.num_microbatches * self.partitioner.batch_shards
    if self.train_dataset.batch_size % shards:
      raise ValueError(
        f"BATCH_SIZE = {self.train_dataset.batch_size}, expected a multiple of"
        f" {shards}: experiment.Experiment.num_microbatches ="
        f" {self.num_microbatches} on {shards // self.num_microbatches}"
        " data-parallel devices."
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
    """Steps at which a stage of any stack begins, except step 0."""
    steps = (set(policy.boundaries) for policy in self.policies.values())
    return tuple(sorted(set().union(*steps)))

  @property
  def solved_for(self) -> dict[str, float]:
    """Numbers that a FLOP factor determined, by name."""
    if not isinstance(self.policy, Mapping):
      return dict(self.policy.solved_for)
    return {
      f"{stack}, {name}": value
      for stack, policy in self.policies.items()
      for name, value in policy.solved_for.items()
    }

  @property
  def vocabulary_size(self) -> int | None:
    """V of the model; None if its config does not say."""
    size: int | None = getattr(
      getattr(self.model, "config", None), "vocab_size", None
    )
    return size

  def depths(self, step: int) -> dict[str, int]:
    """Layers that each stack has in a step: all, unless it is still growing."""
    return dict(self.model.stacks) | {
      name: growth.num_layers(step) for name, growth in self.growths.items()
    }

  def scores(self, step: int, params: Params) -> dict[str, float]:
    """Scores of a model after `step` steps; none without a scorer."""
    return {} if self.scorer is None else dict(self.scorer(step, params))

  def _by_stack(
    self, macro: str, part: Part | Mapping[str, Part]
  ) -> dict[str, Part]:
    if not isinstance(part, Mapping):
      return dict.fromkeys(self.model.stacks, part)
    if set(part) != set(self.model.stacks):
      raise ValueError(
        f"{macro} is for the stacks {sorted(part)}, but the model has"
        f" {sorted(self.model.stacks)}: set one for each, or one for all."
      )
    return {name: part[name] for name in self.model.stacks}

  def _check_lengths(self) -> None:
    """Raises a ValueError if features are longer than the model can read."""
    config = getattr(self.model, "config", None)
    limit: int | None = getattr(config, "max_length", None)
    for name, spec in self.train_dataset.batch_spec().items():
      if limit is not None and spec.shape[1] > limit:
        raise ValueError(
          f"TASK_FEATURE_LENGTHS gives {name} a length of {spec.shape[1]},"
          f" expected at most {type(config).__name__}.max_length = {limit}: set"
          " one or the other."
        )

  def _check_trackers(self) -> None:
    """Raises a ValueError unless there are several, each of another kind."""
    several = isinstance(self.trackers, Sequence)
    kinds = (
      [type(tracker).__name__ for tracker in self.trackers] if several else []
    )
    if not several or len(set(kinds)) < len(kinds):
      raise ValueError(
        f"TRACKERS = {self.trackers!r}, expected a tuple of different trackers:"
        ' set --gin.TRACKERS="(@trackers.WandB(),)".'
      )

  def _check_growth(self, growth: GrowthPlan, policy: Policy) -> None:
    """Raises a ValueError unless the method trains the layers that exist."""
    boundaries = growth.schedule.boundaries
    if boundaries != policy.boundaries:
      raise ValueError(
        f"The model grows at steps {boundaries}, but the stages of the method"
        f" begin at {policy.boundaries}: use one SCHEDULE for POLICY and"
        " GROWTH."
      )
    for step in (0, *boundaries):
      grown = np.arange(policy.num_layers) < growth.num_layers(step)
      if not np.array_equal(
        policy.keep_probabilities(jnp.asarray(step)), grown
      ):
        raise ValueError(
          f"In step {step} the method does not train the layers that the model"
          " has grown to: use POLICY = @policies.stacked() with GROWTH."
        )

  def open(self) -> None:
    """Opens the data and the `at_end` tasks.

    Raises:
      FileNotFoundError: if the data is not prepared.
      ValueError: if the data does not fit the task or the model.
    """
    self.train_dataset.open()
    self.eval_dataset.open()
    counts, size = self.train_dataset.unigram_counts, self.vocabulary_size
    if size is not None and counts is not None and len(counts) > size:
      raise ValueError(
        f"The text has {len(counts)} token ids, but the model {size}: set"
        " VOCABULARY_SIZE, or the model's vocab_size, for both."
      )
    for end in self.at_end:
      end.open(self.model)

  def keys(self) -> dict[str, Key[Array, ""]]:
    """Independent keys for everything random except the data."""
    names = ("params", "draw", "dropout", "eval")
    keys = jax.random.split(jax.random.key(self.random_seed), len(names))
    return dict(zip(names, keys))
