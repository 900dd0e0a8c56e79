"""Checkpoints that cannot be saved, and those of other runs."""

import errno
import os
import shutil
import signal
from collections import namedtuple

import jax
import pytest

from raptr_jax.training import checkpoint, checkpoint_writing
from raptr_jax.training.checkpoint import Checkpointer, CheckpointFolder
from raptr_jax.training.checkpoint_writing import SaveError
from raptr_jax.training.loop import train
from tests.toy import (
  ToyDataset,
  make_experiment,
  make_model,
  shared_programs,
)

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module", autouse=True)
def programs():
  with shared_programs():
    yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("finished")
  train(make_experiment(folder))
  return folder


def starting_from(folder, initial, **changes):
  checkpointer = Checkpointer(period=5, initial_checkpoint=str(initial))
  return make_experiment(folder, checkpointer=checkpointer, **changes)


def files_of(folder):
  return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_missing_initial_checkpoint_is_named(tmp_path):
  run = tmp_path / "run"
  with pytest.raises(FileNotFoundError, match="initial_checkpoint = '.*no'"):
    train(starting_from(run, tmp_path / "no"))
  assert not files_of(run)


def test_an_initial_checkpoint_of_another_model_is_named(tmp_path, finished):
  run = tmp_path / "run"
  model = make_model(embed_dim=24)
  with pytest.raises(
    FileExistsError, match=f"initial_checkpoint = '{finished}'.* another model"
  ):
    train(starting_from(run, finished, model=model))
  assert not files_of(run)


def test_a_damaged_initial_checkpoint_is_not_trained_on(tmp_path, finished):
  other = tmp_path / "other"
  shutil.copytree(finished, other)
  for path in (other / "checkpoints").glob("*/progress/*"):
    path.write_text(path.read_text().replace('"step": 1', '"step": 2'))
  run = tmp_path / "run"
  with pytest.raises(OSError, match=f"initial_checkpoint = '{other}'.*damaged"):
    train(starting_from(run, other))
  assert not files_of(run)


def test_without_room_a_run_ends_and_goes_on_when_there_is_some(
  tmp_path, finished, monkeypatch
):
  run = tmp_path / "run"
  usage = iter([Usage(10**12, 0, 10**12), Usage(10**12, 10**12, 1000)])
  with monkeypatch.context() as patch:
    patch.setattr(
      checkpoint_writing.shutil, "disk_usage", lambda folder: next(usage)
    )
    with pytest.raises(
      SaveError, match="step 10 was not saved.*0.0 MB are free"
    ):
      train(make_experiment(run))
  assert (run / "checkpoints" / "5").is_dir()
  train(make_experiment(run))
  metrics = [(folder / "metrics.jsonl") for folder in (run, finished)]
  losses = [
    [line.partition('"grad_norm"')[0] for line in path.read_text().splitlines()]
    for path in metrics
  ]
  assert losses[0] == losses[1]


def no_space(*args):
  raise OSError(errno.ENOSPC, "No space left on device")


def test_a_stop_is_not_told_before_its_checkpoint_is_safe(
  tmp_path, monkeypatch
):
  class Stopping(ToyDataset):
    def batches(self, start):
      for number, batch in enumerate(super().batches(start), start):
        if number == 2:
          os.kill(os.getpid(), signal.SIGTERM)
          # The save of the stop fails in the background.
          monkeypatch.setattr(CheckpointFolder, "_begin", fails_later)
        yield batch

  def fails_later(self, state, record):
    monkeypatch.setattr(self._manager, "wait_until_finished", no_space)

  with pytest.raises(SaveError, match="step 3 was not saved.*No space left"):
    train(make_experiment(tmp_path, train_dataset=Stopping()))


def test_a_failure_of_the_device_is_not_taken_for_one_of_the_disk(
  tmp_path, monkeypatch
):
  def fails(state):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: on the device")

  monkeypatch.setattr(checkpoint, "digests", fails)
  with pytest.raises(jax.errors.JaxRuntimeError, match="on the device"):
    train(make_experiment(tmp_path))


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    (
      'RESOURCE_EXHAUSTED: Failed writing: "a/b": Failed to write 9 bytes to'
      " file 19: No space left on device [os_error_code='28']",
      "No space left on device",
    ),
    ("[Errno 5] Input/output error: 'a'", "[Errno 5] Input/output error: 'a'"),
    ("two\nlines", "two lines"),
  ],
)
def test_the_reason_is_what_the_system_says(text, reason):
  with (
    pytest.raises(SaveError, match=r"x = 'y': .*step 7") as raised,
    checkpoint_writing.saving("x = 'y'", 7),
  ):
    raise ValueError(text)
  assert f"({reason})" in str(raised.value)
