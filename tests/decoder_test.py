import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.models.decoder import DecoderConfig
from raptr_jax.models.decoder_lm import DecoderLM
from raptr_jax.models.masked_stack import full_paths
from tests import families

BILLION = DecoderConfig(32_128, 24, 2048, 16, 7680)


def rms_norm(x, scale):
  root = jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
  return x / root * scale[None, None]


def turn(x, positions):
  """RoPE by complex numbers, on x [B, T, H, K]."""
  half = x.shape[-1] // 2
  angle = positions[..., None] / 10_000 ** (jnp.arange(half) / half)[None, None]
  z = (x[..., :half] + 1j * x[..., half:]) * jnp.exp(1j * angle)[:, :, None]
  return jnp.concatenate([z.real, z.imag], axis=-1)


def reference(params, batch, paths, config):
  """Logits by the formulas, layer by layer."""
  segments, positions = batch["segment_ids"], batch["positions"]
  width, length = config.embed_dim, segments.shape[1]
  allowed = jnp.tri(length, dtype=bool)[None]
  if config.attention == "prefix":
    allowed = allowed | (batch["in_prefix"][:, None, :] == 1)
  allowed = allowed & (segments[:, :, None] == segments[:, None, :])
  table = params["token_embedding"]["embedding"]
  x = table[batch["tokens"]] * np.sqrt(width)
  path = paths["stack"]
  for index, scale in zip(path.indices, path.scale):
    layer = jax.tree.map(lambda p, i=index: p[i], params["stack"]["layers"])
    part = layer["attention"]
    normed = rms_norm(x, layer["attention_norm"]["scale"])
    q = jnp.einsum("btd,dhk->bthk", normed, part["query"]["kernel"])
    k, v = jnp.einsum("btd,dcgk->cbtgk", normed, part["key_value"]["kernel"])
    q, k = turn(q, positions), turn(k, positions)
    shared = config.num_heads // config.kv_heads
    k, v = jnp.repeat(k, shared, axis=2), jnp.repeat(v, shared, axis=2)
    scores = jnp.einsum("bthk,bshk->bhts", q, k) / np.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(allowed[:, None], scores, -jnp.inf))
    mixed = jnp.einsum("bhts,bshk->bthk", weights, v)
    mixed = mixed.reshape(*x.shape[:2], -1) @ part["out"]["kernel"]
    normed = rms_norm(x + mixed, layer["mlp_norm"]["scale"])
    gate, linear = jnp.einsum(
      "btd,dcf->cbtf", normed, layer["mlp"]["wi"]["kernel"]
    )
    changed = (jax.nn.silu(gate) * linear) @ layer["mlp"]["wo"]["kernel"]
    x = x + scale * (mixed + changed)
  x = rms_norm(x, params["final_norm"]["scale"])
  return x @ (table.T if config.tied_head else params["head"]["kernel"])


def test_a_decoder_has_1_6_billion_parameters():
  shapes = jax.eval_shape(DecoderLM(BILLION).init, jax.random.key(0))
  size = sum(x.size for x in jax.tree.leaves(shapes))
  assert size == pytest.approx(1.6e9, rel=0.03)


CAUSAL = dict(attention="causal", tied_head=True, num_kv_heads=4, head_dim=6)


def test_it_is_its_formulas_over_any_path():
  families.check_against_reference(families.make_model("decoder"), reference)


def test_a_tied_causal_one_is_its_formulas():
  model = families.make_model("decoder", **CAUSAL)
  params, batch = families.random_params(model), families.make_batch(model)
  paths = full_paths(model.stacks)
  expected = jax.jit(reference, static_argnums=3)(
    params, batch, paths, model.config
  )
  families.assert_close(families.logits(model, params, batch, paths), expected)


@pytest.mark.parametrize("variant", [dict(), CAUSAL])
def test_inputs_are_read_in_both_directions_if_they_are_a_prefix(variant):
  model = families.make_model("decoder", **variant)
  batch = families.make_batch(model)
  other = batch | {"tokens": batch["tokens"].copy()}
  other["tokens"][:, 1] = 13

  def logits(batch):
    return families.logits(
      model, families.random_params(model), batch, full_paths(model.stacks)
    )

  changed = (logits(batch) != logits(other)).any(-1)
  assert changed[:, 1].all()
  assert (changed[:, 0] == (model.config.attention == "prefix")).all()


def test_a_token_reads_its_own_example_and_no_later_target():
  model = families.make_model("decoder")
  batch = families.make_batch(model, [families.PAIRS])
  batch["tokens"] = np.arange(10)[None]
  got = families.reached(model, families.random_params(model), batch)
  expected = families.matrix(
    "1110000000",
    "1110000000",
    "1110000000",
    "1111000000",
    "1111100000",
    "0000011000",
    "0000011000",
    "0000011100",
    "0000011110",
    "0000000001",
  )
  np.testing.assert_array_equal(got[:, :10], expected)
  assert not got[:, 10:].any()


def test_shared_heads_are_repeated_ones():
  shared = families.make_model("decoder", num_kv_heads=2)
  whole = families.make_model("decoder", num_kv_heads=4)
  params = families.random_params(shared)
  repeated = jax.tree_util.tree_map_with_path(
    lambda path, x: (
      x.repeat(2, axis=3) if "key_value" in jax.tree_util.keystr(path) else x
    ),
    params,
  )
  paths = full_paths(shared.stacks)
  batch = families.make_batch(shared)
  np.testing.assert_allclose(
    families.logits(shared, params, batch, paths),
    families.logits(whole, repeated, batch, paths),
    atol=1e-4,
  )


def test_flops_are_those_of_xla():
  config = DecoderConfig(1000, 2, 256, 4, 640, num_kv_heads=2, head_dim=96)
  model = DecoderLM(config)
  names = ("tokens", "segment_ids", "positions", "in_prefix")
  shape = jax.ShapeDtypeStruct((4, 128), np.int32)
  batch = dict.fromkeys(names, shape)
  counted = model.step_flops(batch).step(model.stacks)
  expected = families.product_flops(model, reference, batch)
  assert counted == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
  ("field", "value"),
  [("attention", "full"), ("activation", "relu6"), ("dtype", "int8"),
   ("remat", "half"), ("embed_dim", 18), ("head_dim", 3),
   ("num_kv_heads", 3)],
)  # fmt: skip
def test_errors_name_value_and_binding(field, value):
  config = families.make_model("decoder").config
  with pytest.raises(ValueError, match=rf"DecoderConfig.{field} = '?{value}'?"):
    dataclasses.replace(config, **{field: value})
