"""Spikes of the loss are noticed, and left out."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.methods import policies
from raptr_jax.models.bert import BertMaskedLM
from raptr_jax.reports.run_files import read_metrics
from raptr_jax.training import setup
from raptr_jax.training.checkpoint import Checkpointer, restore_params
from raptr_jax.training.loop import train
from raptr_jax.training.loss_watch import LAG, LossLimits, LossWatch
from tests.toy import (
  LAYERS,
  VOCAB,
  ToyDataset,
  make_experiment,
  make_model,
  shared_programs,
)

SPIKE = 15  # The step whose loss is a hundred times too high.
WATCH = LossWatch(window=5, sigmas=20.0)


def step_metrics(loss, skipped=False):
  values = {"loss": 2.0 * loss, "weight": 2.0, "skipped": skipped}
  return {name: jnp.asarray(value) for name, value in values.items()}


def test_a_limit_by_hand():
  watch = LossWatch(window=4, sigmas=3.0)
  # Mean 5 and standard deviation 2 of the last four.
  assert watch.limit([90.0, 3.0, 7.0, 3.0, 7.0]) == 5 + 3 * 2
  assert watch.limit([3.0, 7.0, 3.0]) == math.inf


@pytest.mark.parametrize("wrong", [{"window": 1}, {"sigmas": 0.0}])
def test_what_cannot_be_watched_is_refused(wrong):
  with pytest.raises(ValueError, match="loss_watch.LossWatch"):
    LossWatch(**wrong)


def test_limits_come_from_the_window_some_steps_before():
  limits = LossLimits(LossWatch(window=3, sigmas=1.0), 0, [])
  for step in range(20):
    # Those of steps 0 to 2 are the first whole window.
    expected = math.inf
    if step >= LAG + 3:
      expected = step - LAG - 2 + math.sqrt(2 / 3)
    assert limits.of(step, 0) == pytest.approx(expected)
    limits.add(step, step_metrics(float(step)))


def test_a_stage_begins_a_window():
  limits = LossLimits(LossWatch(window=3), 0, [])
  for step in range(20):
    limits.add(step, step_metrics(1.0))
  assert limits.of(20, 0) == 1.0
  assert limits.of(20, 9) == 1.0
  assert limits.of(20, 10) == math.inf


def test_steps_left_out_are_not_in_the_window():
  limits = LossLimits(LossWatch(window=3), 0, [])
  for step in range(20):
    limits.add(step, step_metrics(0.0 if step == 10 else 4.0, step == 10))
  assert limits.of(20, 0) == 4.0


@pytest.mark.parametrize("saved_at", [0, 3, 9, 14, 25])
def test_limits_go_on_as_if_nothing_had_happened(saved_at):
  watch = LossWatch(window=4)
  rng = np.random.default_rng(0)
  losses = rng.normal(3.0, 1.0, 40)

  def run(limits, begin, end):
    found = []
    for step in range(begin, end):
      found.append(limits.of(step, 12 if step >= 12 else 0))
      limits.add(step, step_metrics(losses[step], skipped=step % 7 == 3))
    return found

  whole = run(LossLimits(watch, 0, []), 0, 40)
  first = LossLimits(watch, 0, [])
  found = run(first, 0, saved_at)
  second = LossLimits(watch, saved_at, first.losses(saved_at))
  assert found + run(second, saved_at, 40) == whole


class SpikingDataset(ToyDataset):
  def _batch(self, number):
    batch = super()._batch(number)
    if number == SPIKE:
      batch["tokens"][:] = VOCAB - 1
    return batch


@dataclasses.dataclass(frozen=True)
class Spiking(BertMaskedLM):
  """A model that a batch of equal tokens upsets."""

  def loss_fn(self, params, batch, draws, dropout_key):
    loss, metrics = super().loss_fn(params, batch, draws, dropout_key)
    by = jnp.where((batch["tokens"] == VOCAB - 1).all(), 100.0, 1.0)
    return loss * by, metrics | {"loss": metrics["loss"] * by}


def spiking(folder, **changes):
  defaults = dict(
    model=Spiking(make_model().config),
    policy=policies.full(num_layers=LAYERS),
    train_dataset=SpikingDataset(),
    checkpointer=Checkpointer(period=1, keep=30),
    total_steps=20,
    loss_watch=WATCH,
  )
  return make_experiment(folder, **defaults | changes)


def params_of(experiment, step):
  abstract = setup.abstract_state(experiment).params
  params, found = restore_params(experiment.model_dir, abstract, step)
  assert found == step
  return jax.device_get(params)


def same(one, other):
  return all(
    np.array_equal(a, b)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  )


@pytest.fixture(scope="module", autouse=True)
def programs():
  with shared_programs():
    yield


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
  experiment = spiking(tmp_path_factory.mktemp("watched"))
  return experiment, train(experiment)


def test_a_spike_changes_nothing(watched):
  experiment, summary = watched
  before, after = (params_of(experiment, s) for s in (SPIKE, SPIKE + 1))
  assert same(before, after)
  assert not same(params_of(experiment, SPIKE - 1), before)
  assert summary["skipped_steps"] == 1
  entries = read_metrics(experiment.model_dir)
  assert max(entry["loss"] for entry in entries) < 10


def test_without_a_watch_it_is_trained_on(tmp_path):
  experiment = spiking(tmp_path, loss_watch=None)
  assert train(experiment)["skipped_steps"] == 0
  before, after = (params_of(experiment, s) for s in (SPIKE, SPIKE + 1))
  assert not same(before, after)


@pytest.mark.parametrize("dies_at", [6, 16])
def test_a_watched_run_goes_on_in_the_same_bits(tmp_path, watched, dies_at):
  class Dying(SpikingDataset):
    def batches(self, start):
      for number, batch in enumerate(super().batches(start), start):
        if number == dies_at:
          raise InterruptedError
        yield batch

  checkpointer = Checkpointer(period=3)
  with pytest.raises(InterruptedError):
    train(spiking(tmp_path, train_dataset=Dying(), checkpointer=checkpointer))
  experiment = spiking(tmp_path, checkpointer=checkpointer)
  assert train(experiment)["skipped_steps"] == 1
  assert same(params_of(experiment, 20), params_of(watched[0], 20))


def test_a_spike_can_end_the_run(tmp_path):
  watch = dataclasses.replace(WATCH, stop=True)
  checkpointer = Checkpointer(period=7)
  with pytest.raises(FloatingPointError, match=r"was a spike.*stop = False"):
    train(spiking(tmp_path, loss_watch=watch, checkpointer=checkpointer))
  with checkpointer.open(tmp_path) as checkpoints:
    assert checkpoints.latest_step() == 14
