"""Two processes of two devices, with one copy of a model, train like one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from raptr_jax.training.loop import train
from tests.toy import ToyDataset, make_experiment

KINDS = ("even", "odd")
# Three stages of two steps: between processes each step takes its time.
SHORT = {"total_steps": 6, "num_eval_batches": 1}
ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from raptr_jax.training.loop import train
from tests.multihost_test import KINDS, SHORT
from raptr_jax.training.partitioning import Partitioner
from tests.toy import ToyDataset, make_experiment

class Half(ToyDataset):
  def batches(self, start):
    begin = 4 * jax.process_index()
    for batch in super().batches(start):
      yield {name: x[begin:begin + 4] for name, x in batch.items()}

train(make_experiment(
  sys.argv[3],
  train_dataset=Half(),
  eval_dataset=Half(seed=1, example_kinds=KINDS),
  partitioner=Partitioner(fsdp=2, tensor=2),
  **SHORT,
))
"""


def test_two_processes_train_like_one(tmp_path):
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
  flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
  arguments = [sys.executable, "-c", PROGRAM, address]
  workers = [
    subprocess.Popen(
      [*arguments, str(number), str(tmp_path / "two")],
      cwd=ROOT,
      env=os.environ | {"XLA_FLAGS": flags},
    )
    for number in range(2)
  ]
  try:
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
  finally:
    for worker in workers:
      worker.kill()
  eval_dataset = ToyDataset(seed=1, example_kinds=KINDS)
  train(make_experiment(tmp_path / "one", eval_dataset=eval_dataset, **SHORT))
  one, two = (
    json.loads((tmp_path / name / "summary.json").read_text())
    for name in ("one", "two")
  )
  assert two["final_eval_loss"] == pytest.approx(one["final_eval_loss"], 1e-4)
  assert set(one["loss_by_example_kind"]) == set(KINDS)
  assert two["loss_by_example_kind"] == pytest.approx(
    one["loss_by_example_kind"], 1e-4
  )
  lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
  steps = [
    (e["split"], e["step"], e.get("layers")) for e in map(json.loads, lines)
  ]
  assert len(steps) == len(set(steps))
