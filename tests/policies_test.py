import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from raptr_jax.contracts import LayerDraw
from raptr_jax.methods import layer_dropping, policies, samplers, scalings
from raptr_jax.methods.late_expansion import expansion_schedule
from raptr_jax.methods.schedule import stage_schedule

DRAWS = 20_000


def schedule(path_lengths=(6, 8, 10, 12), total_steps=4 * DRAWS):
  return stage_schedule(
    path_lengths=path_lengths, total_steps=total_steps, num_layers=12
  )


@functools.cache
def drawer(policy, key_axis, step_axis):
  """Draws for many keys or steps: one program for each policy."""
  return jax.jit(jax.vmap(policy, (key_axis, step_axis)))


def draw_many(policy, steps, seed=0) -> LayerDraw:
  return drawer(policy, None, 0)(jax.random.key(seed), steps)


@pytest.mark.parametrize("sampler", ["bernoulli", "exact"])
@pytest.mark.parametrize("fixed", [(0, -1), (), (0, 1, 10, 11), (5,)])
def test_layers_are_kept_as_often_as_they_should_be(sampler, fixed):
  policy = policies.raptr(
    schedule=schedule(), sampler=sampler, fixed_layers=fixed
  )
  fixed = [layer % 12 for layer in fixed]
  for stage, length in enumerate((6, 8, 10, 12)):
    steps = stage * DRAWS + jnp.arange(DRAWS)
    frequency = np.asarray(draw_many(policy, steps).mask).mean(axis=0)
    p = (length - len(fixed)) / (12 - len(fixed))
    expected = np.where(np.isin(np.arange(12), fixed), 1.0, p)
    error = np.sqrt(expected * (1 - expected) / DRAWS)
    np.testing.assert_allclose(
      policy.keep_probabilities(steps[0]), expected, rtol=1e-6
    )
    assert np.all(np.abs(frequency - expected) <= 4 * error + 1e-12)


def test_exact_draws_have_exactly_their_length():
  policy = policies.raptr(schedule=schedule(), sampler="exact")
  for stage, length in enumerate((6, 8, 10, 12)):
    masks = draw_many(policy, stage * DRAWS + jnp.arange(DRAWS)).mask
    assert set(np.asarray(masks.sum(axis=1)).tolist()) == {length}


@pytest.mark.parametrize("num_layers", [12, 24, 64, 96])
def test_a_whole_length_is_whole_whatever_the_rounding(num_layers, monkeypatch):
  # The greatest draw of "one layer more" that there can be: none may come.
  monkeypatch.setattr(
    jax.random, "uniform", lambda key, shape=(): jnp.zeros(shape)
  )
  lengths = jnp.arange(2, num_layers + 1)
  fixed = jnp.zeros(num_layers, bool).at[jnp.asarray([0, -1])].set(True)

  @jax.jit
  def sizes(lengths):
    keep_probabilities = jax.vmap(samplers.path_keep_probabilities, (0, None))(
      lengths, fixed
    )
    draw = jax.vmap(samplers.exact, (None, 0))
    return draw(jax.random.key(0), keep_probabilities).sum(axis=1)

  np.testing.assert_array_equal(sizes(lengths), lengths)


def test_exact_draws_all_subsets_alike():
  policy = policies.constant(
    path_length=3, num_layers=5, sampler="exact", fixed_layers=(0,)
  )
  masks = np.asarray(draw_many(policy, jnp.arange(DRAWS)).mask)
  _, counts = np.unique(masks, axis=0, return_counts=True)
  assert len(counts) == 6  # 4 choose 2
  assert np.all(np.abs(counts / DRAWS - 1 / 6) < 4 * np.sqrt(5 / 36 / DRAWS))


def test_exact_keeps_a_fractional_length_in_the_mean():
  policy = policies.constant(path_length=7.25, num_layers=12, sampler="exact")
  lengths = np.asarray(draw_many(policy, jnp.arange(DRAWS)).mask).sum(axis=1)
  assert set(lengths.tolist()) == {7, 8}
  assert abs(lengths.mean() - 7.25) < 4 * np.sqrt(0.25 * 0.75 / DRAWS)


def test_two_steps_differ_under_jit():
  draw = jax.jit(policies.raptr(schedule=schedule()))
  masks = {tuple(np.asarray(draw(jax.random.key(0), s).mask)) for s in range(9)}
  assert len(masks) > 1


def test_a_draw_depends_on_key_and_step_alone():
  policy = policies.raptr(schedule=schedule())
  together = draw_many(policy, jnp.arange(50)).mask
  jax.clear_caches()  # As after a restart.
  alone = [policy(jax.random.key(0), jnp.asarray(s)).mask for s in range(50)]
  np.testing.assert_array_equal(together, np.stack(alone))


