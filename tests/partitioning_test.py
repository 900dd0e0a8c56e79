import dataclasses
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from raptr_jax.contracts import LayerDraw
from raptr_jax.methods.draws import with_slots
from raptr_jax.training import setup
from raptr_jax.training.compiled_steps import abstract_copies
from raptr_jax.training.partitioning import Partitioner, device_grid
from tests.toy import LAYERS, ToyDataset, make_experiment, make_model

MASK = np.asarray([False, True, True, True])
DRAWS = {"stack": LayerDraw(MASK, MASK.astype(np.float32)).path()}


def step_on(tmp_path, *, tensor, draws=DRAWS, **overrides):
  partitioner = Partitioner(tensor=tensor)
  experiment = make_experiment(tmp_path, partitioner=partitioner, **overrides)
  abstract = setup.abstract_state(experiment)
  state = setup.fresh_state(experiment, abstract)
  place = experiment.partitioner
  batch = place.put_batch(next(experiment.train_dataset.batches(0)))
  draws = place.put_replicated(draws)
  step = setup.jitted_step(experiment, abstract)
  return jax.device_get(step(state, batch, draws)), abstract


def test_microbatches_of_every_shard_give_the_gradients_of_the_batch(tmp_path):
  model = make_model(dropout_rate=0.0)
  common = dict(model=model, tensor=2, train_dataset=ToyDataset(batch_size=16))
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
    draws = abstract_copies(DRAWS, experiment.partitioner.replicated)
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
  assert kernel.sharding.spec == PartitionSpec("fsdp", None)


def test_a_batch_is_spread_over_the_data_axis():
  placed = Partitioner(tensor=2).put_batch(next(ToyDataset().batches(0)))
  shards = placed["tokens"].addressable_shards
  assert {shard.data.shape[0] for shard in shards} == {2}
  assert len(shards) == 8


def test_moments_are_placed_like_their_parameters(tmp_path):
  experiment = make_experiment(tmp_path, partitioner=Partitioner(tensor=2))
  abstract = setup.abstract_state(experiment)
  sharded = [
    x.sharding.spec
    for x in jax.tree.leaves(abstract.opt_state)
    if "tensor" in x.sharding.spec
  ]
  in_params = [
    x.sharding.spec
    for x in jax.tree.leaves(abstract.params)
    if "tensor" in x.sharding.spec
  ]
  assert sharded == 2 * in_params
  assert len(in_params) >= LAYERS


def test_a_mesh_that_does_not_divide_the_devices_is_an_error():
  with pytest.raises(ValueError, match=r"TENSOR = 3 make groups of 3 devices"):
    Partitioner(tensor=3)


def test_an_axis_that_does_not_split_evenly_is_an_error(tmp_path):
  experiment = make_experiment(tmp_path, partitioner=Partitioner(tensor=4))
  with pytest.raises(ValueError, match=r"'heads' has size 2, .* 4 devices"):
    setup.abstract_state(experiment)


def test_a_copy_of_the_model_over_several_hosts_is_an_error(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  Partitioner(tensor=2)
  with pytest.raises(ValueError, match=r"TENSOR = 8 spreads one shard"):
    Partitioner(tensor=8)


def test_layers_are_never_split():
  with pytest.raises(ValueError, match=r"split the axis 'layers'"):
    Partitioner(rules=(("layers", "fsdp"),))


@dataclasses.dataclass(frozen=True)
class Described:
  """Stands for one of the devices of several slices or hosts."""

  id: int
  process_index: int
  platform: str
  slice_index: int = 0
  device_kind: str = "described"


@pytest.mark.parametrize(
  ("fsdp", "tensor", "across"),
  [(1, 1, "data"), (2, 2, "data"), (16, 1, "fsdp"), (4, 2, "both")],
)
@pytest.mark.parametrize("platform", ["gpu", "cpu"])
def test_only_the_first_axes_reach_across(platform, fsdp, tensor, across):
  # Four hosts of four GPUs; or four slices of something else.
  devices = [
    Described(i, i // 4, platform, i // 4 if platform == "cpu" else 0)
    for i in range(16)
  ]
  grid = device_grid(devices, fsdp, tensor)
  assert grid.shape == (16 // fsdp // tensor, fsdp, tensor)
  groups = np.vectorize(lambda device: device.process_index)(grid)
  assert (groups == groups[:, :, :1]).all()
  if across == "data":
    assert (groups == groups[:, :1]).all()
  if across == "both":  # Two halves of the hosts have a copy each.
    assert [len(np.unique(copy)) for copy in groups] == [2, 2]


def test_a_batch_that_does_not_divide_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="BATCH_SIZE = 8, expected a multiple"):
    make_experiment(tmp_path, num_microbatches=2)
