import numpy as np
import pytest

from raptr_jax.methods import policies
from raptr_jax.methods.schedule import stage_schedule
from raptr_jax.training import plan as plans
from tests.toy import LAYERS, make_experiment


def make_plan(tmp_path, **overrides):
  return plans.make_plan(make_experiment(tmp_path, **overrides))


def test_the_stages(tmp_path):
  plan = make_plan(tmp_path)
  assert [(stage.start, stage.steps) for stage in plan.stages] == [
    (0, 4), (4, 4), (8, 4),
  ]  # fmt: skip
  lengths = [stage.path_lengths["stack"] for stage in plan.stages]
  assert lengths == pytest.approx([2, 3, 4])
  # The first and the last layer always run, and the others by chance.
  chances = [stage.chances.get("stack") for stage in plan.stages]
  assert chances == [None, (0.5, 0.5), None]
  assert plan.boundaries == (4, 8)
  assert [plan.stage_index(n) for n in (0, 3, 4, 7, 8, 11)] == [
    0, 0, 1, 1, 2, 2,
  ]  # fmt: skip


def test_factors_by_hand(tmp_path):
  plan = make_plan(tmp_path)
  assert plan.flop_factor_nominal == pytest.approx(4 / 3)
  assert plan.flop_factor_spent == pytest.approx(4 / 3)
  block, other = plan.step_flops.blocks["stack"], plan.step_flops.other
  whole = (4 * block + other) / (3 * block + other)
  assert plan.flop_factor_whole_step == pytest.approx(whole)
  assert plan.dense_flops == pytest.approx(12 * 3 * (4 * block + other))


def test_flops_spent_add_up_over_the_drawn_paths(tmp_path):
  schedule = stage_schedule(
    path_lengths=(2.5, 4), total_steps=12, num_layers=LAYERS
  )
  plan = make_plan(tmp_path, policy=policies.raptr(schedule=schedule))
  lengths = plan.draws.path_lengths.tolist()
  steps = [plan.step_flops.step({"stack": k}) for k in lengths]
  for done in (0, 1, 7, 12):
    assert plan.flops_spent(done) == pytest.approx(sum(steps[:done]))


def test_a_paper_scale_plan_matches_the_published_factor(tmp_path):
  schedule = stage_schedule(
    path_lengths=(6, 8, 10, 12), total_steps=4000, num_layers=12
  )
  policy = policies.raptr(schedule=schedule)
  lengths = np.asarray(
    [policy.keep_probabilities(s).sum() for s in (0, 1000, 2000, 3999)]
  )
  assert 12 / lengths.mean() == pytest.approx(4 / 3, rel=1e-6)


def test_layers_that_always_run_are_those_of_the_whole_run(tmp_path):
  schedule = stage_schedule(
    path_lengths=(2, 4), total_steps=12, num_layers=LAYERS, full_model_steps=3
  )
  plan = make_plan(tmp_path, policy=policies.raptr(schedule=schedule))
  assert plan.always_run["stack"].tolist() == [True, False, False, True]


def test_evaluated_lengths_are_stages_and_quarters(tmp_path):
  expected = [{"stack": length} for length in (2, 3, 4)]
  assert make_plan(tmp_path).evaluated_lengths() == expected
  dense = make_plan(tmp_path, policy=policies.full(num_layers=LAYERS))
  assert dense.evaluated_lengths() == expected


def test_the_rate_of_a_step_is_the_optimizers(tmp_path):
  experiment = make_experiment(tmp_path)
  plan = plans.make_plan(experiment)
  rates = [
    float(experiment.optimizer.learning_rate(step)) for step in range(12)
  ]
  planned = [plan.learning_rates.at(step) for step in range(12)]
  np.testing.assert_allclose(planned, rates, rtol=1e-6)


def test_a_method_for_another_depth_is_an_error(tmp_path):
  with pytest.raises(
    ValueError, match="stack has 4 layers, but the method is for 5"
  ):
    make_experiment(tmp_path, policy=policies.full(num_layers=5))


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("execution", "scan", "EXECUTION = 'scan'"),
    ("eval_period", 0, r"Experiment.eval_period = 0"),
    ("num_eval_batches", 0, r"Experiment.num_eval_batches = 0"),
    ("num_microbatches", 0, r"Experiment.num_microbatches = 0"),
  ],
)
def test_errors_name_value_and_binding(tmp_path, field, value, message):
  with pytest.raises(ValueError, match=message):
    make_experiment(tmp_path, **{field: value})
