import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.models.encoder_decoder import (
  EncoderDecoderConfig,
)
from raptr_jax.models.encoder_decoder_lm import EncoderDecoderLM
from raptr_jax.models.relative_positions import RelativeBias
from tests import families


def bucket(offset, buckets, *, bidirectional, max_distance=128):
  """T5's bucket of a key `offset` tokens after the query, in whole numbers."""
  first = 0
  if bidirectional:
    buckets //= 2
    first = buckets if offset > 0 else 0
  distance = abs(offset) if bidirectional else max(-offset, 0)
  exact = buckets // 2
  if distance < exact:
    return first + distance
  # The most i with exact (max_distance / exact)^(i / wide) <= distance.
  wide = buckets - exact
  i = max(
    i
    for i in range(wide)
    if max_distance**i * exact ** (wide - i) <= distance**wide
  )
  return first + exact + i


def position_bias(params, queries, keys, config, *, bidirectional):
  offset = np.arange(keys)[None] - np.arange(queries)[:, None]
  buckets = np.vectorize(
    lambda x: bucket(
      int(x),
      config.position_buckets,
      bidirectional=bidirectional,
      max_distance=config.max_distance,
    )
  )(offset)
  return params["embedding"][:, buckets][None]


def rms_norm(x, params):
  root = jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
  return x / root * params["scale"][None, None]


def attend(x, source, params, allowed, bias=0.0):
  """T5's attention, which is not divided by sqrt(K)."""
  q = jnp.einsum("btd,dhk->bthk", x, params["query"]["kernel"])
  k, v = jnp.einsum("bsd,dchk->cbshk", source, params["key_value"]["kernel"])
  scores = jnp.einsum("bthk,bshk->bhts", q, k) + bias
  weights = jax.nn.softmax(jnp.where(allowed[:, None], scores, -jnp.inf))
  mixed = jnp.einsum("bhts,bshk->bthk", weights, v)
  return mixed.reshape(*x.shape[:2], -1) @ params["out"]["kernel"]


def gated_mlp(x, params):
  gate, linear = jnp.einsum("btd,dcf->cbtf", x, params["wi"]["kernel"])
  return (jax.nn.gelu(gate) * linear) @ params["wo"]["kernel"]


def path_layers(params, path):
  for index, scale in zip(path.indices, path.scale):
    yield jax.tree.map(lambda p, i=index: p[i], params["layers"]), scale


def reference(params, batch, paths, config):
  """Logits by the formulas, layer by layer."""
  table = params["token_embedding"]["embedding"]
  source_ids, ids = batch["encoder_segment_ids"], batch["segment_ids"]
  source_length, length = source_ids.shape[1], ids.shape[1]

  x = table[batch["encoder_tokens"]]
  same = source_ids[:, :, None] == source_ids[:, None, :]
  bias = position_bias(
    params["encoder_positions"],
    source_length,
    source_length,
    config,
    bidirectional=True,
  )
  for layer, scale in path_layers(params["encoder"], paths["encoder"]):
    normed = rms_norm(x, layer["attention_norm"])
    mixed = attend(normed, normed, layer["attention"], same, bias)
    normed = rms_norm(x + mixed, layer["mlp_norm"])
    x = x + scale * (mixed + gated_mlp(normed, layer["mlp"]))
  encoded = rms_norm(x, params["encoder_norm"])

  x = table[batch["tokens"]]
  causal = jnp.tri(length, dtype=bool)[None]
  same = (ids[:, :, None] == ids[:, None, :]) & causal
  crossing = ids[:, :, None] == source_ids[:, None, :]
  bias = position_bias(
    params["decoder_positions"], length, length, config, bidirectional=False
  )
  for layer, scale in path_layers(params["decoder"], paths["decoder"]):
    normed = rms_norm(x, layer["attention_norm"])
    mixed = attend(normed, normed, layer["attention"], same, bias)
    normed = rms_norm(x + mixed, layer["cross_attention_norm"])
    mixed += attend(normed, encoded, layer["cross_attention"], crossing)
    normed = rms_norm(x + mixed, layer["mlp_norm"])
    x = x + scale * (mixed + gated_mlp(normed, layer["mlp"]))
  return rms_norm(x, params["decoder_norm"]) @ params["head"]["kernel"]


