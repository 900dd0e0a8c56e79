import threading

import jax
import jax.numpy as jnp
import pytest

from raptr_jax.methods import policies
from raptr_jax.methods.draws import DrawTable, draw_table
from raptr_jax.methods.schedule import stage_schedule
from raptr_jax.training.compiled_steps import CompiledSteps
from raptr_jax.training.partitioning import Partitioner

SCHEDULE = stage_schedule(path_lengths=(2, 3, 4), total_steps=9, num_layers=4)
POLICY = policies.raptr(schedule=SCHEDULE, sampler="exact")
KEY = jax.random.key(3)


def compiled_steps(execution, step_fn, start=0, draws=None, others=()):
  shape = jax.ShapeDtypeStruct((), jnp.float32)
  return CompiledSteps(
    jax.jit(step_fn),
    shape,
    {"number": shape},
    draws or draw_table({"stack": POLICY}, KEY, 9, execution),
    start=start,
    partitioner=Partitioner(),
    others=others,
  )


def test_programs_are_compiled_without_draws(monkeypatch):
  table = draw_table({"stack": POLICY}, KEY, 9, "gather")
  monkeypatch.setattr(DrawTable, "at", None)
  with compiled_steps("gather", lambda *args: args[0], draws=table) as steps:
    steps.program(8)


@pytest.mark.parametrize(
  ("execution", "start", "compiled"),
  [("gather", 0, [2, 3, 4]), ("gather", 5, [3, 4]), ("gather", 6, [4]),
   ("cond", 0, [4])],
)  # fmt: skip
def test_each_length_is_compiled_once_in_order(execution, start, compiled):
  traced = []

  def step(state, batch, draws):
    traced.append(draws["stack"].scale.shape[0])
    return state + batch["number"]

  with compiled_steps(execution, step, start) as steps:
    for number in range(start, 9):
      assert steps.program(number) is not None
      assert steps.ready(number)
  assert traced == compiled


def test_other_programs_are_compiled_before_the_step_that_needs_them():
  order = []

  def step(state, batch, draws):
    order.append(draws["stack"].scale.shape[0])
    return state

  def failing():
    order.append("fails")
    raise ZeroDivisionError  # So will the call that needs it.

  others = [
    (step, lambda step=step: order.append(f"before {step}"))
    for step in (7, 3, 6)
  ]
  with compiled_steps("gather", step, others=[*others, (1, failing)]) as steps:
    assert steps.program(6) is not None
  assert order[:6] == [2, "fails", "before 3", 3, "before 6", 4]


def test_later_programs_are_compiled_while_the_first_runs():
  may_go_on = threading.Event()

  def step(state, batch, draws):
    if draws["stack"].scale.shape[0] > 2:
      may_go_on.wait(30)
    return state

  with compiled_steps("gather", step) as steps:
    steps.program(0)
    assert not steps.ready(3)
    may_go_on.set()
    steps.program(3)


def test_an_error_of_the_step_reaches_the_caller():
  def step(state, batch, draws):
    raise ZeroDivisionError

  with (
    compiled_steps("gather", step) as steps,
    pytest.raises(ZeroDivisionError),
  ):
    steps.program(0)
