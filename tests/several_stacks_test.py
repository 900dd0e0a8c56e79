"""A model of two stacks: each has layers, draws and costs of its own."""

import functools
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from raptr_jax.contracts import LayerDraw
from raptr_jax.methods import growth, layer_dropping, policies
from raptr_jax.methods.draws import as_executed, draw_table
from raptr_jax.methods.schedule import stage_schedule
from raptr_jax.training import dry_run, optim, setup
from raptr_jax.training import plan as plans
from raptr_jax.training.checkpoint import Checkpointer
from raptr_jax.training.compiled_steps import CompiledSteps
from raptr_jax.training.loop import train
from raptr_jax.training.partitioning import Partitioner
from raptr_jax.training.state import init_state
from raptr_jax.training.train_step import train_step
from tests.toy import (
  ToyDataset,
  ToyEncoderDecoder,
  make_experiment,
  scripted,
  shared_programs,
)

KEY = jax.random.key(0)
MODEL = ToyEncoderDecoder()
MASKS = {
  "encoder": np.asarray([True, False, True]),
  "decoder": np.asarray([False, True, True, False]),
}


@pytest.fixture(scope="module", autouse=True)
def programs():
  with shared_programs():
    yield


def schedule(lengths, **kwargs):
  return stage_schedule(
    path_lengths=lengths, total_steps=12, num_layers=lengths[-1], **kwargs
  )


def raptr(lengths, **kwargs):
  return policies.raptr(schedule=schedule(lengths), sampler="exact", **kwargs)


# The encoder's stages begin at step 6, the decoder's at 4 and 8.
POLICIES = {"encoder": raptr((2, 3)), "decoder": raptr((2, 3, 4))}


def make_run(model_dir, **overrides):
  kwargs = dict(model=MODEL, policy=POLICIES)
  return make_experiment(model_dir, **kwargs | overrides)


def make_plan(**overrides):
  return plans.make_plan(make_run("unused", **overrides))


def stacking(names=("encoder", "decoder")):
  """The encoder grows 1-2-3 at steps 4 and 8, the decoder 2-4 at 8."""
  stages = {
    "encoder": schedule((1, 2, 3)),
    "decoder": schedule((2, 4), stage_steps=(8, 4)),
  }
  ways = {"encoder": ("last", "reset"), "decoder": ("repeated", "copy")}
  return {
    "policy": {name: policies.stacked(schedule=stages[name]) for name in names},
    "growth": {
      name: growth.GrowthPlan(stages[name], *ways[name]) for name in names
    },
  }


def draws_of(masks, execution):
  """Scales of 1 throughout: it is the mask that decides."""
  draws = {
    name: LayerDraw(mask, np.ones(mask.size, np.float32))
    for name, mask in masks.items()
  }
  return as_executed(draws, execution)


def test_each_stack_has_a_schedule_of_its_own():
  plan = make_plan()
  assert plan.draws.stack_lengths["encoder"].tolist() == [2] * 6 + [3] * 6
  decoder = [2] * 4 + [3] * 4 + [4] * 4
  assert plan.draws.stack_lengths["decoder"].tolist() == decoder
  assert plan.num_layers == 7
  drawn = plan.draws.drawn.between(0, 12)
  kept = [draw.mask.sum(1) for draw in drawn.values()]
  assert len(kept) == 2
  assert plan.draws.path_lengths.tolist() == sum(kept).tolist()
  assert plan.always_run["encoder"].tolist() == [True, False, True]
  assert plan.always_run["decoder"].tolist() == [True, False, False, True]


def test_a_stage_begins_where_one_of_any_stack_does():
  stages = make_plan().stages
  assert [(stage.start, stage.steps) for stage in stages] == [
    (0, 4), (4, 2), (6, 2), (8, 4),
  ]  # fmt: skip
  lengths = [
    tuple(stage.path_lengths[name] for name in MODEL.stacks) for stage in stages
  ]
  assert lengths == [(2, 2), (2, 3), (3, 3), (3, 4)]


