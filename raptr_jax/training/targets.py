"""Devices that are described, not present, and what data sheets say of them.

XLA compiles for a device that it only knows by its description: the programs
are real, and their memory, collectives and kernels can be read, but they cannot
run here. A TPU's description comes with libtpu, that of a GPU is `GPUS`.
"""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping

import jax
from jax.experimental import topologies

GIB = 2**30
NAMES = (
  "cpu, h200:N, h100:N or a100:N with N GPUs, or v4:AxBxC, v5p:AxBxC, v5e:AxB"
  " or v6e:AxB with A x B (x C) TPU chips, such as v5e:4x4"
)


@dataclasses.dataclass(frozen=True)
class Chip:
  """An accelerator, by its vendor's data sheet.

  Attributes:
    memory: bytes that a program may use. Of a TPU, those that its compiler
      gives, which are a little fewer than in the data sheet.
    bandwidth: of this memory, in bytes a second.
  """

  memory: int
  bandwidth: float


# By JAX's name of the device kind, like `models.flops.PEAK_FLOPS`.
CHIPS = {
  "TPU v4": Chip(int(30.75 * GIB), 1228e9),
  "TPU v5 lite": Chip(int(15.75 * GIB), 819e9),
  "TPU v5": Chip(int(95.74 * GIB), 2765e9),
  "TPU v6 lite": Chip(int(31.25 * GIB), 1640e9),
  "NVIDIA A100-SXM4-80GB": Chip(80 * 10**9, 2039e9),
  "NVIDIA H100 80GB HBM3": Chip(80 * 10**9, 3350e9),
  "NVIDIA H200": Chip(141 * 10**9, 4800e9),
}


@dataclasses.dataclass(frozen=True)
class Gpu:
  """What XLA asks of an NVIDIA GPU, besides its `Chip`.

  Attributes:
    kind: JAX's name of the device kind.
    capability: CUDA compute capability, major and minor.
    cores: streaming multiprocessors.
    lanes: float32 units of each.
    clock_ghz: at its fastest.
    l2_cache: bytes.
    shared_memory: bytes of a core; a block may have 1,024 fewer.
  """

  kind: str
  capability: tuple[int, int]
  cores: int
  lanes: int
  clock_ghz: float
  l2_cache: int
  shared_memory: int


GPUS = {
  "a100": Gpu(
    kind="NVIDIA A100-SXM4-80GB",
    capability=(8, 0),
    cores=108,
    lanes=64,
    clock_ghz=1.41,
    l2_cache=40 * 2**20,
    shared_memory=164 * 2**10,
  ),
  "h100": Gpu(
    kind="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    cores=132,
    lanes=128,
    clock_ghz=1.98,
    l2_cache=50 * 2**20,
    shared_memory=228 * 2**10,
  ),
  "h200": Gpu(
    kind="NVIDIA H200",
    capability=(9, 0),
    cores=132,
    lanes=128,
    clock_ghz=1.98,
    l2_cache=50 * 2**20,
    shared_memory=228 * 2**10,
  ),
}
GPUS_OF_A_HOST = 8
# The text of XLA's GpuTargetConfigProto. The limits are CUDA's, the same for
# all of `GPUS`; the version of cuDNN lets XLA choose its kernels.
GPU_TEXT = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {cores} fpus_per_core: {lanes} clock_rate_ghz: {clock_ghz}
  device_memory_size: {memory} memory_bandwidth: {bandwidth}
  l2_cache_size: {l2_cache}
  shared_memory_per_core: {shared_memory}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {block_memory}
  threads_per_block_limit: 1024 threads_per_warp: 32
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{kind}"
"""

# Axes of a slice, and libtpu's way to make one device of a chip.
TPUS: Mapping[str, tuple[int, str]] = {
  "v4": (3, "megacore"),
  "v5e": (2, "default"),
  "v5p": (3, "megacore"),
  "v6e": (2, "default"),
}


def stay_on_host() -> None:
  """Keeps JAX off accelerators of this machine; before its first use."""
  jax.config.update("jax_platforms", "cpu")


def described_devices(target: str) -> tuple[jax.Device, ...]:
  """The devices of a target; programs can be compiled for them.

  Args:
    target: see `NAMES`; `cpu` means the CPU of this machine.

  Raises:
    ModuleNotFoundError: if the plugin that compiles for them is not installed.
    ValueError: if there are no such devices.
  """
  kind, _, shape = target.partition(":")
  try:
    if target == "cpu":
      return tuple(jax.devices("cpu"))
    if kind in GPUS and re.fullmatch(r"[1-9]\d*", shape):
      return _gpus(target, GPUS[kind], int(shape))
    if kind in TPUS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
      return _tpus(target, *TPUS[kind])
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f"TARGET = {target!r}: {error}") from error
  raise ValueError(f"TARGET = {target!r}, expected {NAMES}: set --target.")


def compiler_options(device: jax.Device) -> dict[str, str | bool]:
  """Options to compile for a device, besides the default ones."""
  here = {found.platform for found in jax.local_devices()}
  if device.platform == "gpu" and device.platform not in here:
    # XLA chooses among kernels by running them, which takes the GPU.
    return {"xla_gpu_autotune_level": "0"}
  return {}


def _gpus(target: str, gpu: Gpu, count: int) -> tuple[jax.Device, ...]:
  if count > GPUS_OF_A_HOST and count % GPUS_OF_A_HOST:
    raise ValueError(
      f"TARGET = {target!r}, expected up to {GPUS_OF_A_HOST} GPUs, or hosts that"
      f" have {GPUS_OF_A_HOST} each: set --target."
    )
  _require(target, "cuda13", "jax_cuda13_plugin", "jax_cuda12_plugin")
  chip = CHIPS[gpu.kind]
  text = GPU_TEXT.format(
    **dataclasses.asdict(gpu),
    major=gpu.capability[0],
    minor=gpu.capability[1],
    memory=chip.memory,
    bandwidth=int(chip.bandwidth),
    block_memory=gpu.shared_memory - 2**10,
  )
  on_a_host = min(count, GPUS_OF_A_HOST)
  described = topologies.get_topology_desc(
    target,
    "cuda",
    target_config=text,
    topology=f"1x{count // on_a_host}x{on_a_host}",  # Partitions, hosts, GPUs.
  )
  return tuple(described.devices)


def _tpus(
  target: str, num_axes: int, chip_config: str
) -> tuple[jax.Device, ...]:
  axes = [int(size) for size in target.partition(":")[2].split("x")]
  if len(axes) != num_axes:
    raise ValueError(
      f"TARGET = {target!r}, expected {num_axes} axes: set --target to {NAMES}."
    )
  _require(target, "tpu", "libtpu")
  # libtpu asks a cluster for them, or prints that it found none.
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  # It takes no TPU, so it need not be the only process that loads libtpu.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  described = topologies.get_topology_desc(
    target,
    "tpu",
    chip_config_name=chip_config,
    # A host has four chips, but a slice of fewer is one host.
    chips_per_host_bounds=(min(axes[0], 2), min(axes[1], 2), 1),
  )
  return tuple(described.devices)


def _require(target: str, extra: str, *modules: str) -> None:
  """Raises a ModuleNotFoundError if none of the modules is installed."""
  if not any(map(importlib.util.find_spec, modules)):
    raise ModuleNotFoundError(
      f"TARGET = {target!r} needs {modules[0]}, which is not installed: pip"
      f" install 'raptr_jax[{extra}]'"
    )
