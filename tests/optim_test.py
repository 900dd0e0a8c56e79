import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from raptr_jax.methods.growth import GrowthPlan
from raptr_jax.methods.layer_rows import in_layer_stack
from raptr_jax.methods.schedule import stage_schedule
from raptr_jax.training import learning_rates, optim
from raptr_jax.training.partitioning import Partitioner

PARAMS = {
  "embed": {"embedding": np.ones((3, 2), np.float32)},
  "norm": {"scale": np.ones(2, np.float32), "bias": np.ones(2, np.float32)},
  "stack": {
    "layers": {
      "kernel": np.ones((4, 2), np.float32),
      "bias": np.ones((4, 2), np.float32),
    }
  },
}
MASK = np.asarray([True, False, True, False])
KEPT = {"stack": MASK}
ALL = {"stack": np.ones(4, bool)}


def run(optimizer, grads, kept, steps=1):
  params, state = PARAMS, optimizer.init(PARAMS)
  update = jax.jit(optimizer.update)
  for _ in range(steps):
    updates, state = update(grads, state, params, kept_layers=kept)
    params = optax.apply_updates(params, updates)
  return params, state


@pytest.mark.parametrize("make", [optim.adamw, optim.adafactor])
def test_weight_decay_spares_biases_and_norms(make):
  optimizer = make(learning_rate=lambda step: 0.1, weight_decay=0.5)
  params, _ = run(optimizer, jax.tree.map(np.zeros_like, PARAMS), ALL)
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


def test_the_first_step_of_adafactor_by_hand():
  def moved(**kwargs):
    optimizer = optim.adafactor(learning_rate=lambda step: 0.1, **kwargs)
    params = jax.tree.map(lambda p: 2.0 * p, PARAMS)
    grads = jax.tree.map(lambda p: -3.0 * p, PARAMS)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    return jax.tree.leaves(update(grads, state, params, kept_layers=ALL)[0])

  for kwargs, expected in (
    ({}, 0.2),
    ({"multiply_by_parameter_scale": False}, 0.1),
    ({"clipping_threshold": 0.5}, 0.1),
    ({"momentum": 0.9}, 0.02),
  ):
    for leaf in moved(**kwargs):
      np.testing.assert_allclose(leaf, expected, rtol=1e-5)


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
  state, update = optimizer.init(PARAMS), jax.jit(optimizer.update)
  _, state = update(PARAMS, state, PARAMS, kept_layers=ALL)
  updates, after = update(PARAMS, state, PARAMS, kept_layers=KEPT)
  for new, old in zip(
    (optax.tree.get(after, n) for n in ("mu", "nu")),
    (optax.tree.get(state, n) for n in ("mu", "nu")),
  ):
    new, old = new["stack"]["layers"], old["stack"]["layers"]
    for name in ("kernel", "bias"):
      np.testing.assert_array_equal(new[name][~MASK], old[name][~MASK])
      assert (new[name][MASK] != old[name][MASK]).all()
  assert (updates["stack"]["layers"]["kernel"][~MASK] == 0).all()
  assert (updates["stack"]["layers"]["kernel"][MASK] != 0).all()
  assert (updates["embed"]["embedding"] != 0).all()


def test_by_default_skipped_layers_decay_as_in_plain_adamw():
  optimizer = optim.adamw(learning_rate=lambda step: 0.1, weight_decay=0.5)
  zero = jax.tree.map(np.zeros_like, PARAMS)
  params, _ = run(optimizer, zero, KEPT)
  np.testing.assert_allclose(
    params["stack"]["layers"]["kernel"], 0.95, rtol=1e-6
  )


def test_frozen_layers_are_those_of_their_own_stack():
  layers = {"layers": {"kernel": np.ones((2, 3), np.float32)}}
  params = {"encoder": layers, "decoder": layers}
  kept = {"encoder": np.array([True, False]), "decoder": np.ones(2, bool)}
  optimizer = optim.adamw(learning_rate=lambda step: 0.1, freeze_skipped=True)
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  updates, _ = update(params, state, params, kept_layers=kept)
  for name, mask in kept.items():
    moved = (updates[name]["layers"]["kernel"] != 0).all(1)
    np.testing.assert_array_equal(moved, mask)


SHAPES = {
  "embed": {"embedding": (16, 8)},
  "stack": {
    "layers": {"qkv": {"kernel": (4, 8, 3, 2, 4), "bias": (4, 3, 2, 4)}}
  },
}


def drawn(seed):
  """A tree of `SHAPES`, each leaf and each layer at a scale of its own."""

  def draw(path, shape):
    rng = np.random.default_rng([seed, len(shape), shape[-1]])
    scale = 1.0
    if in_layer_stack(path):
      scale = 10.0 ** np.arange(4).reshape(-1, *[1] * (len(shape) - 1))
    return (scale * rng.normal(size=shape)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(
    draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple)
  )


def adafactor(**kwargs):
  rate = learning_rates.inverse_square_root(peak=0.1, warmup_steps=2)
  return rate, optim.adafactor(
    learning_rate=rate, min_dim_size_to_factor=4, **kwargs
  )