def test_layers_count_by_the_costs_of_their_stacks():
  plan = make_plan()
  blocks, other = plan.step_flops.blocks, plan.step_flops.other
  one, two = blocks["encoder"], blocks["decoder"]
  assert one != two
  full, mean = 3 * one + 4 * two, 2.5 * one + 3 * two
  assert plan.flop_factor_nominal == pytest.approx(full / mean)
  assert plan.flop_factor_spent == pytest.approx(full / mean)
  whole = (full + other) / (mean + other)
  assert plan.flop_factor_whole_step == pytest.approx(whole)
  assert plan.dense_flops == pytest.approx(12 * 3 * (full + other))
  spent = [2 * one + 2 * two] * 4 + [2 * one + 3 * two] + [0] * 7
  for steps in (0, 3, 5):
    expected = 3 * (sum(spent[:steps]) + steps * other)
    assert plan.flops_spent(steps) == pytest.approx(expected)


def test_tokens_of_both_sides_are_counted():
  class Paired(ToyDataset):
    def _batch(self, number):
      batch = super()._batch(number)
      return batch | {"encoder_tokens": np.zeros((self.batch_size, 5))}

  assert make_plan(train_dataset=Paired()).batch_positions == 8 * (8 + 5)


def test_one_policy_for_all_stacks_draws_independently():
  policy = layer_dropping.layerdrop(num_layers=4, drop_rate=0.5)
  run = make_run("unused", model=ToyEncoderDecoder(4, 4), policy=policy)
  drawn = draw_table(run.policies, KEY, 4000, "gather").drawn.between(0, 4000)
  mask = {name: draw.mask for name, draw in drawn.items()}
  for layer in range(4):
    both = mask["encoder"][:, layer] & mask["decoder"][:, layer]
    assert both.mean() == pytest.approx(0.25, abs=0.03)
  # The first stack draws what the only one of a model would.
  for step in range(5):
    alone = policy(KEY, jnp.asarray(step)).mask
    np.testing.assert_array_equal(mask["encoder"][step], alone)


def test_draws_do_not_depend_on_the_order_of_a_mapping():
  turned = dict(reversed(POLICIES.items()))
  draws, expected = (
    plan.draws.drawn.between(0, 12)
    for plan in (make_plan(policy=turned), make_plan())
  )
  for name in MODEL.stacks:
    np.testing.assert_array_equal(draws[name].mask, expected[name].mask)


@pytest.mark.parametrize(
  ("execution", "compiled"),
  [("gather", [(1, 2), (2, 1), (2, 2)]), ("cond", [(3, 4)])],
)
def test_each_combination_of_lengths_is_a_program(execution, compiled):
  lengths = {"encoder": [1, 2, 1, 2, 2], "decoder": [2, 1, 2, 2, 1]}
  masks = {
    name: np.arange(size) < np.asarray(lengths[name])[:, None]
    for name, size in MODEL.stacks.items()
  }
  stacks = {name: scripted(mask) for name, mask in masks.items()}
  table = draw_table(stacks, KEY, 5, execution)
  traced = []

  def step(state, batch, draws):
    traced.append(tuple(draw.scale.shape[0] for draw in draws.values()))
    return state, {"number": batch["number"]}

  place = Partitioner()
  number = jax.ShapeDtypeStruct((), jnp.float32, sharding=place.replicated)
  zero = place.put_replicated(np.zeros((), np.float32))
  with CompiledSteps(
    jax.jit(step),
    number,
    {"number": number},
    table,
    start=0,
    partitioner=place,
  ) as steps:
    for index in range(5):
      steps(index, zero, {"number": zero})
  # A jitted function has its arguments sorted by name: the decoder is first.
  assert [tuple(reversed(lengths)) for lengths in traced] == compiled


@functools.cache
def one_step(**optimizer):
  """The state before and after a step of the layers in MASKS."""
  adam = optim.adamw(learning_rate=lambda step: 1e-2, **optimizer)
  init = functools.partial(init_state, model=MODEL, optimizer=adam)
  state = nn.unbox(jax.jit(init)(KEY))
  # Moments and biases that are not zero, so that all of them could change.
  state = jax.tree.map(
    lambda x: x + 0.1 if jnp.issubdtype(x.dtype, jnp.floating) else x, state
  )
  batch = next(ToyDataset().batches(0))

  @jax.jit
  def step(state, batch):
    return train_step(
      state,
      batch,
      draws_of(MASKS, "gather"),
      model=MODEL,
      optimizer=adam,
      dropout_key=KEY,
    )[0]

  return jax.device_get((state, step(state, batch)))


