import itertools

import flax.linen as nn
import jax
import numpy as np
import pytest

from raptr_jax.models.masked_stack import full_paths
from raptr_jax.training.held_out import HeldOutEvaluator
from raptr_jax.training.partitioning import Partitioner
from tests.toy import LAYERS, ToyDataset, make_model

MODEL = make_model()
PARAMS = nn.unbox(MODEL.init(jax.random.key(0)))
LOSS_FN = jax.jit(MODEL.loss_fn)
FULL = full_paths(MODEL.stacks)
ENDS = {"stack": np.asarray([True, False, False, True])}


def make_evaluator(**overrides):
  kwargs = dict(
    model=MODEL,
    dataset=ToyDataset(),
    num_batches=3,
    period=10,
    boundaries=(4, 20),
    partitioner=Partitioner(),
  )
  return HeldOutEvaluator(**kwargs | overrides)


def recording_evaluator(monkeypatch):
  """An evaluator that runs nothing, and the list of the paths it is asked."""
  seen = []
  evaluator = make_evaluator()

  def record(params, paths):
    seen.extend(path["stack"].indices.tolist() for path in paths)
    return {}

  monkeypatch.setattr(evaluator, "_mean", record)
  return evaluator, seen


def test_due_every_period_and_around_boundaries():
  evaluator = make_evaluator()
  due = [step for step in range(41) if evaluator.due(step)]
  assert due == [4, 5, 10, 20, 21, 30, 40]


def test_the_full_loss_is_the_mean_over_all_targets():
  total = weight = 0.0
  for batch in itertools.islice(ToyDataset().batches(0), 3):
    metrics = LOSS_FN(PARAMS, batch, FULL, None)[1]
    total, weight = total + metrics["loss"], weight + metrics["weight"]
  row = make_evaluator().full(PARAMS)
  assert row["loss"] == pytest.approx(float(total / weight), rel=1e-5)


def test_a_growing_model_is_its_lowest_layers(monkeypatch):
  evaluator, seen = recording_evaluator(monkeypatch)
  for depths in ({"stack": 0}, {"stack": 2}, None):
    evaluator.full(PARAMS, depths)
  assert seen == [[]] * 3 + [[0, 1]] * 3 + [[0, 1, 2, 3]] * 3


class Uneven(ToyDataset):
  """Some rows have fewer targets than others."""

  def _batch(self, number):
    batch = super()._batch(number)
    batch["target_weights"][::3, 1:] = 0
    return batch


class Mixed(Uneven):
  """The targets of a row are of different kinds."""

  def _batch(self, number):
    batch = super()._batch(number)
    steps = np.arange(batch["targets"].shape[1], dtype=np.int32)
    kinds = (batch["example_kind"] + steps) % len(self.example_kinds)
    return {**batch, "example_kind": kinds}


@pytest.mark.parametrize("kind_of_dataset", [Uneven, Mixed])
def test_losses_of_kinds_are_means_over_their_targets(kind_of_dataset):
  kinds = tuple(f"{n} mod 17" for n in range(17))
  dataset = kind_of_dataset(example_kinds=kinds)
  losses = make_evaluator(dataset=dataset, num_batches=2).by_example_kind(
    PARAMS
  )
  expected = {}
  for number, name in enumerate(kinds):
    loss = weight = 0.0
    for batch in itertools.islice(dataset.batches(0), 2):
      rows = batch["target_weights"] * (batch["example_kind"] == number)
      batch = batch | {"target_weights": rows}
      metrics = LOSS_FN(PARAMS, batch, FULL, None)[1]
      loss, weight = loss + metrics["loss"], weight + metrics["weight"]
    if weight:
      expected[name] = float(loss / weight)
  assert losses == pytest.approx(expected, rel=1e-5)
  assert list(losses) == list(expected)
  assert len(losses) > 1
  assert len(losses) < 17 or kind_of_dataset is Mixed  # Of 16 rows.


def test_one_kind_is_not_told_apart():
  assert make_evaluator().by_example_kind(PARAMS) == {}


def test_evaluation_is_always_on_the_same_batches():
  evaluator = make_evaluator()
  assert evaluator.full(PARAMS) == evaluator.full(PARAMS)


def test_paths_keep_the_fixed_layers_and_differ_between_batches(monkeypatch):
  evaluator, seen = recording_evaluator(monkeypatch)
  for seed in range(4):
    evaluator.by_path_length(PARAMS, {"stack": 3}, ENDS, jax.random.key(seed))
  assert all(len(path) == 3 for path in seen)
  assert all(path[0] == 0 and path[-1] == LAYERS - 1 for path in seen)
  assert len({tuple(path) for path in seen}) == 2


def test_a_path_shorter_than_the_fixed_set_is_any_path():
  every = {"stack": np.ones(LAYERS, bool)}
  row = make_evaluator().by_path_length(
    PARAMS, {"stack": 2}, every, jax.random.key(0)
  )
  assert np.isfinite(row["loss"])


def test_a_path_of_all_layers_is_the_full_model():
  evaluator = make_evaluator()
  row = evaluator.by_path_length(PARAMS, MODEL.stacks, ENDS, jax.random.key(0))
  assert row == evaluator.full(PARAMS)
