"""Set before jax is imported.

Eight devices, so that sharding is real, and little optimisation: the tests
compile many small programs and run each a few times.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",  # They take most of a compilation.
    "--xla_cpu_parallel_codegen_split_count=1",
  ]
)


import tempfile

import jax
import orbax.checkpoint as ocp

# Saved by all eight devices, a replicated array would be cut into pieces by
# programs of their own.
ocp.type_handlers.register_type_handler(
  jax.Array,
  ocp.type_handlers.ArrayHandler(use_replica_parallel=False),
  override=True,
)
# Programs that tests have in common are compiled once, for all processes of
# a run: the first one makes the folder, and the others inherit its name.
if "PYTEST_XDIST_WORKER" not in os.environ:
  _cache = tempfile.TemporaryDirectory()
  os.environ["RAPTR_JAX_TEST_CACHE"] = _cache.name
jax.config.update(
  "jax_compilation_cache_dir", os.environ["RAPTR_JAX_TEST_CACHE"]
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
