import jax
import jax.numpy as jnp
import pytest

from raptr_jax.methods.late_expansion import expansion_schedule
from raptr_jax.methods.schedule import Stage, StageSchedule, stage_schedule


def make(**overrides):
  kwargs = dict(path_lengths=(6, 8, 10, 12), total_steps=400, num_layers=12)
  return stage_schedule(**kwargs | overrides)


def test_length_around_every_boundary_and_past_the_end():
  schedule = make()
  length = jax.jit(schedule.path_length)
  assert schedule.boundaries == (100, 200, 300)
  for boundary, before, after in ((100, 6, 8), (200, 8, 10), (300, 10, 12)):
    assert length(boundary - 1) == before
    assert length(boundary) == after
    assert length(boundary + 1) == after
  assert length(0) == 6
  assert length(399) == length(400) == length(10**6) == 12


def test_stage_index_of_a_traced_step_is_that_of_the_step():
  schedule = make()
  steps = jnp.arange(401)
  expected = [min(step // 100, 3) for step in range(401)]
  assert jax.vmap(schedule.stage_index)(steps).tolist() == expected


def test_proportional_stages_last_in_proportion_to_their_number():
  stages = make(stage_steps="proportional", total_steps=1000).stages
  assert [s.num_steps for s in stages] == [100, 200, 300, 400]


@pytest.mark.parametrize("total_steps", range(4, 60))
@pytest.mark.parametrize("stage_steps", ["equal", "proportional"])
def test_stages_always_add_up(total_steps, stage_steps):
  if stage_steps == "proportional" and total_steps < 8:
    pytest.skip("its first stage would be empty")
  schedule = make(total_steps=total_steps, stage_steps=stage_steps)
  assert schedule.total_steps == total_steps


def test_full_model_steps_come_first():
  schedule = make(full_model_steps=40, total_steps=440)
  assert schedule.stages[0] == Stage(12.0, 40)
  assert schedule.boundaries == (40, 140, 240, 340)


def test_explicit_steps():
  schedule = make(stage_steps=(10, 20, 30, 340))
  assert schedule.boundaries == (10, 30, 60)


def test_one_stage_has_no_boundary():
  schedule = StageSchedule(4, (Stage(4.0, 10),))
  assert schedule.boundaries == ()
  assert schedule.stage_index(jnp.asarray(7)) == 0


@pytest.mark.parametrize(
  ("overrides", "message"),
  [
    (dict(path_lengths=(6, 13)), "has 13, expected 1 to num_layers = 12"),
    (dict(path_lengths=(0, 12)), "has 0, expected 1"),
    (dict(path_lengths=()), "empty"),
    (dict(path_lengths=(6, 8)), "full model's 12 layers at the end"),
    (dict(stage_steps=(1, 2, 3)), "expected 4 stages that add up to 400"),
    (dict(stage_steps=(100, 100, 100, 99)), "add up to 400"),
    (dict(stage_steps="linear"), "'linear', expected 'equal'"),
    (dict(total_steps=3), "expected at least one in each"),
    (dict(full_model_steps=400), "expected 0 to total_steps - 1 = 399"),
  ],
)
def test_errors_name_value_and_binding(overrides, message):
  with pytest.raises(ValueError, match=message):
    make(**overrides)


def test_a_schedule_may_end_below_the_full_model_if_told_so():
  schedule = make(path_lengths=(6, 8), ends_with_full_model=False)
  assert schedule.stages[-1].path_length == 8


@pytest.mark.parametrize(
  ("path_lengths", "flop_factor", "exponent"),
  [
    ((6, 8, 10, 12), 4 / 3, 0),  # Equal stages.
    ((6, 8, 10, 12), 1.2, 1),  # Proportional ones.
    ((3, 6, 9, 12), 1.6, 0),
    ((6, 9, 12), 4 / 3, 0),
  ],
)
def test_a_flop_factor_decides_how_long_stages_last(
  path_lengths, flop_factor, exponent
):
  kwargs = dict(path_lengths=path_lengths, total_steps=1200, num_layers=12)
  matched = stage_schedule(**kwargs, flop_factor=flop_factor)
  assert matched.solved_for == {
    "stage exponent": pytest.approx(exponent, abs=1e-9)
  }
  named = stage_schedule(
    **kwargs, stage_steps="proportional" if exponent else "equal"
  )
  assert matched.stages == named.stages


def test_a_start_with_the_full_model_counts_for_the_flop_factor():
  schedule = stage_schedule(
    path_lengths=(6, 8, 10, 12),
    total_steps=10_000,
    num_layers=12,
    full_model_steps=500,
    flop_factor=4 / 3,
  )
  assert schedule.stages[0] == Stage(12.0, 500)
  work = sum(stage.path_length * stage.num_steps for stage in schedule.stages)
  assert work / 10_000 == pytest.approx(9, abs=1e-3)


def test_a_flop_factor_out_of_reach_is_an_error():
  with pytest.raises(ValueError, match=r"FLOP_FACTOR = 3 needs a mean .* of 4"):
    stage_schedule(
      path_lengths=(6, 12), total_steps=100, num_layers=12, flop_factor=3
    )


def test_a_late_expansion():
  schedule = expansion_schedule(total_steps=100, num_layers=12)
  assert schedule.stages == (Stage(1.0, 80), Stage(12.0, 20))
  matched = expansion_schedule(
    total_steps=1200, num_layers=12, initial_layers=0, flop_factor=4 / 3
  )
  assert matched.stages == (Stage(0.0, 300), Stage(12.0, 900))
  assert matched.solved_for == {"expansion step": 300}
  with pytest.raises(ValueError, match="from 1 layers would be at step 0 of"):
    expansion_schedule(total_steps=100, num_layers=12, flop_factor=1.0)