def adafactor_updates(grads_of_steps, **kwargs):
  """Updates of each step, and the last state; parameters stay."""
  _, optimizer = adafactor(**kwargs)
  params = drawn(0)
  state = jax.jit(optimizer.init)(params)
  step = jax.jit(optimizer.update)
  updates = []
  for grads in grads_of_steps:
    update, state = step(grads, state, params, kept_layers=KEPT)
    updates.append(jax.device_get(update))
  return updates, jax.device_get(state)


def without_layers(grads, mask):
  """The gradients of a step that skips all layers but those of the mask."""

  def zero(path, grad):
    rows = mask.reshape(-1, *[1] * (grad.ndim - 1))
    return rows * grad if in_layer_stack(path) else grad

  return jax.tree_util.tree_map_with_path(zero, grads)


def separate(tree):
  """A matrix of its own for each layer and each parameter."""
  qkv = tree["stack"]["layers"]["qkv"]
  return {"embedding": tree["embed"]["embedding"]} | {
    f"{name}_{layer}": qkv[name][layer].reshape(rows, -1)
    for name, rows in (("kernel", 8), ("bias", 3))
    for layer in range(4)
  }


def test_adafactor_takes_each_layer_for_a_parameter_of_its_own():
  steps = [drawn(seed) for seed in (1, 2, 3)]
  steps[1] = without_layers(steps[1], MASK)
  rate, _ = adafactor()
  reference = optax.adafactor(rate, min_dim_size_to_factor=4)
  params = separate(drawn(0))
  state = jax.jit(reference.init)(params)
  update = jax.jit(reference.update)
  for grads, ours in zip(steps, adafactor_updates(steps)[0]):
    expected, state = update(separate(grads), state, params)
    for name, value in separate(ours).items():
      error = np.abs(value - expected[name]).max()
      assert error <= 1e-6 * np.abs(expected[name]).max(), name


def test_a_skipped_layer_leaves_the_other_layers_to_themselves():
  steps = [drawn(seed) for seed in (1, 2)]
  skipping = [without_layers(grads, MASK) for grads in steps]
  (_, all_ran), _ = adafactor_updates(steps)
  (_, skipped), _ = adafactor_updates(skipping)
  for one, two in zip(
    jax.tree.leaves(all_ran["stack"]), jax.tree.leaves(skipped["stack"])
  ):
    np.testing.assert_array_equal(one[MASK], two[MASK])
    assert (two[~MASK] == 0).all()


def test_adafactor_keeps_rows_and_columns_of_matrices():
  _, state = adafactor_updates([drawn(1)])
  by_path = jax.tree_util.tree_leaves_with_path(state)
  in_stacks = [leaf for path, leaf in by_path if in_layer_stack(path)]
  assert {leaf.shape[0] for leaf in in_stacks} == {4}
  kernel = [leaf.shape for path, leaf in by_path if "kernel" in str(path)]
  assert {(4, 8), (4, 24)} < set(kernel)
  assert sum(leaf.size for leaf in in_stacks) < 4 * (8 + 24 + 24 + 10)


def test_frozen_layers_keep_the_state_of_adafactor():
  _, optimizer = adafactor(freeze_skipped=True, momentum=0.9)
  params, step = drawn(0), jax.jit(optimizer.update)
  state = jax.jit(optimizer.init)(params)
  _, before = step(drawn(1), state, params, kept_layers=ALL)
  update, after = step(drawn(2), before, params, kept_layers=KEPT)
  assert (update["stack"]["layers"]["qkv"]["kernel"][~MASK] == 0).all()
  changed = 0
  for (path, new), old in zip(
    jax.tree_util.tree_leaves_with_path(jax.device_get(after)),
    jax.tree.leaves(jax.device_get(before)),
  ):
    if in_layer_stack(path):
      np.testing.assert_array_equal(new[~MASK], old[~MASK])
      changed += (new[MASK] != old[MASK]).all()
  # Kernel and bias: step count and momentum of each, rows and columns of one,
  # the whole second moment of the other.
  assert changed == 7


def test_adafactor_with_its_parameters_over_devices():
  _, optimizer = adafactor(momentum=0.9)
  names = {
    "embed": {"embedding": ("vocab", "embed")},
    "stack": {
      "layers": {
        "qkv": {
          "kernel": ("layers", "embed", "qkv", "heads", "kv"),
          "bias": ("layers", "qkv", "heads", "kv"),
        }
      }
    },
  }

  def init():
    params = jax.tree.map(nn.LogicallyPartitioned, drawn(0), names)
    return params, optimizer.init(params)

  def step(params, state, grads):
    updates, state = optimizer.update(grads, state, params, kept_layers=ALL)
    return optax.apply_updates(params, updates), state

  def trained(tensor):
    place = Partitioner(tensor=tensor)
    sharding = place.state_sharding(jax.eval_shape(init))
    state = jax.jit(lambda: nn.unbox(init()), out_shardings=sharding)()
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=sharding)
    return jitted(*state, drawn(1)), sharding

  whole, _ = trained(1)
  split, sharding = trained(2)
  specs = [x.spec for x in jax.tree.leaves(sharding)]
  # Three parameters and their momentum; what is factored is everywhere.
  assert sum("tensor" in spec for spec in specs) == 6
  for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(split)):
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_linear_at_its_joints():
  rate = learning_rates.linear(peak=1.0, warmup_steps=9, total_steps=109)
  np.testing.assert_allclose(
    [rate(s) for s in (0, 4, 8, 9, 59, 109, 200)],
    [0.1, 0.5, 0.9, 1.0, 0.5, 0.0, 0.0],
    rtol=1e-6,
  )


