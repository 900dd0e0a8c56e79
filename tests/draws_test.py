import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.contracts import LayerDraw, LayerPath
from raptr_jax.methods import policies
from raptr_jax.methods.draws import DrawTable, as_executed, draw_table
from raptr_jax.methods.schedule import stage_schedule

SCHEDULE = stage_schedule(path_lengths=(2, 3, 4), total_steps=9, num_layers=4)
KEY = jax.random.key(3)


def test_a_table_holds_the_policys_own_draws():
  policy = policies.raptr(schedule=SCHEDULE, scaling="sqrt_gap")
  table = draw_table({"stack": policy}, KEY, 9, "gather")
  drawn = table.by_stack["stack"]
  for step in range(9):
    draw = policy(KEY, jnp.asarray(step))
    np.testing.assert_array_equal(drawn.mask[step], draw.mask)
    np.testing.assert_array_equal(drawn.scale[step], draw.scale)
  kept = drawn.mask.sum(axis=1).tolist()
  assert table.path_lengths.tolist() == kept
  assert table.stack_lengths["stack"].tolist() == kept


def test_the_two_forms_say_the_same():
  mask = np.asarray([True, False, True])
  scale = np.asarray([1.0, 0.0, 2.0], np.float32)
  draws = {"stack": LayerDraw(mask, scale)}
  path = as_executed(draws, "gather")["stack"]
  assert isinstance(path, LayerPath)
  assert path.indices.tolist() == [0, 2]
  assert path.scale.tolist() == [1.0, 2.0]
  assert isinstance(as_executed(draws, "cond")["stack"], LayerDraw)
  assert LayerDraw(~mask, scale).path().indices.tolist() == [1]


@pytest.mark.parametrize("execution", ["cond", "gather"])
def test_the_table_gives_each_step_its_own_draw(execution):
  masks = np.asarray([[True, False], [False, True], [True, True]])
  scales = np.asarray([[1, 0], [0, 2], [3, 4]], np.float32)
  table = DrawTable({"stack": LayerDraw(masks, scales)}, execution)
  for step, kept in enumerate(([0], [1], [0, 1])):
    draw = table.at(step)["stack"]
    if execution == "cond":
      np.testing.assert_array_equal(draw.mask, masks[step])
      np.testing.assert_array_equal(draw.scale, scales[step])
    else:
      assert draw.indices.tolist() == kept
      np.testing.assert_array_equal(draw.scale, scales[step][kept])