@pytest.mark.parametrize(
  ("layers", "width", "heads", "mlp_dim", "expected", "error"),
  [
    (8, 512, 6, 1024, 77.0e6, 0.005),  # T5.1.1 small, base, large.
    (12, 768, 12, 2048, 247.6e6, 0.005),
    (24, 1024, 16, 2816, 783.2e6, 0.005),
    (24, 1536, 24, 3712, 1.6e9, 0.03),
  ],
)
def test_published_numbers_of_parameters(
  layers, width, heads, mlp_dim, expected, error
):
  model = EncoderDecoderLM(
    EncoderDecoderConfig(32_128, layers, layers, width, heads, 64, mlp_dim)
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  size = sum(x.size for x in jax.tree.leaves(shapes))
  assert size == pytest.approx(expected, rel=error)


def test_it_is_its_formulas_over_any_path():
  model = families.make_model("encoder_decoder")
  families.check_against_reference(model, reference)


def buckets_of(offsets, *, bidirectional):
  positions = RelativeBias(jnp.zeros((1, 32)), 128, bidirectional)
  everything = jnp.arange(-200, 201)
  found = np.asarray(positions.bucket(everything))
  expected = [
    bucket(x, 32, bidirectional=bidirectional) for x in range(-200, 201)
  ]
  np.testing.assert_array_equal(found, expected)
  return found[np.array(offsets) + 200].tolist()


def test_buckets_by_hand():
  # Exact below 8 = 32 / 2 / 2, twice as far every two buckets, then 15.
  earlier = [0, -1, -7, -8, -11, -12, -15, -16, -22, -23, -31, -32, -64, -200]
  later = [1, 7, 8, 200]
  assert buckets_of(earlier + later, bidirectional=True) == [
    *(0, 1, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 14, 15),
    *(17, 23, 24, 31),
  ]
  # Exact below 16; later tokens, which are never attended to, share 0.
  offsets = [0, -1, -15, -16, -128, -200, 1, 5, 200]
  expected = [0, 1, 15, 16, 31, 31, 0, 0, 0]
  assert buckets_of(offsets, bidirectional=False) == expected


def test_a_token_reads_its_own_example_and_no_later_target():
  model = families.make_model("encoder_decoder")
  batch = families.make_batch(model, [families.PAIRS])
  batch["tokens"] = np.arange(7)[None]
  batch["encoder_tokens"] = np.arange(7, 15)[None]
  got = families.reached(model, families.random_params(model), batch)
  own = families.matrix(
    "1000000",
    "1100000",
    "1110000",
    "0001000",
    "0001100",
    "0001110",
    "0000001",
  )
  source = families.matrix(
    "11110000",
    "11110000",
    "11110000",
    "00001110",
    "00001110",
    "00001110",
    "00000001",
  )
  np.testing.assert_array_equal(got[:, :7], own)
  np.testing.assert_array_equal(got[:, 7:15], source)
  assert not got[:, 15:].any()


def test_the_query_makes_up_for_what_attention_is_not_divided_by():
  model = families.make_model("encoder_decoder", embed_dim=64)
  params = families.fresh_params(model)
  for stack, part in (
    ("encoder", "attention"),
    ("decoder", "attention"),
    ("decoder", "cross_attention"),
  ):
    attention = params[stack]["layers"][part]
    query = attention["query"]["kernel"]
    key_value = attention["key_value"]["kernel"]
    assert query.std() == pytest.approx((64 * 6) ** -0.5, rel=0.05)
    assert key_value.std() == pytest.approx(64**-0.5, rel=0.05)


def test_flops_are_those_of_xla():
  config = EncoderDecoderConfig(1000, 2, 3, 256, 4, 96, 640)
  model = EncoderDecoderLM(config)
  shape = jax.ShapeDtypeStruct
  batch = {
    "encoder_tokens": shape((4, 128), np.int32),
    "encoder_segment_ids": shape((4, 128), np.int32),
    "tokens": shape((4, 64), np.int32),
    "segment_ids": shape((4, 64), np.int32),
  }
  counted = model.step_flops(batch).step(model.stacks)
  expected = families.product_flops(model, reference, batch)
  assert counted == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
  ("field", "value"),
  [("activation", "relu6"), ("dtype", "int8"), ("remat", "half")],
)
def test_errors_name_value_and_binding(field, value):
  config = families.make_model("encoder_decoder").config
  match = f"EncoderDecoderConfig.{field} = '{value}'"
  with pytest.raises(ValueError, match=match):
    dataclasses.replace(config, **{field: value})