def test_constant_at_its_joints():
  rate = learning_rates.constant(peak=2.0, warmup_steps=3)
  np.testing.assert_allclose(
    [rate(s) for s in (0, 2, 3, 4, 10**6)], [0.5, 1.5, 2, 2, 2], rtol=1e-6
  )


def test_constant_then_decay_falls_in_the_last_stage_alone():
  stages = stage_schedule(path_lengths=(2, 4), total_steps=100, num_layers=4)
  rate = learning_rates.constant_then_decay(
    peak=1.0, warmup_steps=9, schedule=stages
  )
  np.testing.assert_allclose(
    [rate(s) for s in (0, 9, 49, 50, 75, 100)],
    [0.1, 1.0, 1.0, 1.0, 0.5, 0.0],
    rtol=1e-6,
  )


def test_a_rate_is_warmed_up_again_after_each_growth():
  stages = stage_schedule(path_lengths=(1, 2, 4), total_steps=60, num_layers=4)
  growth = GrowthPlan(stages, "last")
  base = learning_rates.constant(peak=1.0, warmup_steps=0)
  rate = learning_rates.rewarmed(
    learning_rate=base, growth=growth, warmup_steps=4
  )
  rates = np.asarray([float(rate(step)) for step in range(60)])
  expected = np.ones(60)
  expected[20:24] = expected[40:44] = [0.2, 0.4, 0.6, 0.8]
  np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_a_rate_stays_as_it_is_without_growth_or_warmup():
  base = learning_rates.constant(peak=1.0, warmup_steps=0)
  stages = stage_schedule(path_lengths=(2, 4), total_steps=60, num_layers=4)
  growth = GrowthPlan(stages, "last")
  for plan, steps in ((None, 4), (growth, 0)):
    rate = learning_rates.rewarmed(
      learning_rate=base, growth=plan, warmup_steps=steps
    )
    assert rate is base
  with pytest.raises(ValueError, match="rewarmed.warmup_steps = 30 .*to 29"):
    learning_rates.rewarmed(learning_rate=base, growth=growth, warmup_steps=30)


def test_warmup_stable_decay_at_its_joints():
  rate = learning_rates.warmup_stable_decay(
    peak=1.0, warmup_steps=9, total_steps=100
  )
  rates = [float(rate(step)) for step in (0, 8, 9, 79, 80, 90, 100)]
  np.testing.assert_allclose(rates, [0.1, 0.9, 1, 1, 1, 0.5, 0], atol=1e-6)


def test_cosine_at_its_joints():
  rate = learning_rates.cosine(peak=1.0, warmup_steps=9, total_steps=109)
  rates = [float(rate(step)) for step in (0, 8, 9, 34, 59, 109, 200)]
  quarter = 0.5 + 0.5**1.5
  np.testing.assert_allclose(
    rates, [0.1, 0.9, 1, quarter, 0.5, 0, 0], atol=1e-6
  )
  rate = learning_rates.cosine(
    peak=2.0, warmup_steps=0, total_steps=10, final_share=0.1
  )
  np.testing.assert_allclose([rate(0), rate(10), rate(99)], [2, 0.2, 0.2])


def test_inverse_square_root_at_its_joints():
  rate = learning_rates.inverse_square_root(peak=2.0, warmup_steps=9)
  rates = [float(rate(step)) for step in (0, 4, 8, 9, 39, 999)]
  np.testing.assert_allclose(rates, [0.2, 1, 1.8, 2, 1, 0.2], rtol=1e-6)
  unwarmed = learning_rates.inverse_square_root(peak=1.0, warmup_steps=0)
  np.testing.assert_allclose([unwarmed(0), unwarmed(3)], [1, 0.5], rtol=1e-6)


def test_errors_name_value_and_binding():
  with pytest.raises(ValueError, match=r"linear.warmup_steps = 100, expected"):
    learning_rates.linear(peak=1.0, warmup_steps=100, total_steps=100)
  with pytest.raises(ValueError, match=r"cosine.warmup_steps = 9, .* ends at"):
    learning_rates.cosine(peak=1.0, warmup_steps=9, total_steps=9)
  stages = stage_schedule(path_lengths=(2, 4), total_steps=100, num_layers=4)
  with pytest.raises(ValueError, match="constant_then_decay.warmup_steps = 60"):
    learning_rates.constant_then_decay(
      peak=1.0, warmup_steps=60, schedule=stages
    )
