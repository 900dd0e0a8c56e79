import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.models.masks import Mask
from raptr_jax.models.multi_head_attention import (
  Attention,
  rotary,
  write_slots,
)

B, T, D, H, K = 2, 5, 8, 4, 6


def normal(seed, *shape):
  values = np.random.default_rng(seed).normal(0, 1, shape)
  return jnp.asarray(values, jnp.float32)


def test_rotary_scores_depend_on_differences_alone():
  queries, keys = normal(0, 1, H, T, K), normal(1, 1, H, T, K)

  def scores(shift):
    positions = (jnp.arange(T) * 3 + shift)[None]
    turned = [rotary(x, positions, 100.0) for x in (queries, keys)]
    return jnp.einsum("bhtk,bhsk->bhts", *turned)

  np.testing.assert_allclose(scores(0), scores(400), atol=1e-4)
  assert not np.allclose(
    scores(0), jnp.einsum("bhtk,bhsk->bhts", queries, keys)
  )


def test_rotary_by_hand():
  # Coordinates 0 and 2 turn by 2, and 1 and 3 by 2 / sqrt(100).
  x = jnp.array([1, 3, 0, 4], jnp.float32)[None, None, None]
  turned = rotary(x, jnp.array([[2]]), 100.0)[0, 0, 0]
  sin, cos = np.sin(0.2), np.cos(0.2)
  expected = [np.cos(2), 3 * cos - 4 * sin, np.sin(2), 4 * cos + 3 * sin]
  np.testing.assert_allclose(turned, expected, rtol=1e-5)


def make_attention(**overrides):
  kwargs = dict(
    features=D, num_heads=H, head_dim=K, num_kv_heads=2, dropout_rate=0.0
  )
  return Attention(**kwargs | overrides)


def attention_params(kv_heads):
  return {
    "query": {"kernel": normal(2, D, H, K)},
    "key_value": {"kernel": normal(3, D, 2, kv_heads, K)},
    "out": {"kernel": normal(4, H * K, D)},
  }


def attend(module, params, x, *, causal):
  segment_ids = jnp.ones((B, T), jnp.int32)
  mask = Mask(segment_ids, segment_ids, causal=causal)

  def apply(module, x):
    return module.attend(x, *module.keys_values(x), mask)

  return module.apply({"params": params}, x, method=apply)


@pytest.mark.parametrize("scaled", [True, False])
def test_attention_by_hand(scaled):
  params, x = attention_params(2), normal(5, B, T, D)
  got = attend(make_attention(scaled=scaled), params, x, causal=True)
  mixed = np.zeros((B, T, H, K))
  for b, t, h in np.ndindex(B, T, H):
    key, value = (
      x[b, : t + 1] @ params["key_value"]["kernel"][:, i, h // 2]
      for i in (0, 1)
    )
    scores = key @ (x[b, t] @ params["query"]["kernel"][:, h])
    weights = np.exp(scores / np.sqrt(K) if scaled else scores)
    mixed[b, t, h] = weights @ value / weights.sum()
  expected = mixed.reshape(B, T, H * K) @ params["out"]["kernel"]
  np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


def test_shared_heads_are_repeated_ones():
  params, x = attention_params(2), normal(6, B, T, D)
  kernel = params["key_value"]["kernel"].repeat(2, axis=2)
  repeated = params | {"key_value": {"kernel": kernel}}
  np.testing.assert_allclose(
    attend(make_attention(), params, x, causal=False),
    attend(make_attention(num_kv_heads=H), repeated, x, causal=False),
    rtol=1e-4,
    atol=1e-4,
  )


def test_slots_are_written_from_the_one_given():
  cache = {name: jnp.zeros((1, 2, 6, 3)) for name in ("keys", "values")}
  new = (jnp.full((1, 2, 2, 3), 1.0), jnp.full((1, 2, 2, 3), 2.0))
  kept = write_slots(cache | {"source": 7}, new, jnp.asarray(3))
  assert kept["source"] == 7
  for name, value in (("keys", 1), ("values", 2)):
    np.testing.assert_array_equal(
      kept[name][0, 1, :, 2], [0, 0, 0, value, value, 0]
    )
