import dataclasses

import jax
import pytest

from raptr_jax.training import fitting
from raptr_jax.training.compiled_program import CompiledStep, Memory
from raptr_jax.training.partitioning import Partitioner
from tests.toy import ToyDataset, make_experiment

PARAMS, GRADIENTS, ACTIVATIONS = 100, 90, 6400


@pytest.fixture
def experiment(tmp_path):
  return make_experiment(
    tmp_path,
    train_dataset=ToyDataset(batch_size=64),
    partitioner=Partitioner(devices=jax.devices()[:4]),
  )


@pytest.fixture
def compiled(monkeypatch):
  """What was compiled; a step needs what a simple formula says."""
  compiled = []

  def compile_step(experiment, draws):
    partitioner = experiment.partitioner
    whole = partitioner.fsdp * partitioner.tensor
    parts = experiment.num_microbatches
    compiled.append((whole > 1, partitioner.tensor, parts))
    memory = Memory(
      params=PARAMS // whole,
      opt_state=0,
      batch=0,
      temporary=GRADIENTS // whole + ACTIVATIONS // 4 // parts,
    )
    return CompiledStep(memory, 0.0, None)

  monkeypatch.setattr(fitting, "compile_step", compile_step)
  return compiled


def search(experiment, capacity):
  step = fitting.compile_step(experiment, {})
  return list(fitting.tries(experiment, {}, step, capacity))


def test_microbatches_are_doubled_until_the_step_fits(experiment, compiled):
  *_, last = search(experiment, 600)  # 100 + 90 + 1600 / 4 is 590.
  assert last.bindings == {"NUM_MICROBATCHES": "4"}
  assert last.step.memory.total == 590
  # Two parts cannot do: 100 + (90 + 1600) / 2 is too much.
  assert [parts for _, _, parts in compiled] == [1, 4]


def test_parameters_are_split_if_no_number_of_parts_can_do(
  experiment, compiled
):
  *_, last = search(experiment, 180)
  assert dict(last.bindings) == {
    "FSDP": "4",
    "NUM_MICROBATCHES": "16",
  }
  assert last.step.memory.total == 25 + 22 + 100
  assert not any(split and parts > 16 for split, _, parts in compiled)


def test_what_can_never_fit_ends(experiment, compiled):
  found = search(experiment, 60)
  assert all(step.step.memory.total > 60 for step in found)
  # Two heads cannot be split over four devices.
  assert {shards for _, shards, _ in compiled} == {1, 2}
  assert len(compiled) < 15


def test_one_device_is_not_split(experiment, compiled):
  one = Partitioner(devices=jax.devices()[:1])
  search(dataclasses.replace(experiment, partitioner=one), 50)
  assert {split for split, _, _ in compiled} == {False}


def test_the_numbers_of_parts_divide_the_batch(experiment, compiled):
  *_, last = search(experiment, 100)
  parts = int(last.bindings["NUM_MICROBATCHES"])
  shards = int(last.bindings.get("TENSOR", 1))
  assert 64 % (4 // shards * parts) == 0


@pytest.fixture
def compiled_remats(monkeypatch):
  """What was compiled; a step needs 10 more bytes for each policy."""
  compiled = []

  def compile_step(experiment, draws):
    remat = fitting.remat_of(experiment)
    compiled.append((remat, experiment.num_microbatches))
    temporary = 100 + 10 * fitting.REMATS.index(remat)
    parts = experiment.num_microbatches
    return CompiledStep(Memory(0, 0, 0, temporary // parts), 0.0, None)

  monkeypatch.setattr(fitting, "compile_step", compile_step)
  return compiled


def test_room_to_spare_keeps_more_while_it_fits(experiment, compiled_remats):
  found = list(fitting.keeping_more(experiment, {}, 115))
  assert [t.bindings for t in found] == [
    {"REMAT": "'attention'"},
    {"REMAT": "'products'"},
  ]
  assert [t.step.memory.total for t in found] == [110, 120]


def test_what_does_not_fit_keeps_least_first(experiment, compiled_remats):
  experiment = fitting.with_remat(experiment, "none")
  *_, last = search(experiment, 60)
  assert last.bindings == {
    "REMAT": "'full'",
    "NUM_MICROBATCHES": "2",
  }
  assert compiled_remats == [("none", 1), ("full", 1), ("full", 2)]
