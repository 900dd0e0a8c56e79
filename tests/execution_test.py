import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax import policies
from raptr_jax.contracts import LayerDraw, LayerPath
from raptr_jax.execution import (
  DrawTable,
  StepPrograms,
  as_executed,
  draw_table,
  to_path,
)
from raptr_jax.schedule import stage_schedule

SCHEDULE = stage_schedule(path_lengths=(2, 3, 4), total_steps=9, num_layers=4)
KEY = jax.random.key(3)


def test_a_table_holds_the_policys_own_draws():
  policy = policies.raptr(schedule=SCHEDULE, scaling="sqrt_gap")
  table = draw_table({"stack": policy}, KEY, 9)
  for step in range(9):
    draw = policy(KEY, jnp.asarray(step))
    np.testing.assert_array_equal(table.mask["stack"][step], draw.mask)
    np.testing.assert_array_equal(table.scale["stack"][step], draw.scale)
  kept = table.mask["stack"].sum(axis=1).tolist()
  assert table.path_lengths.tolist() == kept
  assert table.stack_lengths["stack"].tolist() == kept


def test_the_two_forms_say_the_same():
  mask = np.asarray([True, False, True])
  scale = np.asarray([1.0, 0.0, 2.0], np.float32)
  path = as_executed(mask, scale, "gather")
  assert isinstance(path, LayerPath)
  assert path.indices.tolist() == [0, 2]
  assert path.scale.tolist() == [1.0, 2.0]
  assert isinstance(as_executed(mask, scale, "cond"), LayerDraw)
  assert to_path(~mask, scale).indices.tolist() == [1]


def test_a_long_run_makes_one_draw_for_each_program(monkeypatch):
  mask = np.zeros((10**6, 4), bool)
  mask[:, 0] = mask[700_000:, 1] = True
  table = DrawTable({"stack": mask}, {"stack": mask.astype(np.float32)})
  drawn = []
  draws = DrawTable.draws
  monkeypatch.setattr(
    DrawTable, "draws", lambda *args: drawn.append(args[1]) or draws(*args)
  )
  assert table.path_lengths is table.path_lengths
  step_programs = programs("gather", lambda *args: args[0], draws=table)
  step_programs.program(999_999)
  step_programs.close()
  assert drawn == [0, 700_000]


def programs(execution, step_fn, start=0, draws=None):
  policy = policies.raptr(schedule=SCHEDULE, sampler="exact")
  shape = jax.ShapeDtypeStruct((), jnp.float32)
  return StepPrograms(
    jax.jit(step_fn),
    shape,
    shape,
    draws or draw_table({"stack": policy}, KEY, 9),
    start=start,
    execution=execution,
    draw_sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
  )


@pytest.mark.parametrize(
  ("execution", "start", "compiled"),
  [("gather", 0, [2, 3, 4]), ("gather", 5, [3, 4]), ("gather", 6, [4]),
   ("cond", 0, [4])],
)  # fmt: skip
def test_each_length_is_compiled_once_in_order(execution, start, compiled):
  traced = []

  def step(state, batch, draws):
    traced.append(draws["stack"].scale.shape[0])
    return state + batch

  step_programs = programs(execution, step, start)
  for number in range(start, 9):
    assert step_programs.program(number) is not None
    assert step_programs.ready(number)
  step_programs.close()
  assert traced == compiled


def test_later_programs_are_compiled_while_the_first_runs():
  may_go_on = threading.Event()

  def step(state, batch, draws):
    if draws["stack"].scale.shape[0] > 2:
      may_go_on.wait(30)
    return state

  step_programs = programs("gather", step)
  step_programs.program(0)
  assert not step_programs.ready(3)
  may_go_on.set()
  step_programs.program(3)
  step_programs.close()


def test_an_error_of_the_step_reaches_the_caller():
  def step(state, batch, draws):
    raise ZeroDivisionError

  step_programs = programs("gather", step)
  with pytest.raises(ZeroDivisionError):
    step_programs.program(0)
  step_programs.close()