@pytest.mark.parametrize("sampler", ["bernoulli", "exact"])
def test_draws_are_equal_on_one_and_on_eight_devices(sampler):
  policy = policies.raptr(schedule=schedule(), sampler=sampler)
  steps = np.arange(800, dtype=np.int32)
  mesh = Mesh(np.asarray(jax.devices()), ("data",))
  assert mesh.size == 8
  spread = jax.device_put(steps, NamedSharding(mesh, PartitionSpec("data")))
  one, eight = draw_many(policy, steps), draw_many(policy, spread)
  np.testing.assert_array_equal(one.mask, eight.mask)


def test_full_runs_every_layer():
  draws = draw_many(policies.full(num_layers=12), jnp.arange(100))
  assert draws.mask.all()
  assert (draws.scale == 1).all()


def test_the_constant_policy_has_no_stages():
  policy = policies.constant(path_length=9, num_layers=12)
  assert policy.boundaries == ()
  np.testing.assert_allclose(
    policy.keep_probabilities(0), policy.keep_probabilities(10**6)
  )


L, T = 12, 4000
STEPS = (0, 1, 1999, 2000, T - 1)  # The stages of 6-12 meet at 2000.
HALVES = stage_schedule(path_lengths=(6, 12), total_steps=T, num_layers=L)


def theta(step, theta_bar):
  return (1 - theta_bar) * np.exp(-100 * step / T) + theta_bar


