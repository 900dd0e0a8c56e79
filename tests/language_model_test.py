"""What holds for language models of all families."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.models.masked_stack import full_paths
from raptr_jax.training.partitioning import Partitioner
from tests import families

pytestmark = pytest.mark.parametrize("family", families.FAMILIES)


ROWS = (families.PAIRS, families.PAIRS[::-1])


def likelihoods(family, rows):
  """Of the targets of each row, by hand from the logits, one after another."""
  model = families.make_model(family)
  batch = families.make_batch(model, rows)
  params, paths = families.random_params(model), full_paths(model.stacks)
  logits = np.asarray(families.logits(model, params, batch, paths), np.float64)
  likelihood = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  told = np.take_along_axis(likelihood, batch["targets"][..., None], axis=-1)
  return [
    row[keep] for row, keep in zip(told[..., 0], batch["target_weights"] > 0)
  ]


def test_packed_examples_have_the_loss_that_they_have_alone(family):
  first, second = families.PAIRS
  packed = likelihoods(family, [[first, second], [second, first]])
  alone = likelihoods(family, [[first], [second]])
  np.testing.assert_allclose(packed[0], np.concatenate(alone), rtol=1e-4)
  np.testing.assert_allclose(packed[1], np.concatenate(alone[::-1]), rtol=1e-4)


def loss(family, *, key=None, **overrides):
  """Loss and metrics of one batch, with the parameters of the plain model."""
  params = families.random_params(families.make_model(family))
  model = families.make_model(family, **overrides)
  batch, paths = families.make_batch(model), full_paths(model.stacks)
  return families.loss_fn(model, params, batch, paths, key)


def test_loss_and_scores_are_sums_of_log_softmax(family):
  model = families.make_model(family)
  batch = families.make_batch(model)
  by_hand = [row.sum() for row in likelihoods(family, ROWS)]
  objective, metrics = loss(family)
  np.testing.assert_allclose(objective, -np.sum(by_hand), rtol=1e-5)
  assert metrics["loss"] == objective
  assert metrics["weight"] == batch["target_weights"].sum() == 12
  scores = jax.jit(model.score_batch)(
    families.random_params(model), batch, full_paths(model.stacks)
  )
  np.testing.assert_allclose(scores, by_hand, rtol=1e-5)


def test_what_is_minimised_leaves_the_metrics_alone(family):
  plain, metrics = loss(family)
  objective, same = loss(
    family, z_loss=0.1, label_smoothing=0.1, logits_chunk=None
  )
  for name, value in metrics.items():
    np.testing.assert_allclose(same[name], value, rtol=1e-5)
  assert objective > plain + 0.1


def test_dropout_needs_a_key_and_a_rate(family):
  plain = loss(family)[0]
  dropped = functools.partial(loss, family, dropout_rate=0.3)
  np.testing.assert_allclose(dropped()[0], plain, rtol=1e-6)
  values = [dropped(key=jax.random.key(seed))[0] for seed in (1, 1, 2)]
  assert values[0] == values[1]
  assert len({float(value) for value in [*values, plain]}) == 3


def test_bfloat16_computes_near_float32(family):
  wide = loss(family)[0]
  narrow = loss(family, dtype="bfloat16")[0]
  assert narrow.dtype == jnp.float32
  np.testing.assert_allclose(narrow, wide, rtol=5e-2)
  assert narrow != wide


def test_logits_have_about_unit_variance_at_first(family):
  model = families.make_model(family, embed_dim=64)
  params = families.fresh_params(model)
  batch, paths = families.make_batch(model), full_paths(model.stacks)
  logits = families.logits(model, params, batch, paths)
  assert logits.std() == pytest.approx(1, rel=0.2)


def test_logical_axes_name_every_dimension(family):
  boxed = jax.eval_shape(families.make_model(family).init, jax.random.key(0))
  for path, leaf in jax.tree_util.tree_leaves_with_path(
    boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  ):
    assert len(leaf.names) == leaf.value.ndim, path
    stacked = "layers" in jax.tree_util.keystr(path)
    assert (leaf.names[0] == "layers") == stacked


def test_a_model_can_be_split_over_devices(family):
  model = families.make_model(family)
  boxed = jax.eval_shape(model.init, jax.random.key(0))
  sharding = Partitioner(tensor=2).state_sharding(boxed)
  split = jax.device_put(families.random_params(model), sharding)
  specs = {
    jax.tree_util.keystr(path, simple=True, separator="/"): x.sharding.spec
    for path, x in jax.tree_util.tree_leaves_with_path(split)
  }
  whole = {name for name, spec in specs.items() if "tensor" not in spec}
  # A head of keys and values may serve heads of several devices.
  assert all("norm" in name or "key_value" in name for name in whole)
  assert any("attention/query" in name for name in specs.keys() - whole)
