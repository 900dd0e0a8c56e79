"""Loss of the full model, and of shorter paths, on held-out batches."""

import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from raptr_jax.contracts import Dataset, Draws, Model, Params
from raptr_jax.execution import stack_keys, to_path
from raptr_jax.metrics import unigram_loss
from raptr_jax.partitioning import Partitioner
from raptr_jax.policies import exact, path_inclusion


class Evaluator:
  """Evaluates always on the same batches, with the same masked tokens.

  The full model exists at every step of RaPTr, so its loss is worth knowing at
  any time: every `period` steps, at each stage boundary (before the first step
  of the new stage), and one step later.
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
    self._kinds = dataset.kinds
    self._period = period
    self._joints = {step + after for step in boundaries for after in (0, 1)}
    self._partitioner = partitioner
    host_batches = itertools.islice(dataset.batches(0), num_batches)
    self._host_batches = list(host_batches)
    self._batches = [partitioner.put_batch(b) for b in self._host_batches]

    @jax.jit
    def metrics(params, batch, paths):
      return model.loss_fn(params, batch, None, paths)[1]

    @jax.jit
    def sums_by_kind(params, batch, paths):
      loss = -model.score_batch(params, batch, paths)
      weight = batch["target_weights"].sum(-1)
      hits = batch["kind"] == jnp.arange(len(dataset.kinds))  # [B, kinds]
      return loss @ hits, weight @ hits

    self._metrics, self._sums_by_kind = metrics, sums_by_kind

  def due(self, step: int) -> bool:
    """Whether the full model is evaluated after `step` steps."""
    return step in self._joints or (step > 0 and step % self._period == 0)

  def full(
    self, params: Params, depths: Mapping[str, int] | None = None
  ) -> dict[str, float]:
    """Mean loss, in nats, and accuracy of the full model.

    Args:
      params: of all layers.
      depths: of a model that is still growing: the lowest so many layers of
        each stack.
    """
    paths = self._lowest(depths or self._stacks)
    return self._mean(params, [paths] * len(self._batches))

  def _lowest(self, depths: Mapping[str, int]) -> Draws:
    return {
      name: to_path(np.arange(size) < depths[name], np.ones(size, np.float32))
      for name, size in self._stacks.items()
    }

  def by_kind(self, params: Params) -> dict[str, float]:
    """Mean loss of the full model, in nats, on the rows of each kind.

    Returns:
      Losses by the names of `Dataset.kinds`, in their order; kinds that the
      held-out batches lack are left out. Empty if there is but one kind.
    """
    if not self._kinds:
      return {}
    loss, weight = np.zeros((2, len(self._kinds)))
    paths = self._partitioner.put_replicated(self._lowest(self._stacks))
    for batch in self._batches:
      # Over all hosts, whose parts of a batch are not the same.
      total, count = self._sums_by_kind(params, batch, paths)
      loss += np.asarray(total, np.float64)
      weight += np.asarray(count, np.float64)
    return {
      name: float(loss[number] / weight[number])
      for number, name in enumerate(self._kinds)
      if weight[number]
    }

  def by_path_length(
    self,
    params: Params,
    lengths: Mapping[str, int],
    always_run: Mapping[str, Bool[np.ndarray, "L"]],
    key: jax.Array,
  ) -> dict[str, float]:
    """The same for random paths of these lengths, others for each batch.

    Layers that are always run are in each of them, if they are not too many.
    """
    keys = stack_keys(key, self._stacks)
    masks = {}
    for name, length in lengths.items():
      fixed = always_run[name] & (always_run[name].sum() <= length)
      inclusion = path_inclusion(length, jnp.asarray(fixed))
      batch_keys = jax.random.split(keys[name], len(self._batches))
      masks[name] = np.asarray(
        jax.vmap(exact, (0, None))(batch_keys, inclusion)
      )
    return self._mean(
      params,
      [
        {
          name: to_path(mask[number], np.ones(mask.shape[1], np.float32))
          for name, mask in masks.items()
        }
        for number in range(len(self._batches))
      ],
    )

  def unigram_loss(self, counts: np.ndarray) -> float:
    """Loss of predicting this host's batches by training frequency."""
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
