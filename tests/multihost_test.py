"""Two processes of two devices: what they read, and that they train like one."""

import dataclasses
import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from raptr_jax.data.prepared import PreparedDataset
from raptr_jax.data.streaming import StreamingDataset
from raptr_jax.tasks.mixture import Mixture
from raptr_jax.tasks.prepared.prepare import prepare
from raptr_jax.tasks.text.sources import TextFolder
from raptr_jax.training import data_places
from raptr_jax.training.loop import train
from tests.small_task import (
  LENGTHS,
  assert_batches_equal,
  make_task,
  take,
  write_corpus,
)
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


READER = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from pathlib import Path
from tests.multihost_test import read_two_batches

read_two_batches(Path(sys.argv[3]))
"""


def run_two(program, folder):
  """Runs a program as two processes of two devices, on a folder."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
  flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
  workers = [
    subprocess.Popen(
      [sys.executable, "-c", program, address, str(number), folder],
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


def make_mixture(folder):
  """Two tasks of one source, prepared in the folder."""
  task = make_task(folder / "corpus", source=TextFolder(str(folder / "corpus")))
  prepare(task=task, feature_lengths=LENGTHS, data_dir=str(folder))
  path = folder / task.name / "vocabulary.model"
  parts = [
    dataclasses.replace(task, name=name, vocabulary_path=str(path))
    for name in ("one", "two")
  ]
  mixture = Mixture(name="both", tasks=parts, rates=(3, 1))
  prepare(task=mixture, feature_lengths=LENGTHS, data_dir=str(folder))
  return mixture


def make_dataset(kind, mixture, folder):
  arguments = {"feature_lengths": LENGTHS, "batch_size": 10, "seed": 3}
  return kind(task=mixture, data_dir=str(folder), **arguments)


def read_two_batches(folder):
  """Writes this process's part of the first two, and where it is then."""
  mixture = pickle.loads((folder / "mixture").read_bytes())
  found = {}
  for kind in (PreparedDataset, StreamingDataset):
    dataset = make_dataset(kind, mixture, folder)
    batches = data_places.begin(dataset, {})
    read = [dict(next(batches)) for _ in range(2)]
    progress = data_places.reached(dataset, batches, 20)
    found[kind.__name__] = read, progress
  name = f"read-{jax.process_index()}"
  (folder / name).write_bytes(pickle.dumps(found))


def test_a_mixture_goes_on_after_two_processes(tmp_path):
  """Prepared, on one: none twice, none skipped. Streamed, on two again."""
  write_corpus(tmp_path / "corpus")
  mixture = make_mixture(tmp_path)
  (tmp_path / "mixture").write_bytes(pickle.dumps(mixture))
  run_two(READER, str(tmp_path))
  found = [
    pickle.loads((tmp_path / f"read-{number}").read_bytes())
    for number in range(2)
  ]
  prepared = make_dataset(PreparedDataset, mixture, tmp_path)
  parts = [read for read, _ in (f["PreparedDataset"] for f in found)]
  joined = [
    {name: np.concatenate([one[name], two[name]]) for name in one}
    for one, two in zip(*parts)
  ]
  progress = found[0]["PreparedDataset"][1]
  assert progress == {"examples": 20}
  rest = data_places.begin(prepared, progress)
  assert_batches_equal([*joined, next(rest)], take(prepared, 3))

  streamed = [f["StreamingDataset"][1] for f in found]
  assert streamed[0] == streamed[1]
  assert [place[0][0] for place in streamed[0]["places"]] == [0, 1]
  for host in range(2):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(jax, "process_count", lambda: 2)
      patch.setattr(jax, "process_index", lambda host=host: host)
      dataset = make_dataset(StreamingDataset, mixture, tmp_path)
      unbroken = take(dataset, 4)
      rest = data_places.begin(dataset, streamed[0])
      read = found[host]["StreamingDataset"][0]
      assert_batches_equal([*read, next(rest), next(rest)], unbroken)


def test_two_processes_train_like_one(tmp_path):
  run_two(PROGRAM, str(tmp_path / "two"))
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
