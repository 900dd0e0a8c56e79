import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.contracts import LayerDraw, LayerPath
from raptr_jax.methods import growth, policies
from raptr_jax.methods.late_expansion import expansion_schedule
from raptr_jax.methods.schedule import Stage, StageSchedule, stage_schedule
from raptr_jax.models.masked_stack import full_path
from raptr_jax.training.state import init_state
from tests.toy import LAYERS, ToyDataset, make_experiment, make_model


def plan(lengths, new_layers, **kwargs):
  stages = tuple(Stage(length, 10) for length in lengths)
  schedule = StageSchedule(lengths[-1], stages)
  return growth.GrowthPlan(schedule, new_layers, **kwargs)


# A model that grows 6-9-12 or 3-6-9-12, by hand.
ROW_MAPS = {
  ("last", (6, 9, 12)): [
    [0, 1, 2, 3, 4, 5, 3, 4, 5, 9, 10, 11],
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 8],
  ],
  ("last", (3, 6, 9, 12)): [
    [0, 1, 2, 0, 1, 2, 6, 7, 8, 9, 10, 11],
    [0, 1, 2, 3, 4, 5, 3, 4, 5, 9, 10, 11],
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 8],
  ],
  # Of two blocks the first is the middle one, of three the second.
  ("middle", (6, 9, 12)): [
    [0, 1, 2, 0, 1, 2, 3, 4, 5, 9, 10, 11],
    [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8],
  ],
  ("middle", (3, 6, 9, 12)): [
    [0, 1, 2, 0, 1, 2, 6, 7, 8, 9, 10, 11],
    [0, 1, 2, 0, 1, 2, 3, 4, 5, 9, 10, 11],
    [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8],
  ],
  ("repeated", (3, 6, 12)): [
    [0, 1, 2, 0, 1, 2, 6, 7, 8, 9, 10, 11],
    [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5],
  ],
  ("repeated", (1, 4)): [[0, 0, 0, 0]],
  ("untrained", (1, 4)): [[0, 1, 2, 3]],
  ("untrained", (0, 4)): [[0, 1, 2, 3]],
}


@pytest.mark.parametrize(("new_layers", "lengths"), ROW_MAPS)
def test_row_maps_by_hand(new_layers, lengths):
  made = plan(lengths, new_layers)
  for stage, expected in enumerate(ROW_MAPS[new_layers, lengths], 1):
    np.testing.assert_array_equal(made.source(10 * stage), expected)
    assert made.source(10 * stage - 1) is made.source(10 * stage + 1) is None
  steps = range(0, 10 * len(lengths), 5)
  assert [made.num_layers(step) for step in steps] == [
    length for length in lengths for _ in range(2)
  ]


def test_of_two_equal_rows_the_upper_one_is_the_copy():
  def copies(source):
    return np.flatnonzero(growth.is_copy(source)).tolist()

  assert copies([0, 1, 2, 3, 4, 5, 3, 4, 5, 9, 10, 11]) == [6, 7, 8]
  assert copies([0, 1, 2, 0, 1, 2, 3, 4, 5, 9, 10, 11]) == [3, 4, 5]
  assert copies([0, 0, 0]) == [1, 2]


@functools.cache
def trained_state():
  """Parameters and moments that differ everywhere."""
  optimizer = make_experiment("unused").optimizer
  init = functools.partial(init_state, model=make_model(), optimizer=optimizer)
  state = nn.unbox(jax.jit(init)(jax.random.key(0)))
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: (
      x + rng.normal(size=x.shape).astype(np.float32)
      if jnp.issubdtype(x.dtype, jnp.floating)
      else x + 7
    ),
    state,
  )


