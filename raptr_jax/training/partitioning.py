"""Places arrays on devices, by the logical names of their axes.

Devices form a mesh with three axes:

  data    copies of the parameters, which share the batch
  fsdp    devices that share the batch and split one copy of the parameters and
          of the optimizer's state (ZeRO-3, arXiv 1910.02054): each gathers a
          layer's parameters when it runs the layer
  tensor  devices that split heads, MLP units and vocabulary (arXiv 1909.08053),
          and have the same examples

Parameters name their axes (`embed`, `heads`, `mlp`, `vocab`, `layers`, ...),
and rules map these names to axes of the mesh. Layers are never split, since a
step runs only some of them. Every shard of a batch runs the same draw.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.stages import Wrapped
from jaxtyping import Array, PyTree, Shaped

from raptr_jax.contracts import Batch, DeviceBatch

Args = ParamSpec("Args")
Result = TypeVar("Result")

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
RULES = (
  ("embed", "fsdp"),
  ("heads", "tensor"),
  ("mlp", "tensor"),
  ("vocab", "tensor"),
)


@dataclasses.dataclass(frozen=True)
class Partitioner:
  """Places states and batches on the devices of all hosts.

  Attributes:
    fsdp: size of the mesh axis `fsdp`.
    tensor: size of the mesh axis `tensor`; `data` has all other devices.
    rules: pairs (logical axis, mesh axis); axes of other names are not split.
    devices: those to use; None for all that JAX finds. Those of `targets.py`
      are described, not present: programs can be compiled for them, and arrays
      cannot be put on them.
  """

  fsdp: int = 1
  tensor: int = 1
  rules: Sequence[tuple[str, str | None]] = RULES
  devices: Sequence[jax.Device] | None = None

  def __post_init__(self) -> None:
    for macro, size in (("FSDP", self.fsdp), ("TENSOR", self.tensor)):
      if size < 1:
        raise ValueError(f"{macro} = {size}, expected at least 1.")
    count = self.num_devices
    if count % (self.fsdp * self.tensor):
      raise ValueError(
        f"FSDP = {self.fsdp} and TENSOR = {self.tensor} make groups of"
        f" {self.fsdp * self.tensor} devices, expected a divisor of the"
        f" {count} devices."
      )
    hosts = self._num_hosts
    if count // self.tensor % hosts:
      raise ValueError(
        f"TENSOR = {self.tensor} spreads one shard of a batch over several of"
        f" the {hosts} hosts, but each host reads its own part of a batch: set"
        f" at most {count // hosts}, and FSDP for the rest."
      )
    if any(name == "layers" and axis for name, axis in self.rules):
      raise ValueError(
        f"partitioning.Partitioner.rules = {self.rules} split the axis"
        " 'layers', but a step runs only some layers: leave it out."
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

  @functools.cached_property
  def mesh(self) -> Mesh:
    """The devices, with the axes `AXES`."""
    devices = jax.devices() if self.devices is None else self.devices
    grid = device_grid(devices, self.fsdp, self.tensor)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))

  @property
  def batch_shards(self) -> int:
    """Number of parts of a batch, each with examples of its own."""
    return self.num_devices // self.tensor

  @property
  def replica_axes(self) -> tuple[str, ...]:
    """The mesh axes along which devices have copies of the parameters."""
    shape, split = self.mesh.shape, {axis for _, axis in self.rules}
    return tuple(
      axis for axis in BATCH_AXES if axis not in split and shape[axis] > 1
    )

  @property
  def replicated(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def batch_sharding(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

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
          f" --gin.{axis.upper()}, or partitioning.Partitioner.rules without"
          " this axis."
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


def device_grid(devices: Sequence[Any], fsdp: int, tensor: int) -> np.ndarray:
  """Devices as [data, fsdp, tensor].

  Those of a TPU slice, or of a host of GPUs, are next to each other, so that
  only the first axes reach across the slower network.

  Args:
    devices: of JAX.
    fsdp: size of the second axis.
    tensor: size of the third axis.
  """
  data = len(devices) // (fsdp * tensor)
  by_host = len({getattr(device, "slice_index", 0) for device in devices}) == 1
  if by_host:
    is_gpu = devices[0].platform == "gpu"
    groups = len({device.process_index for device in devices}) if is_gpu else 1
  else:
    groups = len({device.slice_index for device in devices})
  if groups == 1:
    return mesh_utils.create_device_mesh((data, fsdp, tensor), devices)
  data_groups = math.gcd(data, groups)
  fsdp_groups = groups // data_groups
  return mesh_utils.create_hybrid_device_mesh(
    (data // data_groups, fsdp // fsdp_groups, tensor),
    (data_groups, fsdp_groups, 1),
    devices,
    process_is_granule=by_host,
  )


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
