"""Programs that a run needs between its steps are compiled before."""

import contextlib

import jax
import pytest

from raptr_jax.methods import policies
from raptr_jax.methods.growth import GrowthPlan, row_moves
from raptr_jax.methods.schedule import stage_schedule
from raptr_jax.training import setup
from raptr_jax.training.ahead import compile_ahead
from raptr_jax.training.digests import digests
from raptr_jax.training.held_out import held_out_evaluator
from raptr_jax.training.plan import make_plan
from tests.toy import LAYERS, make_experiment

COMPILATION = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations():
  """Collects an entry for each program that is compiled, or loaded."""
  found = []

  def listen(event, duration, **kwargs):
    if event == COMPILATION:
      found.append(kwargs)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture
def stacking(tmp_path):
  """Grows from two to four layers before step 6."""
  schedule = stage_schedule(
    path_lengths=(2, 4), total_steps=12, num_layers=LAYERS
  )
  return make_experiment(
    tmp_path,
    policy=policies.stacked(schedule=schedule),
    growth=GrowthPlan(schedule, "last"),
  )


def test_nothing_is_compiled_at_a_boundary(stacking):
  evaluator = held_out_evaluator(stacking)
  abstract = setup.abstract_state(stacking)
  grow = setup.jitted_grow(abstract)
  state = setup.fresh_state(stacking, abstract)
  with compile_ahead(
    stacking,
    make_plan(stacking),
    abstract=abstract,
    evaluator=evaluator,
    grow=grow,
    start=0,
  ) as compiled:
    compiled.program(11)  # That of the last stage: all others come before it.
    with compilations() as found:
      evaluator.full(state.params, stacking.depths(5))
      moves = row_moves(stacking.growths, 6)
      moves = map(stacking.partitioner.put_replicated, moves)
      state = grow(state, *moves)
      evaluator.full(state.params, stacking.depths(6))
      digests(state)  # For its checkpoint.
    assert found == []
    with compilations() as found:  # The listener hears of one that is new.
      evaluator.full(state.params, {"stack": 1})
    assert len(found) == 1