# The probability of layer i = 0 ... L - 1 in a step, written out once more.
FORMULAS = {
  "dense": (policies.full(num_layers=L), lambda i, t: 1.0),
  "raptr": (
    policies.raptr(schedule=HALVES),
    lambda i, t: 1.0 if i in (0, 11) or t >= 2000 else 0.4,
  ),
  "stacked": (
    policies.stacked(schedule=HALVES),
    lambda i, t: float(i < (6 if t < 2000 else 12)),
  ),
  "constant": (
    policies.constant(num_layers=L, flop_factor=4 / 3),
    lambda i, t: 1.0 if i in (0, 11) else 0.7,
  ),
  "layerdrop": (
    layer_dropping.layerdrop(num_layers=L, flop_factor=4 / 3),
    lambda i, t: 0.75,
  ),
  "pld": (
    layer_dropping.progressive_layer_dropping(num_layers=L, total_steps=T),
    lambda i, t: 1 - (i + 1) / L * (1 - theta(t, 0.5)),
  ),
  "pld, deepspeed": (
    layer_dropping.progressive_layer_dropping(
      num_layers=L, total_steps=T, theta_bar=0.25, indexing="deepspeed"
    ),
    lambda i, t: 1 - i / L * (1 - theta(t, 0.25)),
  ),
  "dont drop dropout": (
    layer_dropping.dont_drop_dropout(
      num_layers=L, total_steps=T, max_drop_rate=0.8
    ),
    lambda i, t: 1 - 0.8 * i / 11 * (1 - t / (T - 1)),
  ),
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("step", STEPS)
def test_every_method_draws_by_its_formula(name, step):
  policy, formula = FORMULAS[name]
  expected = np.asarray([formula(i, step) for i in range(L)])
  np.testing.assert_allclose(
    policy.keep_probabilities(step), expected, atol=1e-6
  )
  keys = jax.random.split(jax.random.key(1), DRAWS)
  draws = drawer(policy, 0, None)(keys, jnp.asarray(step))
  frequency = np.asarray(draws.mask).mean(axis=0)
  error = np.sqrt(expected * (1 - expected) / DRAWS)
  assert np.all(np.abs(frequency - expected) <= 4 * error + 1e-6)


@pytest.mark.parametrize("name", ["pld", "pld, deepspeed", "dont drop dropout"])
def test_what_is_divided_by_its_probability_keeps_its_mean(name):
  policy, _ = FORMULAS[name]
  keys = jax.random.split(jax.random.key(2), DRAWS)
  draws = drawer(policy, 0, None)(keys, jnp.asarray(1000))
  scale = np.asarray(draws.scale)
  p = np.asarray(policy.keep_probabilities(1000))
  error = np.sqrt((1 / p - 1) / DRAWS)
  assert np.all(np.abs(scale.mean(axis=0) - 1) <= 4 * error + 1e-6)


@pytest.mark.parametrize("name", ["layerdrop", "constant", "stacked"])
def test_other_methods_scale_nothing(name):
  draws = draw_many(FORMULAS[name][0], jnp.arange(0, T, 100))
  np.testing.assert_array_equal(draws.scale, draws.mask)


def matched(flop_factor, num_layers=12, total_steps=2000):
  sizes = dict(num_layers=num_layers, flop_factor=flop_factor)
  run = dict(**sizes, total_steps=total_steps)
  lengths = np.linspace(num_layers // 2, num_layers, 4)
  pld = layer_dropping.progressive_layer_dropping
  return {
    "raptr": policies.raptr(
      schedule=stage_schedule(path_lengths=lengths, **run)
    ),
    "late": policies.stacked(schedule=expansion_schedule(**run)),
    "constant": policies.constant(**sizes),
    "layerdrop": layer_dropping.layerdrop(**sizes),
    "pld": pld(**run),
    "deepspeed": pld(**run, indexing="deepspeed"),
    "dropout": layer_dropping.dont_drop_dropout(**run),
  }


@pytest.mark.parametrize("flop_factor", [1.1, 1.2, 4 / 3])
@pytest.mark.parametrize("num_layers", [6, 12, 24])
def test_the_solved_number_meets_the_flop_factor(flop_factor, num_layers):
  for name, policy in matched(flop_factor, num_layers).items():
    keep_probabilities = jax.vmap(policy.keep_probabilities)(jnp.arange(2000))
    length = np.asarray(keep_probabilities, np.float64).sum(axis=1).mean()
    # Stages last whole steps: half a step of the deepest change, of 2000.
    assert num_layers / length == pytest.approx(flop_factor, rel=1e-3), name
    assert len(policy.solved_for) == 1


def test_solved_numbers_by_hand():
  solved = {name: policy.solved_for for name, policy in matched(4 / 3).items()}
  assert solved["raptr"] == {"stage exponent": 0}
  # 2000 (1 - 3/4) 12/11, to a whole step.
  assert solved["late"] == {"expansion step": 545}
  assert solved["constant"] == {"path length": pytest.approx(9)}
  assert solved["layerdrop"] == {"drop rate": pytest.approx(0.25)}
  # 1 - 3 / (6.5 (1 - 1/100)), and with the sum of (i/12) for i = 0 ... 11.
  assert solved["pld"]["theta_bar"] == pytest.approx(0.534, abs=5e-4)
  assert solved["deepspeed"]["theta_bar"] == pytest.approx(0.449, abs=5e-4)
  assert solved["dropout"] == {"max drop rate": 1}


def test_a_flop_factor_out_of_reach_is_an_error():
  with pytest.raises(ValueError, match=r"max_drop_rate = 1.5, .*at most 1.333"):
    layer_dropping.dont_drop_dropout(
      num_layers=12, total_steps=9, flop_factor=1.6
    )
  with pytest.raises(ValueError, match=r"theta_bar = -.*a smaller FLOP_FACTOR"):
    layer_dropping.progressive_layer_dropping(
      num_layers=12, total_steps=2000, flop_factor=3
    )
  with pytest.raises(
    ValueError, match="constant.path_length = 1.2, expected 2"
  ):
    policies.constant(num_layers=12, flop_factor=10)
  with pytest.raises(ValueError, match="drop_rate = -1"):
    layer_dropping.layerdrop(num_layers=12, flop_factor=0.5)
  with pytest.raises(ValueError, match="Set FLOP_FACTOR or"):
    policies.constant(num_layers=12)
  with pytest.raises(ValueError, match="indexing = 'x', expected 'paper'"):
    layer_dropping.progressive_layer_dropping(
      num_layers=12, total_steps=9, indexing="x"
    )


MASK = jnp.asarray([1, 0, 0, 1, 1, 0], bool)
KEEP_PROBABILITIES = jnp.asarray([1, 0.5, 0.5, 0.5, 0.25, 0.5])


@pytest.mark.parametrize(
  ("scaling", "expected"),
  [
    ("none", [1, 0, 0, 1, 1, 0]),
    ("sqrt_gap", [1, 0, 0, 3**0.5, 1, 0]),
    ("sqrt_global", [2**0.5, 0, 0, 2**0.5, 2**0.5, 0]),
    ("inverse_p", [1, 0, 0, 2, 4, 0]),
  ],
)
def test_scaling_by_hand(scaling, expected, monkeypatch):
  monkeypatch.setitem(samplers.SAMPLERS, "given", lambda key, p: MASK)
  policy = policies.LayerPolicy(
    6, lambda step: KEEP_PROBABILITIES, "given", scaling
  )
  scale = policy(jax.random.key(0), jnp.asarray(0)).scale
  np.testing.assert_allclose(scale, expected, rtol=1e-6)


def test_a_first_layer_after_a_gap_is_scaled_by_it():
  mask = jnp.asarray([0, 0, 1, 1], bool)
  scale = scalings.sqrt_gap(mask, jnp.ones(4))
  np.testing.assert_allclose(scale[2:], [3**0.5, 1], rtol=1e-6)


def test_errors_name_value_and_binding():
  with pytest.raises(ValueError, match=r"paths of 2 layers.*keeps 3"):
    policies.raptr(schedule=schedule((2, 12)), fixed_layers=(0, 1, -1))
  with pytest.raises(ValueError, match="fixed_layers has 12, expected -12"):
    policies.raptr(schedule=schedule(), fixed_layers=(12,))
  with pytest.raises(ValueError, match="constant.path_length = 13"):
    policies.constant(path_length=13, num_layers=12)
  with pytest.raises(ValueError, match="sampler = 'gauss', expected one of"):
    policies.raptr(schedule=schedule(), sampler="gauss")
  with pytest.raises(ValueError, match="scaling = 'log', expected one of"):
    policies.raptr(schedule=schedule(), scaling="log")


def test_a_policy_is_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    policies.full(num_layers=2).num_layers = 3
