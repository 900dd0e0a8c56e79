"""The same training on every mesh: copies, split copies, split heads."""

import dataclasses
import itertools
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from raptr_jax.methods import policies
from raptr_jax.tasks.objectives.layouts import Pair
from raptr_jax.training import setup
from raptr_jax.training.compiled_steps import abstract_copies
from raptr_jax.training.partitioning import Partitioner
from tests import families
from tests.toy import ToyDataset, make_experiment, make_model

MESHES = {"split copies": (8, 1), "all axes": (2, 2)}  # fsdp, tensor.
BATCH = 16


class Pairs:
  """Random pairs of inputs and targets, in batches for a language model."""

  batch_size = BATCH
  num_examples = unigram_counts = None
  example_kinds = ()

  def __init__(self, model):
    self._model = model

  def open(self):
    pass

  def batch_spec(self):
    batch = next(self.batches(0))
    return {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in batch.items()}

  def batches(self, start):
    for number in itertools.count(start):
      rng = np.random.default_rng(number)
      rows = [
        [Pair(rng.integers(2, 20, 3), rng.integers(2, 20, 3)) for _ in range(2)]
        for _ in range(self.batch_size)
      ]
      yield families.make_batch(self._model, rows)


def make_run(family, partitioner, execution):
  if family == "bert":
    model = make_model(dropout_rate=0.0)
    dataset = ToyDataset(batch_size=BATCH)
  else:
    model = families.make_model(family)
    dataset = Pairs(model)
  return make_experiment(
    "unused",
    model=model,
    policy={
      name: policies.full(num_layers=size)
      for name, size in model.stacks.items()
    },
    train_dataset=dataset,
    eval_dataset=dataset,
    partitioner=partitioner,
    execution=execution,
  )


def losses_on(family, partitioner, execution, steps):
  """The losses of so many steps, each through all layers but one."""
  run = make_run(family, partitioner, execution)
  abstract = setup.abstract_state(run)
  state = setup.fresh_state(run, abstract)
  step = setup.jitted_step(run, abstract)
  losses = []
  for number, batch in zip(range(steps), run.train_dataset.batches(0)):
    draws = families.random_draws(run.model, number, execution)
    state, metrics = step(
      state, partitioner.put_batch(batch), partitioner.put_replicated(draws)
    )
    losses.append(float(metrics["loss"]))
  return losses


@pytest.mark.parametrize(
  ("family", "execution", "meshes"),
  [
    ("bert", "gather", ["split copies", "all axes"]),
    ("decoder", "cond", ["all axes"]),
    ("encoder_decoder", "gather", ["all axes"]),
  ],
)
def test_every_mesh_trains_like_one_device(family, execution, meshes):
  one = Partitioner(devices=jax.devices()[:1])
  expected = losses_on(family, one, execution, steps=4)
  assert len(set(expected)) == 4
  for mesh in meshes:
    fsdp, tensor = MESHES[mesh]
    partitioner = Partitioner(fsdp=fsdp, tensor=tensor)
    found = losses_on(family, partitioner, execution, steps=4)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_no_device_gets_all_rows_of_the_vocabulary(num_microbatches):
  """Nor their gradients: those that travel are of its own rows."""
  run = dataclasses.replace(
    make_run("decoder", Partitioner(fsdp=2, tensor=2), "cond"),
    num_microbatches=num_microbatches,
  )
  abstract = setup.abstract_state(run)
  rows, columns = abstract.params["token_embedding"]["embedding"].shape
  draws = abstract_copies(
    families.random_draws(run.model, 0, "cond"), run.partitioner.replicated
  )
  step = setup.jitted_step(run, abstract)
  compiled = step.lower(abstract, setup.abstract_batch(run), draws).compile()
  travel = [
    line.partition(" = ")[2]
    for line in compiled.as_text().splitlines()
    if "token_embedding" in line
    and re.search(r" (all-|reduce-scatter|collective-permute)", line)
  ]
  assert not [line for line in travel if f"f32[{rows}," in line]
  assert [
    line
    for line in travel
    if line.startswith(f"f32[{rows // 2},{columns // 2}]")
    and " reduce-scatter(" in line
  ]


def test_all_of_a_state_is_split_except_layers():
  run = make_run("bert", Partitioner(fsdp=4, tensor=2), "gather")
  abstract = setup.abstract_state(run)
  qkv = abstract.params["stack"]["layers"]["attention"]["qkv"]["kernel"]
  assert qkv.sharding.spec == PartitionSpec(None, "fsdp", None, "tensor", None)
  moments = [
    (x.shape, x.sharding.spec)
    for x in jax.tree.leaves(abstract.opt_state)
    if x.ndim
  ]
  params = [
    (x.shape, x.sharding.spec) for x in jax.tree.leaves(abstract.params)
  ]
  assert moments == 2 * params
  # A device has an eighth, and what is small whole.
  sizes = [
    (np.prod(x.sharding.shard_shape(x.shape)), x.size)
    for x in jax.tree.leaves(abstract.params)
  ]
  assert sum(part for part, _ in sizes) < 0.2 * sum(all_ for _, all_ in sizes)


def test_copies_are_along_the_axis_data_alone():
  run = make_run("bert", Partitioner(fsdp=8), "gather")
  assert run.partitioner.replica_axes == ()
  copies = dataclasses.replace(run, partitioner=Partitioner(fsdp=4))
  assert copies.partitioner.replica_axes == ("data",)
  assert copies.partitioner.batch_shards == 8