def moved_rows(before, after):
  """For each leaf of a stack: its name, and which rows differ."""
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(before),
    jax.tree.leaves(after),
    strict=True,
  )
  for (path, old), new in pairs:
    names = jax.tree_util.keystr(path)
    if "layers" in names:
      rows = (old != new).reshape(len(old), -1).any(1)
      yield ("encoder" if "encoder" in names else "decoder"), rows


@pytest.mark.parametrize("execution", ["gather", "cond"])
def test_skipped_layers_of_each_stack_have_no_gradient(execution):
  params = nn.unbox(jax.jit(MODEL.init)(KEY))
  batch = next(ToyDataset().batches(0))

  @jax.jit
  def gradient(params, batch, draws):
    loss = lambda *args: MODEL.loss_fn(*args)[0]  # noqa: E731
    return jax.grad(loss)(params, batch, draws, KEY)

  grads = gradient(params, batch, draws_of(MASKS, execution))
  nothing = jax.tree.map(np.zeros_like, grads)
  seen = list(moved_rows(nothing, jax.device_get(grads)))
  assert len(seen) == 8
  for name, rows in seen:
    np.testing.assert_array_equal(rows, MASKS[name])


def test_frozen_layers_are_those_that_their_own_stack_skips():
  seen = list(moved_rows(*one_step(freeze_skipped=True)))
  assert len(seen) == 3 * 8  # Parameters, and two moments of each.
  for name, rows in seen:
    np.testing.assert_array_equal(rows, MASKS[name])


def test_stacks_grow_together_and_alone():
  growths = make_run("unused", **stacking()).growths
  assert growth.row_moves(growths, 3) == ({}, {})
  sources, resets = growth.row_moves(growths, 4)  # The encoder alone.
  assert {name: list(rows) for name, rows in sources.items()} == {
    "encoder": [0, 0, 2],
    "decoder": [0, 1, 2, 3],
  }
  assert resets["encoder"].tolist() == [False, True, False]
  assert not resets["decoder"].any()
  sources, resets = growth.row_moves(growths, 8)
  assert {name: list(rows) for name, rows in sources.items()} == {
    "encoder": [0, 1, 1],
    "decoder": [0, 1, 0, 1],
  }
  assert resets["encoder"].tolist() == [False, False, True]
  assert not resets["decoder"].any()  # Copied with their moments.


@pytest.mark.parametrize("step", [4, 8])
def test_growth_moves_the_rows_of_each_stack_by_its_own_map(step):
  _, state = one_step()
  growths = make_run("unused", **stacking()).growths
  sources, resets = growth.row_moves(growths, step)
  trees = {"params": state.params, "moments": optax.tree.get(state, "mu")}
  grown = jax.jit(growth.grow)(
    trees["params"], trees["moments"], sources, resets
  )
  leaves = jax.tree_util.tree_leaves_with_path(trees)
  moved = jax.tree.leaves(dict(zip(trees, grown)))
  for (path, old), new in zip(leaves, moved, strict=True):
    names = jax.tree_util.keystr(path)
    stack = next((name for name in growths if f"'{name}'" in names), None)
    if stack is None:
      np.testing.assert_array_equal(new, old)
      continue
    expected = old[sources[stack]]
    if "moments" in names:
      expected[resets[stack]] = 0
    np.testing.assert_array_equal(new, expected)
    assert not np.array_equal(old[0], old[1])  # Rows can be told apart.


@pytest.mark.parametrize(
  ("field", "macro"), [("policy", "POLICY"), ("growth", "GROWTH")]
)
def test_a_mapping_for_other_stacks_is_an_error(field, macro):
  wrong = stacking(names=("encoder",))[field]
  message = rf"{macro} is for the stacks \['encoder'\].*\['decoder', 'encoder'"
  with pytest.raises(ValueError, match=message):
    make_run("unused", **stacking() | {field: wrong})


