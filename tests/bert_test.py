import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.exchange.hugging_face import read_tensors
from raptr_jax.models.bert import BertConfig, BertMaskedLM
from raptr_jax.models.masked_stack import full_path

TINY = BertConfig(
  vocab_size=50,
  num_layers=3,
  embed_dim=16,
  num_heads=2,
  max_length=12,
  dropout_rate=0.0,
)
FULL = {"stack": full_path(3)}
BASE = BertConfig(vocab_size=30_522, num_layers=12, embed_dim=768, num_heads=12)


def count(config: BertConfig) -> int:
  params = jax.eval_shape(BertMaskedLM(config).init, jax.random.key(0))
  return sum(x.size for x in jax.tree.leaves(nn.unbox(params)))


def make_batch(seed=0, rows=2, length=12, vocab=50):
  rng = np.random.default_rng(seed)
  segments = np.repeat([1, 2], [length // 2, length - length // 2])
  return {
    "tokens": rng.integers(5, vocab, (rows, length), np.int32),
    "segment_ids": np.tile(segments, (rows, 1)).astype(np.int32),
    "positions": np.tile(np.arange(length), (rows, 1)).astype(np.int32),
    "target_positions": np.tile([1, 4, 0], (rows, 1)).astype(np.int32),
    "targets": rng.integers(5, vocab, (rows, 3), np.int32),
    "target_weights": np.tile([1.0, 1.0, 0.0], (rows, 1)).astype(np.float32),
  }


@functools.cache
def make_params(config):
  init = jax.jit(BertMaskedLM(config).init)
  return nn.unbox(init(jax.random.key(0)))


@functools.partial(jax.jit, static_argnums=0)
def loss_fn(model, params, batch, draws, key):
  return model.loss_fn(params, batch, draws, key)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, batch):
  return model.module.apply({"params": params}, batch, full_path(3))


def test_base_has_the_published_number_of_parameters():
  assert count(BASE) == 109_514_298  # 109.5 M.
  assert count(dataclasses.replace(BASE, pooler=True)) == 110_104_890


def published_tensors(config: BertConfig, seed=0) -> dict[str, np.ndarray]:
  """Random tensors under the names of the original release."""
  rng = np.random.default_rng(seed)
  width, mlp = config.embed_dim, config.mlp_width
  tensors = {}

  def add(name, *shape):
    tensors[name] = rng.normal(0, 0.2, shape).astype(np.float32)

  def linear(name, inner, outer):
    add(f"{name}/kernel", inner, outer)
    add(f"{name}/bias", outer)

  def norm(name):
    add(f"{name}/gamma", width)
    add(f"{name}/beta", width)

  add("bert/embeddings/word_embeddings", config.vocab_size, width)
  add("bert/embeddings/position_embeddings", config.max_length, width)
  add("bert/embeddings/token_type_embeddings", 2, width)
  norm("bert/embeddings/LayerNorm")
  for layer in range(config.num_layers):
    name = f"bert/encoder/layer_{layer}"
    for part in ("query", "key", "value"):
      linear(f"{name}/attention/self/{part}", width, width)
    linear(f"{name}/attention/output/dense", width, width)
    norm(f"{name}/attention/output/LayerNorm")
    linear(f"{name}/intermediate/dense", width, mlp)
    linear(f"{name}/output/dense", mlp, width)
    norm(f"{name}/output/LayerNorm")
  linear("bert/pooler/dense", width, width)
  linear("cls/predictions/transform/dense", width, width)
  norm("cls/predictions/transform/LayerNorm")
  add("cls/predictions/output_bias", config.vocab_size)
  return tensors


class OriginalBert:
  """The original BERT by its paper, in NumPy, on published tensors."""

  def __init__(self, tensors, config):
    self.t, self.c = tensors, config

  def linear(self, x, name):
    return x @ self.t[f"{name}/kernel"] + self.t[f"{name}/bias"]

  def norm(self, x, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
    return x * self.t[f"{name}/gamma"] + self.t[f"{name}/beta"]

  @staticmethod
  def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

  def attention(self, x, same, name):
    heads = self.c.num_heads

    def split(part):
      y = self.linear(x, f"{name}/self/{part}")
      return y.reshape(*y.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    q, k, v = split("query"), split("key"), split("value")
    logits = q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1])
    logits = np.where(same[:, None], logits, -1e9)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = (weights / weights.sum(-1, keepdims=True)) @ v
    mixed = mixed.transpose(0, 2, 1, 3).reshape(x.shape)
    return self.linear(mixed, f"{name}/output/dense")

  def hidden(self, batch, token_types):
    name = "bert/embeddings"
    x = self.t[f"{name}/word_embeddings"][batch["tokens"]]
    x = x + self.t[f"{name}/position_embeddings"][batch["positions"]]
    x = x + self.t[f"{name}/token_type_embeddings"][token_types]
    x = self.norm(x, f"{name}/LayerNorm")
    segments = batch["segment_ids"]
    same = segments[:, :, None] == segments[:, None, :]
    for layer in range(self.c.num_layers):
      name = f"bert/encoder/layer_{layer}"
      x = self.norm(
        x + self.attention(x, same, f"{name}/attention"),
        f"{name}/attention/output/LayerNorm",
      )
      inner = self.gelu(self.linear(x, f"{name}/intermediate/dense"))
      x = self.norm(
        x + self.linear(inner, f"{name}/output/dense"),
        f"{name}/output/LayerNorm",
      )
    return x

  def logits(self, batch, token_types):
    x = self.hidden(batch, token_types)
    x = np.take_along_axis(x, batch["target_positions"][..., None], axis=1)
    x = self.gelu(self.linear(x, "cls/predictions/transform/dense"))
    x = self.norm(x, "cls/predictions/transform/LayerNorm")
    table = self.t["bert/embeddings/word_embeddings"]
    return x @ table.T + self.t["cls/predictions/output_bias"]


def test_post_norm_is_the_original_bert_on_its_published_tensors():
  config = dataclasses.replace(TINY, pooler=True)
  tensors = published_tensors(config)
  model = BertMaskedLM(config)
  params = jax.device_put(read_tensors(model, tensors))
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  same = jax.tree.map(lambda x, y: x.shape == y.shape, params, nn.unbox(shapes))
  assert all(jax.tree.leaves(same))

  types = np.tile(np.arange(12) % 2, (2, 1)).astype(np.int32)
  batch = make_batch() | {"token_types": types}
  logits = logits_of(model, params, batch)
  original = OriginalBert(tensors, config)
  expected = original.logits(batch, types)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)

  def pool(module, batch):
    return module.pool(module.encode(batch, full_path(3), None))

  pooled = jax.jit(functools.partial(model.module.apply, method=pool))(
    {"params": params}, batch
  )
  first = original.hidden(batch, types)[:, 0]
  np.testing.assert_allclose(
    pooled, np.tanh(original.linear(first, "bert/pooler/dense")), atol=1e-5
  )


