"""Where and with what a result was made, as every table states."""

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "flax", "optax", "numpy")


def provenance() -> dict[str, Any]:
  """Date (UTC), hardware, and versions of Python and of `PACKAGES`."""
  return {
    "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    "hardware": _hardware(),
    "versions": {
      "python": platform.python_version(),
      **{name: metadata.version(name) for name in PACKAGES},
    },
  }


def _hardware() -> str:
  """Such as "1 x NVIDIA H200" or "2 CPU cores (Intel Xeon)"."""
  devices = jax.devices()
  if devices[0].platform != "cpu":
    return f"{len(devices)} x {devices[0].device_kind}"
  return f"{os.cpu_count()} CPU cores ({_cpu_model()})"


def _cpu_model() -> str:
  """The processor's name in Linux, else the machine type."""
  info = Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  names = [line for line in lines if line.startswith("model name")]
  return names[0].split(":")[1].strip() if names else platform.machine()
