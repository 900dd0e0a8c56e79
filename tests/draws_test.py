import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.contracts import LayerDraw, LayerPath
from raptr_jax.methods import (
  by_step,
  draws,
  layer_dropping,
  path_buckets,
  policies,
)
from raptr_jax.methods.by_step import ByStep
from raptr_jax.methods.draws import as_executed, draw_table
from raptr_jax.methods.path_buckets import MOST_PROGRAMS
from raptr_jax.methods.schedule import stage_schedule
from tests.toy import ScriptedPolicy

SCHEDULE = stage_schedule(path_lengths=(2, 3, 4), total_steps=9, num_layers=4)
KEY = jax.random.key(3)


@pytest.mark.parametrize("sampler", ["bernoulli", "exact"])
def test_a_table_gives_the_policys_own_draws(sampler):
  policy = policies.raptr(
    schedule=SCHEDULE, scaling="sqrt_gap", sampler=sampler
  )
  table = draw_table({"stack": policy}, KEY, 9, "cond")
  kept = []
  for step in range(9):
    draw, found = policy(KEY, jnp.asarray(step)), table.at(step)["stack"]
    np.testing.assert_array_equal(found.mask, draw.mask)
    np.testing.assert_array_equal(found.scale, draw.scale)
    kept.append(int(draw.mask.sum()))
  assert table.path_lengths.tolist() == kept
  assert table.stack_lengths["stack"].tolist() == kept
  run = [table.layers_run(steps)["stack"] for steps in range(10)]
  assert run == [sum(kept[:steps]) for steps in range(10)]


def test_the_two_forms_say_the_same():
  mask = np.asarray([True, False, True])
  scale = np.asarray([1.0, 0.0, 2.0], np.float32)
  draws = {"stack": LayerDraw(mask, scale)}
  path = as_executed(draws, "gather")["stack"]
  assert isinstance(path, LayerPath)
  assert path.indices.tolist() == [0, 2]
  assert path.scale.tolist() == [1.0, 2.0]
  assert path.used is None
  assert isinstance(as_executed(draws, "cond")["stack"], LayerDraw)
  assert LayerDraw(~mask, scale).path().indices.tolist() == [1]


@pytest.mark.parametrize("execution", ["cond", "gather"])
def test_the_table_gives_each_step_its_own_draw(execution):
  masks = np.asarray([[True, False], [False, True], [True, True]])
  scales = np.asarray([[1, 0], [0, 2], [3, 4]], np.float32)
  policy = ScriptedPolicy(masks, scales)
  table = draw_table({"stack": policy}, KEY, 3, execution)
  for step, kept in enumerate(([0], [1], [0, 1])):
    draw = table.at(step)["stack"]
    if execution == "cond":
      np.testing.assert_array_equal(draw.mask, masks[step])
      np.testing.assert_array_equal(draw.scale, scales[step])
    else:
      assert draw.indices.tolist() == kept
      np.testing.assert_array_equal(draw.scale, scales[step][kept])


PLD = layer_dropping.progressive_layer_dropping(num_layers=4, total_steps=23)


@pytest.mark.parametrize(
  "policy",
  [
    PLD,
    policies.raptr(
      schedule=stage_schedule(
        path_lengths=(2, 3, 4), total_steps=23, num_layers=4
      ),
      sampler="exact",
    ),
  ],
)
def test_pieces_are_parts_of_the_whole(monkeypatch, policy):
  whole = draw_table({"stack": policy}, KEY, 23, "gather")
  for module in (by_step, draws, path_buckets):
    monkeypatch.setattr(module, "PIECE", 5)
  table = draw_table({"stack": policy}, KEY, 23, "gather")
  for step in (22, *range(23)):  # As after a restart, too.
    jax.tree.map(np.testing.assert_array_equal, table.at(step), whole.at(step))
    assert table.program(step) == whole.program(step)
    assert table.layers_run(step) == whole.layers_run(step)
  for start, stop in ((0, 23), (4, 5), (3, 16), (20, 23)):
    jax.tree.map(
      np.testing.assert_array_equal,
      table.drawn.between(start, stop),
      whole.drawn.between(start, stop),
    )


