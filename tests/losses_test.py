import jax
import jax.numpy as jnp
import numpy as np

from raptr_jax import losses

LOGITS = jax.random.normal(jax.random.key(0), (3, 4, 7))
TARGETS = jax.random.randint(jax.random.key(1), (3, 4), 0, 7)


def test_log_likelihood_is_that_of_log_softmax():
  expected = np.take_along_axis(
    np.asarray(jax.nn.log_softmax(LOGITS)), np.asarray(TARGETS)[..., None], -1
  )[..., 0]
  got = losses.token_log_likelihood(LOGITS, TARGETS)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_logits_far_from_zero_stay_finite():
  got = losses.token_log_likelihood(1e4 * LOGITS, TARGETS)
  assert np.isfinite(got).all()


def test_sums_are_weighted():
  weights = jnp.zeros((3, 4)).at[1, 2].set(2.0)
  loss, metrics = losses.cross_entropy(LOGITS, TARGETS, weights)
  single = losses.token_log_likelihood(LOGITS, TARGETS)[1, 2]
  np.testing.assert_allclose(loss, -2 * single, rtol=1e-6)
  assert metrics["weight"] == 2
  assert metrics["loss"] == loss


def test_accuracy_counts_the_largest_logit():
  logits = jnp.eye(3)
  metrics = losses.cross_entropy(logits, jnp.asarray([0, 1, 0]), jnp.ones(3))[1]
  assert metrics["accuracy"] == 2
