"""What a run has done so far: by which it may go on, and what it cost.

A checkpoint keeps facts of the steps done: their draws, learning rates, model,
data. A run goes on only if its configuration has the same ones, or if its user
says otherwise; then a new part of the run begins, and the summary tells of each
part what was true of it.
"""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from raptr_jax.methods.by_step import ByStep
from raptr_jax.models.compute import ComputeConfig
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.plan import Plan
from raptr_jax.training.state import Part


@dataclasses.dataclass
class History:
  """The steps done, as checkpoints tell of them.

  Attributes:
    experiment: the run as it is configured now.
    plan: its plan.
    earlier: parts of the run with other configurations, in order.
    first_step: of the present part.
    changes: with which it began; empty for the first part.
  """

  experiment: Experiment
  plan: Plan
  earlier: tuple[Part, ...] = ()
  first_step: int = 0
  changes: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    self._draws, self._rates = _Digest(), _Digest()

  def facts(self, steps: int) -> dict[str, str]:
    """What has to stay the same: of the run, and of its first `steps` steps."""
    experiment = self.experiment
    vocabulary = getattr(
      experiment.train_dataset, "vocabulary_fingerprint", None
    )
    draws = self._draws.of(self.plan.draws.drawn, steps)
    rates = self._rates.of(self.plan.learning_rates, steps)
    return {
      "the parts of the model": _model(experiment),
      "RANDOM_SEED": str(experiment.random_seed),
      "BATCH_SIZE": str(experiment.train_dataset.batch_size),
      "the training data": _data(experiment),
      **({"the vocabulary": vocabulary} if vocabulary else {}),
      "the layers drawn in the steps done": draws,
      "the learning rates of the steps done": rates,
    }

  def parts(self, steps: int) -> tuple[Part, ...]:
    """The parts of the run up to a step."""
    experiment, plan = self.experiment, self.plan
    own: Part = {
      "first_step": self.first_step,
      "steps": steps - self.first_step,
      "changes": list(self.changes),
      "random_seed": experiment.random_seed,
      "boundaries": list(plan.boundaries),
      "stage_path_lengths": [
        sum(stage.path_lengths.values()) for stage in plan.stages
      ],
      "solved_for": experiment.solved_for,
      "flops": plan.flops_between(self.first_step, steps),
    }
    return (*self.earlier, own)

  def flops_spent(self, steps: int) -> float:
    """FLOPs of the first `steps` steps, of whatever part they are."""
    before = sum(part["flops"]["spent"] for part in self.earlier)
    skipped = self.plan.flops_spent(self.first_step)
    return before + self.plan.flops_spent(steps) - skipped


class _Digest:
  """A digest of what a function of the step gives for the first steps.

  It goes on from where it was, since every checkpoint asks for it.
  """

  def __init__(self) -> None:
    self._steps = 0
    self._leaves: list[Any] = []

  def of(self, by_step: ByStep[Any], steps: int) -> str:
    """The digest for the first `steps` steps."""
    if steps < self._steps:
      raise ValueError(f"asked for {steps} steps after {self._steps}")
    # Each leaf by itself, so that where pieces end makes no difference.
    for piece in by_step.pieces(self._steps, steps):
      leaves = jax.tree.leaves(piece)
      self._leaves = self._leaves or [hashlib.sha256() for _ in leaves]
      for digest, leaf in zip(self._leaves, leaves):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    self._steps = steps
    text = " ".join(digest.hexdigest() for digest in self._leaves)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def factors(parts: Sequence[Part]) -> dict[str, float]:
  """The fields of a summary that count FLOPs, over parts of a run."""

  def total(name: str) -> float:
    return sum(part["flops"][name] for part in parts)

  other = total("spent") - total("layers")
  dense, expected = total("dense_layers"), total("expected_layers")
  return {
    "flop_factor_nominal": dense / expected,
    "flop_factor_spent": dense / total("layers"),
    "flop_factor_whole_step": (dense + other) / (expected + other),
    "flops_spent": total("spent"),
  }


def _model(experiment: Experiment) -> str:
  """A model, without the choices that do not change what it computes."""
  model: Any = experiment.model
  config = getattr(model, "config", None)
  if isinstance(config, ComputeConfig):
    computed = dataclasses.replace(
      config,
      attention_kernel=ComputeConfig.attention_kernel,
      remat=ComputeConfig.remat,
    )
    model = dataclasses.replace(model, config=computed)
  return re.sub(r" at 0x\w+", "", repr(model))  # Of functions.


def _data(experiment: Experiment) -> str:
  """A digest of what is known of the training text."""
  counts = experiment.train_dataset.unigram_counts
  if counts is None:
    return "unknown"
  content = np.ascontiguousarray(counts, np.int64).tobytes()
  examples = experiment.train_dataset.num_examples
  digest = hashlib.sha256(content).hexdigest()[:16]
  return f"{examples} examples, tokens {digest}"
