import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.models import layers

D = 8


def normal(seed, *shape):
  values = np.random.default_rng(seed).normal(0, 1, shape)
  return jnp.asarray(values, jnp.float32)


def test_rms_norm_and_gated_mlp_by_hand():
  norm = layers.RMSNorm(epsilon=0.5)
  x = jnp.array([[1, 2]], jnp.float32)
  out = norm.apply({"params": {"scale": jnp.array([1, 2], jnp.float32)}}, x)
  np.testing.assert_allclose(out, [np.array([1, 4]) / np.sqrt(3)], rtol=1e-6)

  wi, wo, x = normal(7, D, 2, 3), normal(8, 3, D), normal(9, 1, 1, D)
  mlp = layers.GatedMlp(mlp_dim=3, activation="silu", dropout_rate=0.0)
  out = mlp.apply({"params": {"wi": {"kernel": wi}, "wo": {"kernel": wo}}}, x)
  gate, linear = x[0, 0] @ wi[:, 0], x[0, 0] @ wi[:, 1]
  expected = (gate / (1 + np.exp(-gate)) * linear) @ wo
  np.testing.assert_allclose(out[0, 0], expected, rtol=1e-4, atol=1e-5)


def test_fan_in_counts_inputs_and_not_heads():
  kernel = layers.fan_in(0.25)(jax.random.key(0), (100, 400), jnp.float32)
  assert kernel.std() == pytest.approx((0.25 / 100) ** 0.5, rel=0.02)
  dense = layers.Dense((4, 100), ("embed", "heads", "kv"), layers.fan_in())
  params = dense.init(jax.random.key(0), jnp.zeros((1, 100)))
  kernel = params["params"]["kernel"].value
  assert kernel.shape == (100, 4, 100)
  assert kernel.std() == pytest.approx(0.1, rel=0.02)


def test_scores_of_bfloat16_are_accumulated_and_returned_in_float32():
  x, y = (
    jax.random.normal(jax.random.key(i), (5, 64)).astype(jnp.bfloat16)
    for i in range(2)
  )
  exact = np.asarray(x, np.float64) @ np.asarray(y, np.float64).T
  found = layers.scores("bd,cd->bc", x, y)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


def test_scores_multiply_narrow_numbers_in_both_passes():
  x = jnp.ones((5, 64), jnp.bfloat16)

  def loss(x, y):
    return layers.scores("bd,cd->bc", x, y).sum()

  jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, x)
  products = [
    [factor.aval.dtype for factor in equation.invars]
    for equation in jaxpr.jaxpr.eqns
    if equation.primitive.name == "dot_general"
  ]
  assert len(products) >= 2  # At least those of both gradients.
  assert {dtype for pair in products for dtype in pair} == {x.dtype}


@pytest.mark.parametrize("tied", [True, False])
def test_heads_score_in_float32(tied):
  x = jax.random.normal(jax.random.key(0), (3, 64)).astype(jnp.bfloat16)
  if tied:
    init = nn.initializers.normal()
    head = layers.Embedding(7, 64, "vocab", init, "bfloat16")
    method = "attend"
  else:
    head = layers.output_layer(7)
    method = "__call__"
  params = head.init(jax.random.key(1), x, method=method)
  logits = head.apply(params, x, method=method)
  assert logits.dtype == jnp.float32
  assert np.any(logits != logits.astype(jnp.bfloat16).astype(jnp.float32))
