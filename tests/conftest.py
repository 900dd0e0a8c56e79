"""What holds for all tests, set up before they import JAX and raptr_jax.

Eight devices, so that sharding is real, and little optimisation: the tests
compile many small programs and run each a few times. Every call checks its
annotations, the shapes of its arrays included, and no array gains axes to
match another one's.
"""

import importlib.metadata
import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
  ]
)
if importlib.metadata.version("jaxlib").startswith("0.10."):
  # Fusions take most of a compilation. Newer versions end at the unknown flag.
  os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# Programs that tests have in common are compiled once, for all processes of
# a run: the first one makes the folder, and the others inherit its name.
if "PYTEST_XDIST_WORKER" not in os.environ:
  _programs = tempfile.TemporaryDirectory()
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import logging
from typing import Protocol

import jax
import jaxtyping
import orbax.checkpoint as ocp
from beartype import BeartypeConf, FrozenDict, beartype

# Modules that work on arrays. Tests of the others replace classes by doubles.
CHECKED = (
  "contracts",
  "methods",
  "models",
  "data",
  "reports",
  "training",
  "inference.beam_search",
  "inference.beams",
  "inference.decoding",
  "inference.generate",
  "inference.hugging_face_beams",
  "theory",
)


def check_types(function):
  """Checks arguments and results of a function against its annotations.

  Not those of constructors: JAX calls those of pytrees with placeholders, such
  as shapes and shardings. Protocols accept every object, since looking for a
  dataset's attributes would open its data.
  """
  if function.__name__ == "__init__":
    return function
  protocols = {
    protocol: object
    for protocol in Protocol.__subclasses__()
    if protocol.__module__.startswith("raptr_jax.")
  }
  conf = BeartypeConf(
    is_pep484_tower=True,  # An int is a float.
    hint_overrides=FrozenDict(protocols),
  )
  return beartype(conf=conf)(function)


jaxtyping.install_import_hook(
  [f"raptr_jax.{module}" for module in CHECKED], "tests.conftest.check_types"
)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Saved by all eight devices, a replicated array would be cut into pieces by
# programs of their own. Orbax warns that its own handler is replaced.
logging.getLogger("absl").setLevel(logging.ERROR)
ocp.type_handlers.register_type_handler(
  jax.Array,
  ocp.type_handlers.ArrayHandler(use_replica_parallel=False),
  override=True,
)
