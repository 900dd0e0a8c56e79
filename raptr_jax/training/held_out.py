"""Loss on held-out batches: of the full model, and of shorter paths."""

import itertools
from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from raptr_jax.contracts import (
  Dataset,
  DeviceBatch,
  Draws,
  LayerDraw,
  Metrics,
  Model,
  Params,
)
from raptr_jax.methods.draws import as_executed, lowest_layers, stack_keys
from raptr_jax.methods.samplers import exact, path_keep_probabilities
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.metrics import unigram_loss
from raptr_jax.training.partitioning import Partitioner
from raptr_jax.training.plan import Plan

# (keys [N], keep probabilities [L]) -> masks [N, L]. Without jit, each of its
# operations would be compiled by itself.
_draw_masks = jax.jit(jax.vmap(exact, (0, None)))


def evaluation_due(
  step: int, *, period: int, boundaries: Collection[int]
) -> bool:
  """Whether the full model is evaluated after `step` steps.

  Args:
    step: steps done.
    period: `Experiment.eval_period`.
    boundaries: first steps of all stages but the first.
  """
  at_joint = step in boundaries or step - 1 in boundaries
  return at_joint or (step > 0 and step % period == 0)


class HeldOutEvaluator:
  """Evaluates a model, always on the same batches and masked tokens.

  RaPTr's full model exists at every step, so its loss is always of interest: it
  is evaluated every `period` steps, at each stage boundary (before the first
  step of the new stage), and one step later.
  """

  def __init__(
    self,
    *,
    model: Model,
    dataset: Dataset,
    num_batches: int,
    period: int,
    boundaries: Sequence[int],
    partitioner: Partitioner,
  ):
    self._stacks = model.stacks
    self._example_kinds = dataset.example_kinds
    self._period = period
    self._boundaries = boundaries
    self._partitioner = partitioner
    host_batches = itertools.islice(dataset.batches(0), num_batches)
    self._host_batches = list(host_batches)
    self._batches = [partitioner.put_batch(b) for b in self._host_batches]

    @partitioner.jit
    def metrics(params: Params, batch: DeviceBatch, draws: Draws) -> Metrics:
      return model.loss_fn(params, batch, draws, None)[1]

    @partitioner.jit
    def sums_by_example_kind(
      params: Params, batch: DeviceBatch, draws: Draws
    ) -> tuple[Float[Array, "kinds"], Float[Array, "kinds"]]:
      kinds = jnp.arange(len(dataset.example_kinds))[:, None, None]
      hits = batch["example_kind"][None] == kinds  # [kinds, B, 1 or T]
      weights = batch["target_weights"][None] * hits

      def loss(weights: Float[Array, "B T"]) -> Float[Array, ""]:
        batch_of_kind = {**batch, "target_weights": weights}
        return -model.score_batch(params, batch_of_kind, draws).sum()

      # The model itself does not depend on weights, and runs once.
      return jax.vmap(loss)(weights), weights.sum((1, 2))

    self._metrics, self._sums_by_example_kind = metrics, sums_by_example_kind

  def due(self, step: int) -> bool:
    """Whether the full model is evaluated after `step` steps."""
    return evaluation_due(
      step, period=self._period, boundaries=self._boundaries
    )

  def next_due(self, step: int) -> int:
    """The first step after `step` at which an evaluation is due."""
    regular = (step // self._period + 1) * self._period
    joints = (first + after for first in self._boundaries for after in (0, 1))
    return min([regular, *(joint for joint in joints if joint > step)])

  def compile(self, params: Params, depths: Mapping[str, int]) -> None:
    """Compiles the program of `full` for parameters of these shapes."""
    paths = self._partitioner.put_replicated(self._lowest(depths))
    self._metrics.lower(params, self._batches[0], paths).compile()

  def full(
    self, params: Params, depths: Mapping[str, int] | None = None
  ) -> dict[str, float]:
    """Mean loss, in nats, and accuracy of the full model.

    Args:
      params: of all layers.
      depths: layers of each stack, for a model that is still growing; None for
        all.
    """
    return self._mean(params, [self._lowest(depths)] * len(self._batches))

  def of_path(self, params: Params, path: Draws) -> dict[str, float]:
    """Mean loss, in nats, and accuracy of one path, on all batches."""
    return self._mean(params, [path] * len(self._batches))

  def _lowest(self, depths: Mapping[str, int] | None = None) -> Draws:
    draws = lowest_layers(depths or self._stacks, self._stacks)
    return as_executed(draws, "gather")

  def by_example_kind(self, params: Params) -> dict[str, float]:
    """Mean loss of the full model, in nats, on the examples of each kind.

    Returns:
      Losses by kind, in the order of `Dataset.example_kinds`, without kinds
      that the held-out batches lack. Empty if there is only one kind.
    """
    if not self._example_kinds:
      return {}
    loss, weight = np.zeros((2, len(self._example_kinds)))
    paths = self._partitioner.put_replicated(self._lowest())
    for batch in self._batches:
      # Sums over all hosts, each of which has another part of the batch.
      total, count = self._sums_by_example_kind(params, batch, paths)
      loss += np.asarray(total, np.float64)
      weight += np.asarray(count, np.float64)
    return {
      name: float(loss[number] / weight[number])
      for number, name in enumerate(self._example_kinds)
      if weight[number]
    }

  def by_path_length(
    self,
    params: Params,
    lengths: Mapping[str, int],
    always_run: Mapping[str, Bool[np.ndarray, "L"]],
    key: Key[Array, ""],
  ) -> dict[str, float]:
    """Mean loss and accuracy of random paths; each batch draws its own.

    Args:
      params: of all layers.
      lengths: path length of each stack.
      always_run: layers that all paths contain, unless they are too many.
      key: of the paths.
    """
    keys = stack_keys(key, self._stacks)
    draws = {}
    for name, length in lengths.items():
      fixed = always_run[name] & (always_run[name].sum() <= length)
      probabilities = path_keep_probabilities(length, jnp.asarray(fixed))
      batch_keys = jax.random.split(keys[name], len(self._batches))
      masks = _draw_masks(batch_keys, probabilities)
      draws[name] = LayerDraw(np.asarray(masks), np.ones(masks.shape, "f4"))
    paths = [
      as_executed(jax.tree.map(lambda x, i=i: x[i], draws), "gather")
      for i in range(len(self._batches))
    ]
    return self._mean(params, paths)

  def by_path_lengths(
    self, params: Params, plan: Plan, key: Key[Array, ""]
  ) -> dict[int, dict[str, float]]:
    """`by_path_length` of all that a plan evaluates, by number of layers."""
    return {
      sum(lengths.values()): self.by_path_length(
        params, lengths, plan.always_run, key
      )
      for lengths in plan.evaluated_lengths()
    }

  def unigram_loss(self, counts: np.ndarray) -> float:
    """Loss of predicting this host's targets by their training frequency."""
    names = ("targets", "target_weights")
    targets, weights = (
      np.concatenate([batch[name] for batch in self._host_batches])
      for name in names
    )
    return unigram_loss(counts, targets, weights)

  def _mean(self, params: Params, paths: Sequence[Draws]) -> dict[str, float]:
    sums = [
      self._metrics(params, batch, self._partitioner.put_replicated(path))
      for batch, path in zip(self._batches, paths)
    ]
    total = jax.tree.map(lambda *x: float(np.sum(x)), *jax.device_get(sums))
    return {
      "loss": total["loss"] / total["weight"],
      "accuracy": total["accuracy"] / total["weight"],
    }


def held_out_evaluator(experiment: Experiment) -> HeldOutEvaluator:
  """Evaluates the models of a run on its held-out batches."""
  return HeldOutEvaluator(
    model=experiment.model,
    dataset=experiment.eval_dataset,
    num_batches=experiment.num_eval_batches,
    period=experiment.eval_period,
    boundaries=experiment.boundaries,
    partitioner=experiment.partitioner,
  )
