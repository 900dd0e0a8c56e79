"""BERT with a head for labels."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.contracts import LayerPath
from raptr_jax.models.bert import BertConfig, BertMaskedLM
from raptr_jax.models.bert_heads import (
  BertClassifier,
  BertRegressor,
  BertSpanFinder,
)
from raptr_jax.models.masked_stack import full_paths

CONFIG = BertConfig(
  vocab_size=40, num_layers=4, embed_dim=16, num_heads=2, max_length=12
)
MODELS = {
  "class": BertClassifier(CONFIG, num_classes=3),
  "number": BertRegressor(CONFIG),
  "span": BertSpanFinder(CONFIG),
}


def make_batch(kind, sizes=(6, 9, 12), length=12, seed=0):
  rng = np.random.default_rng(seed)
  count = len(sizes)
  used = (np.arange(length) < np.array(sizes)[:, None]).astype(np.int32)
  places = np.arange(length, dtype=np.int32)
  targets = {
    "class": rng.integers(3, size=(count, 1)).astype(np.int32),
    "number": rng.random((count, 1)).astype(np.float32),
    "span": np.array([[1, 2]] * count, np.int32),
  }[kind]
  batch = {
    "tokens": rng.integers(5, 40, (count, length)).astype(np.int32) * used,
    "segment_ids": used,
    "positions": places * used,
    "token_types": (places > 4).astype(np.int32) * used,
    "targets": targets,
    "target_weights": np.ones(targets.shape, np.float32),
  }
  return jax.tree.map(jnp.asarray, batch)


@pytest.fixture(scope="module", params=MODELS)
def kind(request):
  return request.param


@pytest.fixture(scope="module")
def params(kind):
  return nn.unbox(MODELS[kind].init(jax.random.key(1)))


def test_the_encoder_is_that_of_the_pretrained_model(kind, params):
  pretrained = jax.eval_shape(BertMaskedLM(CONFIG).init, jax.random.key(0))
  shapes = jax.tree.map(jnp.shape, params)
  theirs = jax.tree.map(jnp.shape, nn.unbox(pretrained))
  own = {"label_head"} | ({"pooler"} if kind != "span" else set())
  shared = shapes.keys() - own
  assert {name: shapes[name] for name in shared} == {
    name: part for name, part in theirs.items() if "head" not in name
  }


def test_the_loss_is_the_sum_over_targets(kind, params):
  model, batch = MODELS[kind], make_batch(kind)
  paths = full_paths(model.stacks)
  loss, metrics = model.loss_fn(params, batch, paths, None)
  outputs = np.asarray(model.predict(params, batch, paths), np.float64)
  if kind == "class":
    chances = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(chances, batch["targets"], 1)).sum()
  elif kind == "number":
    expected = ((outputs - batch["targets"]) ** 2).sum()
  else:
    weights = np.exp(outputs) * batch["segment_ids"][..., None]
    chances = weights / weights.sum(1, keepdims=True)
    expected = -np.log(chances[:, 1, 0] * chances[:, 2, 1]).sum()
  assert float(loss) == pytest.approx(float(expected), rel=1e-5)
  assert float(metrics["weight"]) == batch["targets"].size
  scores = model.score_batch(params, batch, paths)
  assert float(scores.sum()) == pytest.approx(-float(expected), rel=1e-5)


def test_rows_and_padding_do_not_matter_to_others(kind, params):
  model, batch = MODELS[kind], make_batch(kind)
  paths = full_paths(model.stacks)
  whole = model.predict(params, batch, paths)
  alone = {name: x[:1] for name, x in batch.items()}
  alone |= {
    name: alone[name][:, :6]
    for name in ("tokens", "segment_ids", "positions", "token_types")
  }
  found = model.predict(params, alone, paths)
  expected = whole[:1] if kind != "span" else whole[:1, :6]
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_skipped_layers_have_no_gradient(kind, params):
  model, batch = MODELS[kind], make_batch(kind)
  path = {"stack": LayerPath(np.array([0, 2, 3], np.int32), np.ones(3, "f4"))}
  loss = lambda p: model.loss_fn(p, batch, path, None)[0]  # noqa: E731
  for leaf in jax.tree.leaves(jax.grad(loss)(params)["stack"]):
    assert not np.any(leaf[1])
    assert np.any(leaf[0]) and np.any(leaf[3])


def test_a_weight_of_zero_leaves_an_example_out(kind, params):
  model, batch = MODELS[kind], make_batch(kind)
  paths = full_paths(model.stacks)
  weights = batch["target_weights"] * jnp.array([[1.0], [0.0], [1.0]])
  left = {**batch, "target_weights": weights}
  some = {name: x[np.array([0, 2])] for name, x in batch.items()}
  found, _ = model.loss_fn(params, left, paths, None)
  expected, _ = model.loss_fn(params, some, paths, None)
  assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_dropout_reaches_the_head():
  config = dataclasses.replace(
    CONFIG, dropout_rate=0.5, attention_dropout_rate=0.0
  )
  model, batch = BertClassifier(config), make_batch("number")
  batch = {**batch, "targets": jnp.zeros((3, 1), jnp.int32)}
  params = nn.unbox(model.init(jax.random.key(1)))
  paths = full_paths(model.stacks)
  losses = {
    float(model.loss_fn(params, batch, paths, key)[0])
    for key in (None, jax.random.key(0), jax.random.key(1))
  }
  assert len(losses) == 3
