"""Loss of the full model, and of shorter paths, on held-out batches."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from raptr_jax.contracts import Dataset, LayerPath, Model, Params
from raptr_jax.execution import to_path
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
    self._num_layers = model.num_layers
    self._period = period
    self._joints = {step + after for step in boundaries for after in (0, 1)}
    self._partitioner = partitioner
    host_batches = itertools.islice(dataset.batches(0), num_batches)
    self._host_batches = list(host_batches)
    self._batches = [partitioner.put_batch(b) for b in self._host_batches]

    @jax.jit
    def score(params, batch, path):
      return model.loss_fn(params, batch, None, path)[1]

    self._score = score

  def due(self, step: int) -> bool:
    """Whether the full model is evaluated after `step` steps."""
    return step in self._joints or (step > 0 and step % self._period == 0)

  def full(
    self, params: Params, num_layers: int | None = None
  ) -> dict[str, float]:
    """Mean loss, in nats, and accuracy of the full model.

    Args:
      params: of all layers.
      num_layers: of a model that is still growing: its lowest layers.
    """
    depth = self._num_layers if num_layers is None else num_layers
    ones = np.ones(self._num_layers, np.float32)
    path = to_path(np.arange(self._num_layers) < depth, ones)
    return self._mean(params, [path] * len(self._batches))

  def by_path_length(
    self,
    params: Params,
    length: int,
    always_run: Bool[np.ndarray, "L"],
    key: jax.Array,
  ) -> dict[str, float]:
    """The same for random paths of this length, another one for each batch.

    Layers that are always run are in each of them, if they are not too many.
    """
    fixed = always_run & (always_run.sum() <= length)
    inclusion = path_inclusion(length, jnp.asarray(fixed))
    keys = jax.random.split(key, len(self._batches))
    masks = np.asarray(jax.vmap(exact, (0, None))(keys, inclusion))
    ones = np.ones(self._num_layers, np.float32)
    return self._mean(params, [to_path(mask, ones) for mask in masks])

  def unigram_loss(self, counts: np.ndarray) -> float:
    """Loss of predicting this host's batches by training frequency."""
    names = ("targets", "target_weights")
    targets, weights = (
      np.concatenate([batch[name] for batch in self._host_batches])
      for name in names
    )
    return unigram_loss(counts, targets, weights)

  def _mean(
    self, params: Params, paths: Sequence[LayerPath]
  ) -> dict[str, float]:
    sums = [
      self._score(params, batch, self._partitioner.put_replicated(path))
      for batch, path in zip(self._batches, paths)
    ]
    total = jax.tree.map(lambda *x: float(np.sum(x)), *jax.device_get(sums))
    return {
      "loss": total["loss"] / total["weight"],
      "accuracy": total["accuracy"] / total["weight"],
    }
