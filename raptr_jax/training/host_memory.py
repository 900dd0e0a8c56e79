"""Memory of a training process on CPUs."""

import ctypes

import jax

# Of glibc's malloc.h: parameters of mallopt, and their defaults.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
DEFAULTS = {M_ARENA_MAX: 0, M_MMAP_MAX: 65536, M_TRIM_THRESHOLD: 2**17}
# One heap, which takes large blocks too, and is never trimmed.
KEEPING = {M_ARENA_MAX: 1, M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}


def keep_freed_memory() -> None:
  """Leaves freed memory with the process, for the next step to take.

  XLA asks for the temporary memory of each step anew on a CPU. By default, what
  is large goes back to the kernel after each step, and comes as zeroed pages of
  4 kB: without rematerialisation, a fifth of a step. Here all of it stays in one
  heap, which grows to what the process needed at its peak.

  It has to be called before JAX looks for devices, whose threads choose their
  heaps as they begin. Nothing changes on other devices, or without glibc.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is None:
    return
  for parameter, value in KEEPING.items():
    mallopt(parameter, value)
  if jax.default_backend() != "cpu":
    for parameter, value in DEFAULTS.items():
      mallopt(parameter, value)