def test_a_missing_published_tensor_is_named():
  tensors = published_tensors(TINY)
  del tensors["bert/encoder/layer_1/output/dense/bias"]
  with pytest.raises(ValueError, match=r"layer\.1\.output\.dense\.bias"):
    read_tensors(BertMaskedLM(TINY), tensors)


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"num_layers": 2}, r"no place for the tensors .*layer\.2\."),
    ({"vocab_size": 51}, r"word.*\[50, 16\], expected \[51, 16\]"),
    ({"max_length": 11}, r"position.*\[12, 16\], expected \[11, 16\]"),
    ({"norm": "pre"}, "norm = 'pre'"),
  ],
)
def test_another_model_than_the_published_one_is_refused(changes, told):
  tensors = published_tensors(TINY)
  with pytest.raises(ValueError, match=told):
    read_tensors(BertMaskedLM(dataclasses.replace(TINY, **changes)), tensors)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_nothing_passes_between_packed_segments(norm):
  config = dataclasses.replace(TINY, norm=norm)
  model = BertMaskedLM(config)
  params = make_params(config)
  batch = make_batch()  # Targets are in the first segment, tokens 0 to 5.

  def logits(tokens):
    return logits_of(model, params, batch | {"tokens": tokens})

  other = batch["tokens"].copy()
  other[:, 6:] = 7
  np.testing.assert_array_equal(logits(batch["tokens"]), logits(other))
  other = batch["tokens"].copy()
  other[:, 5] = (other[:, 5] + 1) % 50
  assert not np.allclose(logits(batch["tokens"]), logits(other))