@pytest.mark.parametrize("optimizer_state", growth.OPTIMIZER_STATES)
def test_rows_and_their_optimizer_state_move_together(optimizer_state):
  state = trained_state()
  source = np.asarray([0, 1, 0, 1])
  resets = growth.is_copy(source) & (optimizer_state == "reset")
  params, opt_state = jax.jit(growth.grow)(
    state.params, state.opt_state, {"stack": source}, {"stack": resets}
  )
  leaves = jax.tree_util.tree_leaves_with_path
  old_leaves = leaves({"params": state.params, "opt_state": state.opt_state})
  new_leaves = leaves({"params": params, "opt_state": opt_state})
  stacked = 0
  for (path, old), (_, new) in zip(old_leaves, new_leaves, strict=True):
    if "layers" not in str(path):
      np.testing.assert_array_equal(new, old)
      continue
    stacked += 1
    np.testing.assert_array_equal(new[:2], old[:2])
    reset = optimizer_state == "reset" and "opt_state" in str(path[0])
    np.testing.assert_array_equal(new[2:], 0 * old[:2] if reset else old[:2])
  assert stacked > 20


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, batch, draw):
  return model.module.apply({"params": params}, batch, draw)


@pytest.mark.parametrize(
  ("new_layers", "order"),
  [("last", [0, 1, 1]), ("middle", [0, 0, 1]), ("untrained", [0, 1, 2])],
)
def test_a_grown_model_is_the_plain_model_of_its_copied_layers(
  new_layers, order
):
  """From two to three of four layers, against blocks applied by hand."""
  model = make_model(dropout_rate=0.0)
  batch = next(ToyDataset().batches(0))
  state = trained_state()
  source = [*growth.NEW_LAYERS[new_layers](2, 3), 3]
  params, _ = growth.grow(
    state.params,
    {},
    {"stack": jnp.asarray(source)},
    {"stack": jnp.zeros(LAYERS, bool)},
  )
  # The lowest three layers of the grown model, in both executions.
  mask = jnp.arange(LAYERS) < 3
  path = LayerPath(jnp.arange(3), jnp.ones(3))
  draw = LayerDraw(mask, mask.astype(jnp.float32))
  grown = [logits_of(model, params, batch, form) for form in (path, draw)]
  # A model that never was anything else than these three layers.
  plain = jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      leaf[jnp.asarray(order)] if "layers" in str(path) else leaf
    ),
    state.params,
  )
  three = make_model(dropout_rate=0.0, num_layers=3)
  expected = logits_of(three, plain, batch, full_path(3))
  for logits in grown:
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_errors_name_value_and_binding():
  with pytest.raises(ValueError, match="new_layers = 'x', expected one of"):
    plan((2, 4), "x")
  with pytest.raises(
    ValueError, match="optimizer_state = 'x', expected one of"
  ):
    plan((2, 4), "last", optimizer_state="x")
  with pytest.raises(ValueError, match=r"from 4.5 to 6 .*STACKING_LENGTHS"):
    plan((4.5, 6), "last")
  with pytest.raises(ValueError, match="from 2 to 6 .*no last block of 4"):
    plan((2, 6), "last")
  with pytest.raises(
    ValueError, match="5 layers do not divide into blocks of 3"
  ):
    plan((5, 8), "middle")
  with pytest.raises(ValueError, match="9 layers are not a multiple of 6"):
    plan((6, 9), "repeated")
  with pytest.raises(ValueError, match="cannot grow from 6 to 3"):
    plan((6, 3, 12), "last")


def test_growth_and_policy_share_their_stages(tmp_path):
  schedule = expansion_schedule(total_steps=12, num_layers=LAYERS)
  growing = growth.GrowthPlan(schedule, "repeated")
  with pytest.raises(ValueError, match="use one SCHEDULE"):
    make_experiment(tmp_path, growth=growing)
  policy = policies.stacked(schedule=schedule)
  make_experiment(tmp_path, growth=growing, policy=policy)


def test_a_policy_may_not_train_layers_that_are_not_there_yet(tmp_path):
  schedule = stage_schedule(path_lengths=(2, 4), total_steps=12, num_layers=4)
  growing = growth.GrowthPlan(schedule, "last")
  policy = policies.raptr(schedule=schedule)
  with pytest.raises(ValueError, match=r"In step 0 .*@policies.stacked\(\)"):
    make_experiment(tmp_path, growth=growing, policy=policy)


@pytest.mark.parametrize("rows", [[0, 1], [0, 1, 2, 9]])
def test_a_wrong_row_map_is_told(monkeypatch, rows):
  monkeypatch.setitem(growth.NEW_LAYERS, "mine", lambda old, new: rows)
  with pytest.raises(ValueError, match="'mine' gives .* expected 4 rows, each"):
    plan((2, 4), "mine")