def test_a_function_is_only_asked_about_steps_of_the_run(monkeypatch):
  monkeypatch.setattr(by_step, "PIECE", 4)
  asked = set()

  def square(step):
    jax.debug.callback(lambda n: asked.add(int(n)), step)
    return step**2

  squares = ByStep(square, 6)
  assert squares.between(0, 6).tolist() == [0, 1, 4, 9, 16, 25]
  assert squares.at(5) == 25
  jax.effects_barrier()
  assert asked == set(range(6))
  with pytest.raises(IndexError):
    squares.at(6)


def test_what_a_long_run_keeps_is_small():
  steps, stacks = 40_000, {"encoder": PLD, "decoder": PLD}
  table = draw_table(stacks, KEY, steps, "gather")
  table.at(steps - 1)
  kept = [*table.stack_lengths.values(), table.path_lengths]
  assert sum(x.nbytes for x in kept) <= 3 * steps
  (by_step,) = (x for x in vars(table).values() if isinstance(x, ByStep))
  assert by_step._piece.cache_info().currsize == 1


# Policies of 24 layers, in runs of 4,000 steps.
RUN = {"num_layers": 24, "total_steps": 4000}
STAGES = stage_schedule(path_lengths=(12, 16, 20, 24), **RUN)
DRAWN = {
  "raptr": policies.raptr(schedule=STAGES),
  "exact": policies.raptr(schedule=STAGES, sampler="exact"),
  "constant": policies.constant(num_layers=24, path_length=18),
  "layerdrop": layer_dropping.layerdrop(num_layers=24),
  "pld": layer_dropping.progressive_layer_dropping(**RUN),
  "dont_drop_dropout": layer_dropping.dont_drop_dropout(**RUN),
  "stacked": policies.stacked(schedule=STAGES),
  "full": policies.full(num_layers=24),
}


@functools.cache
def long_table(method, num_stacks):
  stacks = [f"stack{number}" for number in range(num_stacks)]
  return draw_table(dict.fromkeys(stacks, DRAWN[method]), KEY, 4000, "gather")


@pytest.mark.parametrize("num_stacks", [1, 2])
@pytest.mark.parametrize("method", DRAWN)
def test_a_run_has_few_programs_whatever_it_draws(method, num_stacks):
  table = long_table(method, num_stacks)
  lengths = np.stack(list(table.stack_lengths.values()), axis=1)
  distinct = len(np.unique(lengths, axis=0))
  first = table.first_steps(0)
  assert len(first) == min(distinct, MOST_PROGRAMS) <= 8
  assert first[0] == 0
  shapes = {table.program(step): shapes_of(table.at(step)) for step in first}
  for step in range(0, 4000, 7):
    program, draws = table.program(step), table.at(step)
    assert shapes_of(draws) == shapes[program]
    assert shapes_of(draws) == shapes_of(table.example(program))
    expected = table.drawn.at(step)
    for name, path in draws.items():
      kept = expected[name].path()
      used = slice(None) if path.used is None else path.used
      np.testing.assert_array_equal(path.indices[used], kept.indices)
      np.testing.assert_array_equal(path.scale[used], kept.scale)
      if distinct <= MOST_PROGRAMS:
        assert path.used is None


def shapes_of(draws):
  return jax.tree.map(lambda x: (x.shape, x.dtype), draws)


@pytest.mark.parametrize("start", [0, 1, 999, 1000, 2500, 3999, 4000])
def test_a_resumed_run_has_the_same_programs(start):
  table = long_table("raptr", 2)
  again = draw_table(
    dict.fromkeys(table.stacks, DRAWN["raptr"]), KEY, 4000, "gather"
  )
  programs = [again.program(step) for step in range(start, 4000)]
  assert programs == [table.program(step) for step in range(start, 4000)]
  first = again.first_steps(start)
  assert first == sorted(start + programs.index(n) for n in set(programs))
