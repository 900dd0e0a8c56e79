import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from raptr_jax import optim
from raptr_jax.growth import GrowthPlan
from raptr_jax.schedule import stage_schedule

PARAMS = {
  "embed": {"embedding": jnp.ones((3, 2))},
  "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
  "stack": {"layers": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones((4, 2))}},
}
KEPT = jnp.asarray([True, False, True, False])
ALL = jnp.ones(4, bool)


def run(optimizer, grads, kept, steps=1):
  params, state = PARAMS, optimizer.init(PARAMS)
  for _ in range(steps):
    updates, state = optimizer.update(grads, state, params, kept_layers=kept)
    params = optax.apply_updates(params, updates)
  return params, state


def test_weight_decay_spares_biases_and_norms():
  optimizer = optim.adamw(learning_rate=lambda step: 0.1, weight_decay=0.5)
  params, _ = run(optimizer, jax.tree.map(jnp.zeros_like, PARAMS), ALL)
  np.testing.assert_allclose(params["embed"]["embedding"], 0.95, rtol=1e-6)
  np.testing.assert_allclose(
    params["stack"]["layers"]["kernel"], 0.95, rtol=1e-6
  )
  assert (params["stack"]["layers"]["bias"] == 1).all()
  assert (params["norm"]["scale"] == 1).all()
  assert (params["norm"]["bias"] == 1).all()


def test_the_first_step_of_adam_by_hand():
  optimizer = optim.adamw(
    learning_rate=lambda step: 0.1, weight_decay=0.0, clip_norm=None
  )
  params, _ = run(optimizer, jax.tree.map(lambda p: -3.0 * p, PARAMS), ALL)
  for leaf in jax.tree.leaves(params):
    np.testing.assert_allclose(leaf, 1.1, rtol=1e-5)


def test_clipping_is_by_global_norm():
  def moments(clip_norm):
    optimizer = optim.adamw(learning_rate=lambda s: 0.1, clip_norm=clip_norm)
    return run(optimizer, PARAMS, ALL)[1]

  norm = float(optax.tree.norm(PARAMS))
  for clipped, plain in zip(
    jax.tree.leaves(optax.tree.get(moments(0.5), "mu")),
    jax.tree.leaves(optax.tree.get(moments(None), "mu")),
  ):
    np.testing.assert_allclose(clipped, plain * 0.5 / norm, rtol=1e-5)


def test_frozen_layers_keep_parameters_and_moments():
  optimizer = optim.adamw(
    learning_rate=lambda step: 0.1, weight_decay=0.5, freeze_skipped=True
  )
  state = optimizer.init(PARAMS)
  _, state = optimizer.update(PARAMS, state, PARAMS, kept_layers=ALL)
  updates, after = optimizer.update(PARAMS, state, PARAMS, kept_layers=KEPT)
  for new, old in zip(
    (optax.tree.get(after, n) for n in ("mu", "nu")),
    (optax.tree.get(state, n) for n in ("mu", "nu")),
  ):
    new, old = new["stack"]["layers"], old["stack"]["layers"]
    for name in ("kernel", "bias"):
      np.testing.assert_array_equal(new[name][~KEPT], old[name][~KEPT])
      assert (new[name][KEPT] != old[name][KEPT]).all()
  assert (updates["stack"]["layers"]["kernel"][~KEPT] == 0).all()
  assert (updates["stack"]["layers"]["kernel"][KEPT] != 0).all()
  assert (updates["embed"]["embedding"] != 0).all()


def test_by_default_skipped_layers_decay_as_in_plain_adamw():
  optimizer = optim.adamw(learning_rate=lambda step: 0.1, weight_decay=0.5)
  zero = jax.tree.map(jnp.zeros_like, PARAMS)
  params, _ = run(optimizer, zero, KEPT)
  np.testing.assert_allclose(
    params["stack"]["layers"]["kernel"], 0.95, rtol=1e-6
  )


def test_linear_at_its_joints():
  rate = optim.linear(peak=1.0, warmup_steps=9, total_steps=109)
  np.testing.assert_allclose(
    [rate(s) for s in (0, 4, 8, 9, 59, 109, 200)],
    [0.1, 0.5, 0.9, 1.0, 0.5, 0.0, 0.0],
    rtol=1e-6,
  )


def test_constant_at_its_joints():
  rate = optim.constant(peak=2.0, warmup_steps=3)
  np.testing.assert_allclose(
    [rate(s) for s in (0, 2, 3, 4, 10**6)], [0.5, 1.5, 2, 2, 2], rtol=1e-6
  )


def test_constant_then_decay_falls_in_the_last_stage_alone():
  stages = stage_schedule(path_lengths=(2, 4), total_steps=100, num_layers=4)
  rate = optim.constant_then_decay(peak=1.0, warmup_steps=9, schedule=stages)
  np.testing.assert_allclose(
    [rate(s) for s in (0, 9, 49, 50, 75, 100)],
    [0.1, 1.0, 1.0, 1.0, 0.5, 0.0],
    rtol=1e-6,
  )


def test_a_rate_is_warmed_up_again_after_each_growth():
  stages = stage_schedule(path_lengths=(1, 2, 4), total_steps=60, num_layers=4)
  growth = GrowthPlan(stages, "last")
  base = optim.constant(peak=1.0, warmup_steps=0)
  rate = optim.rewarmed(learning_rate=base, growth=growth, warmup_steps=4)
  rates = np.asarray([float(rate(step)) for step in range(60)])
  expected = np.ones(60)
  expected[20:24] = expected[40:44] = [0.2, 0.4, 0.6, 0.8]
  np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_a_rate_stays_as_it_is_without_growth_or_warmup():
  base = optim.constant(peak=1.0, warmup_steps=0)
  stages = stage_schedule(path_lengths=(2, 4), total_steps=60, num_layers=4)
  growth = GrowthPlan(stages, "last")
  for plan, steps in ((None, 4), (growth, 0)):
    rate = optim.rewarmed(learning_rate=base, growth=plan, warmup_steps=steps)
    assert rate is base
  with pytest.raises(ValueError, match="rewarmed.warmup_steps = 30 .*to 29"):
    optim.rewarmed(learning_rate=base, growth=growth, warmup_steps=30)


def test_warmup_stable_decay_at_its_joints():
  rate = optim.warmup_stable_decay(peak=1.0, warmup_steps=9, total_steps=100)
  rates = [float(rate(step)) for step in (0, 8, 9, 79, 80, 90, 100)]
  np.testing.assert_allclose(rates, [0.1, 0.9, 1, 1, 1, 0.5, 0], atol=1e-6)


def test_errors_name_value_and_binding():
  with pytest.raises(ValueError, match=r"linear.warmup_steps = 100, expected"):
    optim.linear(peak=1.0, warmup_steps=100, total_steps=100)
  stages = stage_schedule(path_lengths=(2, 4), total_steps=100, num_layers=4)
  with pytest.raises(ValueError, match="constant_then_decay.warmup_steps = 60"):
    optim.constant_then_decay(peak=1.0, warmup_steps=60, schedule=stages)
