"""Whether a run can fit at all, before anything of it is compiled or written."""

import os

import jax

from raptr_jax.training import setup
from raptr_jax.training.compiled_program import bytes_on_a_device
from raptr_jax.training.experiment import Experiment


def check_memory(experiment: Experiment) -> None:
  """Compares what a device has to hold throughout with its memory.

  The memory that a step takes besides is known only once it is compiled.

  Raises:
    MemoryError: the state and a batch are larger than the memory.
  """
  state = setup.abstract_state(experiment)
  parts = {
    "the parameters": state.params,
    "the optimizer's state": state.opt_state,
    "a batch": setup.abstract_batch(experiment),
  }
  sizes = {name: bytes_on_a_device(part) for name, part in parts.items()}
  device = jax.local_devices()[0]
  capacity = _capacity(device)
  if capacity is not None and sum(sizes.values()) > capacity:
    needs = ", ".join(f"{_shown(size)} {name}" for name, size in sizes.items())
    raise MemoryError(
      f"{device.device_kind} has {_shown(capacity)}, but a device needs {needs}"
    )


def _capacity(device: jax.Device) -> int | None:
  """Bytes that a device has; None if it does not say."""
  if device.platform == "cpu":  # All such devices share the machine's memory.
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return memory // jax.local_device_count()
  limit: int | None = (device.memory_stats() or {}).get("bytes_limit")
  return limit


def _shown(size: int) -> str:
  return f"{size / 1e9:,.1f} GB"
