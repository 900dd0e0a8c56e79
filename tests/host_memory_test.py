import ctypes
import subprocess
import sys

import pytest

# In a process of its own, since the setting stays.
PROGRAM = """
import ctypes, resource
from raptr_jax.training.host_memory import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.memset.argtypes = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
libc.free.argtypes = (ctypes.c_void_p,)

def page_faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  block = libc.malloc(2**27)
  libc.memset(block, 1, 2**27)
  libc.free(block)
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

page_faults()
print(page_faults())
keep_freed_memory()
page_faults()
print(page_faults())
"""


@pytest.mark.skipif(
  not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)
def test_freed_memory_is_taken_again():
  result = subprocess.run(
    [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
  )
  before, after = map(int, result.stdout.split())
  assert before > 2**27 // 2**16  # Pages, of at most 64 kB each.
  assert after < 8
