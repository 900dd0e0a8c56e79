"""Memory of a training process on CPUs."""

import ctypes

import jax

# Of glibc's malloc.h: parameters of mallopt.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
  """Leaves freed memory with the process, for the next step to take.

  XLA asks for the temporary memory of each step anew on a CPU. By default, what
  is large goes back to the kernel after each step, and comes as zeroed pages of
  4 kB: without rematerialisation, a quarter of a step. Here all of it stays in
  one heap, which grows to what the process needed at its peak.

  Nothing happens on other devices, or without glibc.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is None or jax.default_backend() != "cpu":
    return
  mallopt(M_ARENA_MAX, 1)
  mallopt(M_MMAP_MAX, 0)
  mallopt(M_TRIM_THRESHOLD, LARGEST)
