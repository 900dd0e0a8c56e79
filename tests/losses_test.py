import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.models import losses
from raptr_jax.models.layers import dense

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(3, 4, 7)), jnp.float32)
TARGETS = jnp.asarray(RNG.integers(0, 7, (3, 4)))
WEIGHTS = jnp.asarray([[1, 1, 1, 0], [1, 2, 0, 0], [1, 1, 1, 1]], jnp.float32)
HIDDEN = jnp.asarray(RNG.normal(size=(3, 4, 5)), jnp.float32)
HEAD = {
  "kernel": jnp.asarray(RNG.normal(size=(5, 7)), jnp.float32),
  "bias": jnp.asarray(RNG.normal(size=7), jnp.float32),
}


def head(params, x):
  return dense(x, params["kernel"], params["bias"])


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


def test_z_loss_and_smoothing_by_their_definitions():
  z_loss, smoothing, size = 0.1, 0.2, LOGITS.shape[-1]
  loss, metrics = losses.cross_entropy(
    LOGITS, TARGETS, WEIGHTS, z_loss=z_loss, label_smoothing=smoothing
  )
  logits = np.asarray(LOGITS, np.float64)
  normalizer = np.log(np.exp(logits).sum(-1))
  labels = np.full(logits.shape, smoothing / (size - 1))
  np.put_along_axis(labels, np.asarray(TARGETS)[..., None], 1 - smoothing, -1)
  soft = -(labels * (logits - normalizer[..., None])).sum(-1)
  expected = ((soft + z_loss * normalizer**2) * WEIGHTS).sum()
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  plain, plain_metrics = losses.cross_entropy(LOGITS, TARGETS, WEIGHTS)
  assert metrics == plain_metrics
  assert metrics["loss"] == plain


def test_by_default_the_loss_is_what_is_minimised():
  loss, metrics = losses.cross_entropy(LOGITS, TARGETS, WEIGHTS)
  assert metrics["loss"] == loss


# Sizes that divide the 12 tokens, that do not, and one for all of them.
@pytest.mark.parametrize("chunk_size", [4, 5, 100])
def test_chunks_change_neither_the_loss_nor_its_gradients(chunk_size):
  def sums_and_gradients(chunk_size):
    def loss(params, hidden):
      return losses.head_cross_entropy(
        head,
        params,
        hidden,
        TARGETS,
        WEIGHTS,
        chunk_size=chunk_size,
        z_loss=0.1,
        label_smoothing=0.2,
      )

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(HEAD, HIDDEN)

  whole, chunked = sums_and_gradients(None), sums_and_gradients(chunk_size)
  for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked)):
    np.testing.assert_allclose(two, one, rtol=1e-6, atol=1e-6)


def test_the_loss_of_a_head_is_that_of_its_logits():
  sums = losses.head_cross_entropy(head, HEAD, HIDDEN, TARGETS, WEIGHTS)
  expected = losses.cross_entropy(head(HEAD, HIDDEN), TARGETS, WEIGHTS)
  for one, two in zip(jax.tree.leaves(sums), jax.tree.leaves(expected)):
    np.testing.assert_allclose(one, two, rtol=1e-6)


@pytest.mark.parametrize("chunk_size", [None, 4, 5])
def test_likelihoods_keep_their_tokens(chunk_size):
  logits = head(HEAD, HIDDEN)
  best = logits.argmax(-1)
  targets = jnp.where(jnp.arange(best.shape[-1]) % 2, best, TARGETS)
  got, likeliest = losses.head_log_likelihood(
    head, HEAD, HIDDEN, targets, chunk_size=chunk_size
  )
  expected = losses.token_log_likelihood(logits, targets)
  np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(likeliest, targets == best)
  assert likeliest.any() and not likeliest.all()


def test_chunks_take_less_memory_forward_and_backward():
  tokens, vocab, chunk_size = 1024, 4096, 128

  def memory(chunk_size):
    def loss(kernel, hidden):
      return losses.head_cross_entropy(
        lambda kernel, x: x @ kernel,
        kernel,
        hidden,
        jnp.zeros(tokens, jnp.int32),
        jnp.ones(tokens),
        chunk_size=chunk_size,
      )[0]

    shapes = jnp.zeros((5, vocab)), jnp.zeros((tokens, 5))
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  logits = 4 * tokens * vocab
  assert memory(None) >= logits
  assert memory(chunk_size) < logits / 2
