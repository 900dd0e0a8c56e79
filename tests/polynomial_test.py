"""Degrees are measured as they are defined, and paths are what is trained."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.contracts import LayerDraw
from raptr_jax.methods import policies
from raptr_jax.models.masked_stack import full_path
from raptr_jax.theory import polynomial
from raptr_jax.training import optim

BITS, DEGREE, TERMS, LAYERS = 4, 3, 2, 3
MODEL = polynomial.ResidualMlp(num_layers=LAYERS, width=8, mlp_dim=8)
OPTIMIZER = optim.adamw(learning_rate=lambda step: 1e-2)


def make_target(seed=0):
  return polynomial.random_target(
    seed, num_bits=BITS, max_degree=DEGREE, terms_per_degree=TERMS
  )


def make_params():
  x = jnp.ones((1, BITS))
  variables = MODEL.init(jax.random.key(0), x, full_path(LAYERS))
  return nn.unbox(variables)["params"]


def evaluations(policy, total_steps=6, seed=0):
  return list(
    polynomial.train(
      MODEL,
      make_target(),
      policy,
      OPTIMIZER,
      total_steps=total_steps,
      batch_size=8,
      eval_period=3,
      seed=seed,
    )
  )


def test_parities_by_hand():
  target = polynomial.ParityTarget(
    np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1]], bool),
    np.array([2.0, 3.0, -5.0], np.float32),
  )
  x = jnp.array([[1, 1, 1], [-1, 1, 1], [-1, -1, 1], [-1, -1, -1.0]])
  expected = [[1, 1, 1], [-1, -1, -1], [-1, 1, 1], [-1, 1, -1]]
  np.testing.assert_array_equal(target.parities(x), expected)
  np.testing.assert_array_equal(target(x), [0, 0, -4, 6])
  np.testing.assert_array_equal(target.degrees, [1, 2, 3])


def test_parities_are_products_and_orthonormal():
  target = make_target()
  x = polynomial.all_inputs(BITS)
  assert len(np.unique(x, axis=0)) == 2**BITS
  products = np.where(target.members, x[:, None], 1.0).prod(axis=-1)
  parities = np.asarray(target.parities(jnp.asarray(x)))
  np.testing.assert_array_equal(parities, products)
  np.testing.assert_array_equal(
    parities.T @ parities / 2**BITS, np.eye(len(target.members))
  )


def test_a_target_has_different_terms_of_each_degree_and_power_one():
  # All there are of degrees 1 and 3: one drawn twice would be missed.
  target = polynomial.random_target(
    0, num_bits=4, max_degree=3, terms_per_degree=4
  )
  np.testing.assert_array_equal(target.degrees, np.repeat([1, 2, 3], 4))
  assert len(np.unique(target.members, axis=0)) == 12
  np.testing.assert_allclose(np.square(target.coefficients), 1 / 12, rtol=1e-6)


def test_a_target_is_its_seed():
  target = make_target()
  np.testing.assert_array_equal(target.members, make_target().members)
  assert (target.members != make_target(seed=1).members).any()


def test_too_many_terms_name_the_degree():
  with pytest.raises(ValueError, match="only 4 parities of degree 1"):
    polynomial.random_target(0, num_bits=4, max_degree=3, terms_per_degree=5)


@pytest.mark.parametrize("factor, error", [(1.0, 0.0), (0.0, 1.0), (0.5, 0.25)])
def test_errors_of_multiples_of_the_target(factor, error):
  target = make_target()
  x = jnp.asarray(polynomial.all_inputs(BITS))
  learned = target.project(factor * target(x), x)
  errors = target.degree_errors(np.asarray(learned))
  np.testing.assert_allclose(errors, [error] * DEGREE, atol=1e-6)


def test_an_error_belongs_to_its_degree_alone():
  target = make_target()
  x = jnp.asarray(polynomial.all_inputs(BITS))
  wrong = target(x) - target.parities(x)[:, 2] * target.coefficients[2]
  unrelated = x.prod(axis=1)  # Of degree 4, which the target lacks.
  learned = target.project(wrong + unrelated, x)
  errors = target.degree_errors(np.asarray(learned))
  np.testing.assert_allclose(errors, [0, 1 / TERMS, 0], atol=1e-6)


def test_skipped_layers_have_no_gradient():
  grad = jax.jit(jax.grad(polynomial.squared_error), static_argnames="model")
  params, target = make_params(), make_target()
  x = jnp.asarray(polynomial.all_inputs(BITS))
  for kept in itertools.product([False, True], repeat=LAYERS):
    mask = np.array(kept)
    draw = LayerDraw(mask, mask.astype(np.float32))
    grads = grad(params, x, draw, model=MODEL, target=target)["stack"]
    kernels = np.asarray(grads["layers"]["mlp"]["wo"]["kernel"])
    np.testing.assert_array_equal(kernels.any(axis=(1, 2)), mask)
    for leaf in jax.tree.leaves(grads):
      assert not np.asarray(leaf)[~mask].any()


def test_training_learns_and_depends_on_the_seed_alone():
  dense = policies.full(num_layers=LAYERS)
  first = evaluations(dense, total_steps=60)
  assert [e.step for e in first] == list(range(0, 61, 3))
  assert first[-1].layers_run == 60 * LAYERS
  assert first[-1].loss < 0.5 * first[0].loss
  assert first == evaluations(dense, total_steps=60)
  assert first != evaluations(dense, total_steps=60, seed=1)


def test_methods_of_a_seed_share_their_start_but_not_their_paths():
  dense = evaluations(policies.full(num_layers=LAYERS))
  constant = evaluations(
    policies.constant(num_layers=LAYERS, path_length=2.0, sampler="exact")
  )
  assert constant[0] == dense[0]
  assert [e.layers_run for e in constant] == [0, 6, 12]
  assert constant[-1].loss != dense[-1].loss


def test_squared_error_is_that_of_all_coefficients():
  rng = np.random.default_rng(0)
  members = polynomial.all_inputs(BITS) > 0
  coefficients = rng.normal(size=2**BITS).astype(np.float32)
  target = polynomial.ParityTarget(members, coefficients)
  x = jnp.asarray(polynomial.all_inputs(BITS))
  outputs = jnp.asarray(rng.normal(size=2**BITS), jnp.float32)
  by_coefficient = jnp.square(target.project(outputs, x) - coefficients).sum()
  error = jnp.square(outputs - target(x)).mean()
  np.testing.assert_allclose(by_coefficient, error, rtol=1e-5)


def test_periods_must_be_whole():
  with pytest.raises(ValueError, match="does not divide total_steps = 4"):
    evaluations(policies.full(num_layers=LAYERS), total_steps=4)
