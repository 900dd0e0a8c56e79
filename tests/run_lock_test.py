"""Two runs never write to one folder."""

import os
import signal
import subprocess
import sys

import pytest

from raptr_jax.training.run_lock import LOCK_FILE, alone_in

HOLD = """
import sys, time
from raptr_jax.training.run_lock import alone_in
with alone_in(sys.argv[1]):
  print("locked", flush=True)
  time.sleep(60)
"""


def test_a_folder_is_locked_until_the_process_that_has_it_is_dead(tmp_path):
  with subprocess.Popen(
    [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE
  ) as holder:
    assert holder.stdout.readline() == b"locked\n"
    with (
      pytest.raises(BlockingIOError, match=f"in use by process {holder.pid}"),
      alone_in(tmp_path),
    ):
      pass
    os.kill(holder.pid, signal.SIGKILL)
  with alone_in(tmp_path):  # What the dead process left is no obstacle.
    assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()
  assert not list(tmp_path.iterdir())