def test_one_method_for_stacks_of_two_depths_is_an_error():
  with pytest.raises(
    ValueError, match="decoder has 4 layers, but the method is for 3"
  ):
    make_run("unused", policy=policies.full(num_layers=3))


def test_solved_numbers_are_named_by_their_stack():
  def solved(policy):
    return make_run("unused", policy=policy).solved_for

  rates = {
    name: layer_dropping.layerdrop(num_layers=size, flop_factor=factor)
    for factor, (name, size) in zip((2.0, 1.25), MODEL.stacks.items())
  }
  assert solved(rates) == pytest.approx(
    {"encoder, drop rate": 0.5, "decoder, drop rate": 0.2}
  )
  assert solved(POLICIES) == {}


def test_evaluated_lengths_are_stages_and_quarters_of_both():
  def evaluated(policy):
    lengths = make_plan(policy=policy).evaluated_lengths()
    return [(found["encoder"], found["decoder"]) for found in lengths]

  assert evaluated(POLICIES) == [(2, 2), (2, 3), (3, 3), (3, 4)]
  # A stage of (3, 2) comes before the three quarters, (2, 3), of as many.
  uneven = {"encoder": raptr((3,)), "decoder": raptr((2, 4))}
  assert evaluated(uneven) == [(2, 2), (3, 2), (3, 4)]


def test_a_dry_run_tells_stacks_apart(capsys):
  dry_run.print_plan(make_run("unused"))
  page = capsys.readouterr().out
  table = [line.split("│")[1:-1] for line in page.splitlines() if "│" in line]
  cells = [[cell.strip() for cell in row] for row in table]
  assert cells[1][:5] == ["2", "4", "2", "1 / 0.5", "2.00 / 3.00"]
  assert "encoder / decoder" in page
  assert "path of 2 + 2 layers " in page
  assert "path of 3 + 4 layers " in page


def entries(run, split):
  text = (Path(run.model_dir) / "metrics.jsonl").read_text()
  times = ("tokens_per_second", "step_seconds", "mfu")
  parsed = [json.loads(line) for line in text.splitlines()]
  return [
    {name: value for name, value in entry.items() if name not in times}
    for entry in parsed
    if entry["split"] == split
  ]


def final_state(run):
  with run.checkpointer.open(run.model_dir) as checkpoints:
    return jax.device_get(checkpoints.restore(setup.abstract_state(run))[0])


class Dying(ToyDataset):
  """Ends before the data of step 7."""

  def batches(self, start):
    for number, batch in enumerate(super().batches(start), start):
      if number == 7:
        raise InterruptedError
      yield batch


def test_a_run_accounts_for_both_stacks(tmp_path):
  kinds = ToyDataset(seed=1, example_kinds=("even", "odd"))
  run = make_run(tmp_path, eval_dataset=kinds, execution="cond")
  summary = train(run)
  assert summary["num_layers"] == 7
  assert summary["boundaries"] == [4, 6, 8]
  assert summary["stage_path_lengths"] == [4, 5, 6, 7]
  low, high = sorted(summary["loss_by_example_kind"].values())
  assert low < summary["final_eval_loss"] < high
  last = [e["layers"] for e in entries(run, "eval") if e["step"] == 12]
  assert last == ["full", 4, 5, 6, 7]


# Checkpoints are at 4 and 8: the second process runs steps 4 to 7 again.
def test_growing_stacks_go_on_in_the_same_bits(tmp_path):
  def make(name, dataset):
    return make_run(
      tmp_path / name,
      checkpointer=Checkpointer(period=4),
      train_dataset=dataset,
      num_eval_batches=1,
      **stacking(),
    )

  unbroken, broken = (
    make(name, ToyDataset()) for name in ("unbroken", "broken")
  )
  train(unbroken)
  with pytest.raises(InterruptedError):
    train(make("broken", Dying()))
  train(broken)
  jax.tree.map(
    np.testing.assert_array_equal, final_state(broken), final_state(unbroken)
  )
  for split in ("train", "eval"):
    assert entries(broken, split) == entries(unbroken, split)
  evaluated = [(e["step"], e["layers"]) for e in entries(broken, "eval")]
  grown = [step for step, layers in evaluated if layers == "grown"]
  assert grown == [4, 8]
