"""Places arrays on devices, by the logical names of their axes.

Parameters name their axes (`embed`, `heads`, `mlp`, `vocab`, `layers`, ...),
and rules map these names to axes of the mesh. Batches are split over `data`;
every shard of a batch runs the same draw of layers.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Wrapped
from jaxtyping import Array, PyTree, Shaped

from raptr_jax.contracts import Batch, DeviceBatch

Args = ParamSpec("Args")
Result = TypeVar("Result")

# Tensor parallelism over heads, MLP units and vocabulary; axes of other names
# are not split.
RULES = (("heads", "model"), ("mlp", "model"), ("vocab", "model"))
# Also splits each parameter, and its moments, over the devices that share the
# batch: they gather a layer's parameters when they run it (ZeRO, FSDP).
FULLY_SPLIT = (*RULES, ("embed", "data"))


@dataclasses.dataclass(frozen=True)
class Partitioner:
  """Places states and batches on the devices of all hosts.

  Attributes:
    model_shards: number of devices that share one copy of the parameters; the
      copies share the batch.
    rules: pairs (logical axis, mesh axis).
    devices: those to use; None for all that JAX finds. Those of `targets.py`
      are described, not present: programs can be compiled for them, and arrays
      cannot be put on them.
  """

  model_shards: int = 1
  rules: Sequence[tuple[str, str | None]] = RULES
  devices: Sequence[jax.Device] | None = None

  def __post_init__(self) -> None:
    if self.num_devices % self.model_shards:
      raise ValueError(
        f"partitioning.Partitioner.model_shards = {self.model_shards}, expected"
        f" a divisor of the {self.num_devices} devices."
      )
    hosts = self._num_hosts
    if self.num_devices // self.model_shards % hosts:
      raise ValueError(
        f"partitioning.Partitioner.model_shards = {self.model_shards} spreads"
        f" one copy of the parameters over several of the {hosts} hosts, but"
        " each host reads its own part of a batch: set at most"
        f" {self.num_devices // hosts}."
      )

  @property
  def num_devices(self) -> int:
    if self.devices is None:
      count: int = jax.device_count()
      return count
    return len(self.devices)

  @property
  def device_kind(self) -> str:
    """JAX's name of the devices, such as "NVIDIA H200"."""
    kind: str = self.mesh.devices.flat[0].device_kind
    return kind

  @property
  def _num_hosts(self) -> int:
    if self.devices is None:
      count: int = jax.process_count()
      return count
    return len({device.process_index for device in self.devices})

  @property
  def mesh(self) -> Mesh:
    shape = (self.num_devices // self.model_shards, self.model_shards)
    return jax.make_mesh(
      shape,
      ("data", "model"),
      (jax.sharding.AxisType.Auto,) * 2,
      devices=self.devices,
    )

  @property
  def replica_axes(self) -> tuple[str, ...]:
    """The mesh axes along which devices have copies of the parameters."""
    shape, split = self.mesh.shape, {axis for _, axis in self.rules}
    return tuple(a for a in shape if a not in split and shape[a] > 1)

  @property
  def replicated(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def batch_sharding(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec("data"))

  def state_sharding(self, boxed_state: PyTree) -> PyTree:
    """Shardings of a state whose leaves are boxed with axis names.

    Raises:
      ValueError: if an axis cannot be split evenly.
    """
    specs = nn.get_partition_spec(boxed_state)
    sharding = nn.logical_to_mesh_sharding(specs, self.mesh, self.rules)
    boxes = jax.tree.leaves(boxed_state, is_leaf=_is_box)
    for box, placed in zip(boxes, jax.tree.leaves(sharding), strict=True):
      if _is_box(box):
        self._check_even(box, placed.spec)
    return sharding

  def _check_even(
    self, box: nn.LogicallyPartitioned, spec: PartitionSpec
  ) -> None:
    for name, size, axis in zip(box.names, box.value.shape, spec):
      if axis is not None and size % self.mesh.shape[axis]:
        raise ValueError(
          f"The axis {name!r} has size {size}, which does not split over the"
          f" {self.mesh.shape[axis]} devices of {axis!r}: set another"
          " partitioning.Partitioner.model_shards, or rules without this axis."
        )

  def on_mesh(self, function: Callable[Args, Result]) -> Callable[Args, Result]:
    """The function, traced so that it knows the mesh that it is compiled for.

    Models choose kernels by the mesh's devices, and map them over its axes.
    """

    @functools.wraps(function)
    def traced(*args: Args.args, **kwargs: Args.kwargs) -> Result:
      with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
        return function(*args, **kwargs)

    return traced

  def jit(self, function: Callable[..., PyTree]) -> Wrapped:
    """The function, jitted for the mesh; each device gets all of its results."""
    return jax.jit(self.on_mesh(function), out_shardings=self.replicated)

  def put_batch(self, batch: Batch) -> DeviceBatch:
    """Global arrays [B, ...] from this host's part of a batch."""
    return {
      name: jax.make_array_from_process_local_data(self.batch_sharding, x)
      for name, x in batch.items()
    }

  def put_replicated(self, tree: PyTree) -> PyTree:
    """Copies NumPy arrays to every device."""
    return _put(tree, self.replicated)

  def put_split(self, tree: PyTree) -> PyTree:
    """Splits NumPy arrays [B, ...], whole on every host, like a batch."""
    return _put(tree, self.batch_sharding)

  def fetch(self, tree: PyTree) -> PyTree:
    """Gathers global arrays into NumPy arrays on every host."""
    gather = jax.jit(_same, out_shardings=self.replicated)
    return jax.tree.map(np.asarray, gather(tree))


def _same(tree: PyTree) -> PyTree:
  # At module level, so that jit finds its compiled program again.
  return tree


def _is_box(x: PyTree) -> bool:
  return isinstance(x, nn.LogicallyPartitioned)


def _put(tree: PyTree, sharding: NamedSharding) -> PyTree:
  def put(x: Shaped[Array | np.ndarray, "..."]) -> Shaped[Array, "..."]:
    # Unlike `device_put`, this does not make the hosts compare their values.
    local = np.asarray(x)
    return jax.make_array_from_callback(
      local.shape, sharding, lambda index: local[index]
    )

  return jax.tree.map(put, tree)
