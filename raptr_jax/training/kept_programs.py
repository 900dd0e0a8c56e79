"""Compiled programs on disk, where the next start finds them."""

import os

import jax


def keep_programs(folder: str | None) -> None:
  """Lets JAX keep all that this process compiles, in a folder.

  It has to be called before anything is compiled. Where JAX is told of a folder
  by its own variable, JAX_COMPILATION_CACHE_DIR, nothing changes.

  Args:
    folder: created if missing; None keeps nothing.
  """
  if folder is None or jax.config.values["jax_compilation_cache_dir"]:
    return
  jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
  # All of them: a start needs dozens that compile in less than a second.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
