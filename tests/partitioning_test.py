import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from raptr_jax.contracts import LayerDraw
from raptr_jax.methods.draws import with_slots
from raptr_jax.training import setup
from raptr_jax.training.compiled_steps import abstract_draws
from raptr_jax.training.partitioning import Partitioner
from tests.toy import LAYERS, ToyDataset, make_experiment, make_model

MASK = np.asarray([False, True, True, True])
DRAWS = {"stack": LayerDraw(MASK, MASK.astype(np.float32)).path()}


def step_on(tmp_path, *, model_shards, draws=DRAWS, **overrides):
  partitioner = Partitioner(model_shards=model_shards)
  experiment = make_experiment(tmp_path, partitioner=partitioner, **overrides)
  abstract = setup.abstract_state(experiment)
  state = setup.fresh_state(experiment, abstract)
  place = experiment.partitioner
  batch = place.put_batch(next(experiment.train_dataset.batches(0)))
  draws = place.put_replicated(draws)
  step = setup.jitted_step(experiment, abstract)
  return jax.device_get(step(state, batch, draws)), abstract


def test_data_and_tensor_parallel_steps_agree(tmp_path):
  (state, metrics), _ = step_on(tmp_path, model_shards=1)
  (split_state, split_metrics), abstract = step_on(tmp_path, model_shards=2)
  qkv = abstract.params["stack"]["layers"]["attention"]["qkv"]["kernel"]
  assert qkv.sharding.spec == PartitionSpec(None, None, None, "model", None)
  for name, value in metrics.items():
    np.testing.assert_allclose(split_metrics[name], value, rtol=1e-4)
  for one, two in zip(
    jax.tree.leaves(state.opt_state), jax.tree.leaves(split_state.opt_state)
  ):
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)


def test_microbatches_of_every_shard_give_the_gradients_of_the_batch(tmp_path):
  model = make_model(dropout_rate=0.0)
  common = dict(
    model=model, model_shards=2, train_dataset=ToyDataset(batch_size=16)
  )
  (_, whole), _ = step_on(tmp_path, **common)
  (_, parts), _ = step_on(tmp_path, **common, num_microbatches=2)
  # In a program with room for one layer more.
  shared = {"stack": with_slots(DRAWS["stack"], LAYERS)}
  (_, in_shared), _ = step_on(
    tmp_path, **common, num_microbatches=2, draws=shared
  )
  for name, value in whole.items():
    np.testing.assert_allclose(parts[name], value, rtol=1e-4)
    np.testing.assert_allclose(in_shared[name], value, rtol=1e-4)


def reductions(program: str) -> list[tuple[str, str]]:
  """(computation, shapes of its operands) of each all-reduce of a program."""
  found, computation = [], ""
  for line in program.splitlines():
    if line and not line[0].isspace():
      computation = line.split()[0]
    shapes, reduces, _ = line.partition(" all-reduce(")
    if reduces:
      found.append(
        (computation, re.sub(r"\S+ = |\{[\d,]*\}|/\*.*?\*/", "", shapes))
      )
  return found


def test_gradients_of_microbatches_travel_once(tmp_path):
  programs = {}
  for count in (2, 4):
    experiment = make_experiment(
      tmp_path,
      model=make_model(dropout_rate=0.0),
      train_dataset=ToyDataset(batch_size=32),
      num_microbatches=count,
    )
    abstract = setup.abstract_state(experiment)
    step = setup.jitted_step(experiment, abstract)
    draws = abstract_draws(DRAWS, experiment.partitioner.replicated)
    batch = setup.abstract_batch(experiment)
    compiled = step.lower(abstract, batch, draws).compile()
    programs[count] = reductions(compiled.as_text())
  assert programs[2] == programs[4]
  assert {computation for computation, _ in programs[2]} == {"ENTRY"}
  # Of the four layers, the three of the path travel.
  shapes = "".join(shapes for _, shapes in programs[2])
  assert "[3,16,3,2,8]" in shapes and "[4,16,3,2,8]" not in shapes


def test_a_pooler_can_be_placed(tmp_path):
  experiment = make_experiment(tmp_path, model=make_model(pooler=True))
  kernel = setup.abstract_state(experiment).params["pooler"]["kernel"]
  assert kernel.sharding.spec == PartitionSpec(None, None)


def test_a_batch_is_spread_over_the_data_axis():
  placed = Partitioner(model_shards=2).put_batch(next(ToyDataset().batches(0)))
  shards = placed["tokens"].addressable_shards
  assert {shard.data.shape[0] for shard in shards} == {2}
  assert len(shards) == 8


def test_moments_are_placed_like_their_parameters(tmp_path):
  experiment = make_experiment(
    tmp_path, partitioner=Partitioner(model_shards=2)
  )
  abstract = setup.abstract_state(experiment)
  sharded = [
    x.sharding.spec
    for x in jax.tree.leaves(abstract.opt_state)
    if "model" in x.sharding.spec
  ]
  in_params = [
    x.sharding.spec
    for x in jax.tree.leaves(abstract.params)
    if "model" in x.sharding.spec
  ]
  assert sharded == 2 * in_params
  assert len(in_params) >= LAYERS


def test_a_mesh_that_does_not_divide_the_devices_is_an_error():
  with pytest.raises(ValueError, match=r"Partitioner.model_shards = 3"):
    Partitioner(model_shards=3)


def test_an_axis_that_does_not_split_evenly_is_an_error(tmp_path):
  experiment = make_experiment(
    tmp_path, partitioner=Partitioner(model_shards=4)
  )
  with pytest.raises(ValueError, match=r"'heads' has size 2, .* 4 devices"):
    setup.abstract_state(experiment)


def test_a_copy_of_the_model_over_several_hosts_is_an_error(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  Partitioner(model_shards=2)
  with pytest.raises(ValueError, match=r"model_shards = 8 spreads one copy"):
    Partitioner(model_shards=8)


def test_a_batch_that_does_not_divide_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="BATCH_SIZE = 8, expected a multiple"):
    make_experiment(tmp_path, num_microbatches=2)
