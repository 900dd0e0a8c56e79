"""From logical axis names to devices.

Parameters name their axes (`embed`, `heads`, `mlp`, `vocab`, `layers`, ...), and
rules map these names to the axes of the mesh. Batches are split over `data`;
every shard of a batch runs the same draw of layers.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from raptr_jax.contracts import Batch

# Tensor parallelism by heads, MLP units and vocabulary; names that are missing
# here are not split.
RULES = (("heads", "model"), ("mlp", "model"), ("vocab", "model"))


@dataclasses.dataclass(frozen=True)
class Partitioner:
  """Places states and batches on the devices of all hosts.

  Attributes:
    model_shards: devices that share one copy of the parameters; the others
      share the batch.
    rules: (logical axis, mesh axis) pairs.
  """

  model_shards: int = 1
  rules: Sequence[tuple[str, str | None]] = RULES

  def __post_init__(self):
    if jax.device_count() % self.model_shards:
      raise ValueError(
        f"Partitioner.model_shards = {self.model_shards} does not divide the"
        f" {jax.device_count()} devices."
      )
    if jax.device_count() // self.model_shards % jax.process_count():
      raise ValueError(
        f"Partitioner.model_shards = {self.model_shards} spreads one copy of"
        f" the parameters over several of the {jax.process_count()} hosts, but"
        " each host reads its own part of a batch: set at most"
        f" {jax.local_device_count()}."
      )

  @property
  def mesh(self) -> Mesh:
    shape = (jax.device_count() // self.model_shards, self.model_shards)
    return jax.make_mesh(
      shape, ("data", "model"), (jax.sharding.AxisType.Auto,) * 2
    )

  @property
  def replicated(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def batch_sharding(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec("data"))

  def state_sharding(self, boxed_state: Any) -> Any:
    """Shardings of a state whose leaves are boxed with axis names."""
    specs = nn.get_partition_spec(boxed_state)
    return nn.logical_to_mesh_sharding(specs, self.mesh, self.rules)

  def put_batch(self, batch: Batch) -> Mapping[str, Array]:
    """Global arrays [B, ...] from this host's part of a batch."""
    return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(self.batch_sharding, x),
      dict(batch),
    )

  def put_replicated(self, tree: Any) -> Any:
    """The same NumPy arrays on every device."""
    return _put(tree, self.replicated)

  def put_split(self, tree: Any) -> Any:
    """NumPy arrays [B, ...] that every host has whole, split like a batch."""
    return _put(tree, self.batch_sharding)

  def fetch(self, tree: Any) -> Any:
    """All of global arrays, as NumPy arrays on every host."""
    gather = jax.jit(_same, out_shardings=self.replicated)
    return jax.tree.map(np.asarray, gather(tree))


def _same(tree: Any) -> Any:
  # Of the module, so that what jit makes of it is found again.
  return tree


def _put(tree: Any, sharding: NamedSharding) -> Any:
  def put(x):
    # Unlike `device_put`, this does not make the hosts compare their values.
    x = np.asarray(x)
    return jax.make_array_from_callback(
      x.shape, sharding, lambda index: x[index]
    )

  return jax.tree.map(put, tree)