def test_loss_counts_weighted_targets_alone():
  model, params, batch = BertMaskedLM(TINY), make_params(TINY), make_batch()
  loss, metrics = loss_fn(model, params, batch, FULL, None)
  assert metrics["weight"] == 4
  changed = batch | {"targets": batch["targets"].copy()}
  changed["targets"][:, 2] = 9  # Weight 0.
  assert loss_fn(model, params, changed, FULL, None)[0] == loss
  scores = jax.jit(model.score_batch)(params, batch, FULL)
  assert scores.shape == (2,)
  np.testing.assert_allclose(-scores.sum(), loss, rtol=1e-5)


def test_microbatches_add_up():
  model, params, batch = BertMaskedLM(TINY), make_params(TINY), make_batch()
  whole = loss_fn(model, params, batch, FULL, None)[1]
  parts = [
    loss_fn(
      model, params, {k: v[i : i + 1] for k, v in batch.items()}, FULL, None
    )[1]
    for i in range(2)
  ]
  for name, value in whole.items():
    np.testing.assert_allclose(
      value, parts[0][name] + parts[1][name], rtol=1e-5
    )


def test_a_sequence_longer_than_the_positions_is_an_error():
  batch = jax.device_put(make_batch(length=13))
  with pytest.raises(ValueError, match=r"13 tokens.*max_length = 12"):
    BertMaskedLM(TINY).loss_fn(make_params(TINY), batch, FULL, None)


def test_dropout_needs_a_key_and_a_rate():
  config = dataclasses.replace(TINY, dropout_rate=0.5)
  params, batch = make_params(config), make_batch()

  def loss(config, key):
    return loss_fn(BertMaskedLM(config), params, batch, FULL, key)[0]

  key = jax.random.key(1)
  assert loss(config, None) == loss(TINY, key) == loss(TINY, None)
  assert loss(config, key) != loss(config, None)
  assert loss(config, key) == loss(config, key)
  assert loss(config, key) != loss(config, jax.random.key(2))


def test_bfloat16_computes_near_float32_from_float32_parameters():
  config = dataclasses.replace(TINY, dtype="bfloat16")
  params, batch = make_params(config), make_batch()
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
  wide = loss_fn(BertMaskedLM(TINY), params, batch, FULL, None)[0]
  narrow = loss_fn(BertMaskedLM(config), params, batch, FULL, None)[0]
  assert narrow.dtype == jnp.float32
  np.testing.assert_allclose(narrow, wide, rtol=2e-2)
  assert narrow != wide


def test_logical_axes_name_every_dimension():
  boxed = jax.eval_shape(BertMaskedLM(TINY).init, jax.random.key(0))
  for path, leaf in jax.tree_util.tree_leaves_with_path(
    boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  ):
    assert len(leaf.names) == leaf.value.ndim, path
    stacked = "layers" in jax.tree_util.keystr(path)
    assert (leaf.names[0] == "layers") == stacked


@pytest.mark.parametrize(
  ("field", "value"),
  [("norm", "mid"), ("activation", "relu6"), ("dtype", "int8"),
   ("remat", "half"), ("num_heads", 3)],
)  # fmt: skip
def test_errors_name_value_and_binding(field, value):
  with pytest.raises(ValueError, match=rf"BertConfig.{field} = '?{value}'?"):
    dataclasses.replace(TINY, **{field: value})
