"""Bypassing all layers at once is the same as one by one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.contracts import LayerDraw
from raptr_jax.theory import lemma, trained_gap
from tests.toy import LAYERS, ToyDataset, make_model

DEPTH, WIDTH, INPUTS = 5, 16, 3


def network(depth=DEPTH):
  key = jax.random.key(0)
  return lemma.random_network(key, depth=depth, width=WIDTH, inputs=INPUTS)


def run(form, weights, y, bypassed=None):
  """One layer after the other, with NumPy's products in float64."""
  weights, y = np.asarray(weights, float), np.asarray(y, float)
  for layer, weight in enumerate(weights):
    if layer == bypassed:
      continue
    z = y
    if form.norm:
      z = (y - y.mean(-1, keepdims=True)) / y.std(-1, keepdims=True)
    y = y + z @ weight if form.residual else z @ weight
  return y


@pytest.mark.parametrize("form", lemma.FORMS.values(), ids=lemma.FORMS)
def test_all_layers_at_once_are_the_plain_loop(form, monkeypatch):
  monkeypatch.setattr(lemma, "BLOCK", 2)  # The last block is shorter.
  weights, x = network()
  full = run(form, weights, x)
  expected = [
    np.linalg.norm(run(form, weights, x, layer) - full, axis=-1)
    / np.linalg.norm(full, axis=-1)
    for layer in range(DEPTH)
  ]
  psi = lemma.bypass_changes(form, weights, x)
  assert psi.shape == (DEPTH, INPUTS)
  np.testing.assert_allclose(psi, expected, rtol=1e-4)


def test_a_residual_layer_without_weights_changes_nothing():
  weights, x = network()
  weights = weights.at[2].set(0.0)
  for name in ("residual + LN", "residual only"):
    psi = np.asarray(lemma.bypass_changes(lemma.FORMS[name], weights, x))
    assert np.all(psi[2] == 0)
    assert np.all(psi[[0, 1, 3, 4]] > 0)


def test_linear_networks_stay_in_the_range_of_float32():
  weights = jnp.broadcast_to(0.5 * jnp.eye(WIDTH), (250, WIDTH, WIDTH))
  _, x = network()  # The output is 1.5^250 x = 1e44 x.
  psi = lemma.bypass_changes(lemma.FORMS["residual only"], weights, x)
  np.testing.assert_allclose(psi, 1 / 3, rtol=1e-3)


def test_networks_of_two_depths_share_no_weights():
  key = jax.random.key(1)
  psi = lemma.measure(key, depth=3, width=WIDTH, inputs=INPUTS)["neither"]
  fewer = lemma.measure(key, depth=2, width=WIDTH, inputs=INPUTS)["neither"]
  assert psi.shape == (3,)
  assert not np.any(np.isclose(psi[:-1], fewer))


def test_the_wide_limit_with_both_is_the_mean_of_inverse_roots():
  form = lemma.FORMS["residual + LN"]
  assert form.wide_limit(2) == pytest.approx((2**-0.5 + 3**-0.5) / 2)
  assert form.wide_limit(10**6) == pytest.approx(2e-3, rel=2e-3)


def test_a_power_law_gives_its_exponents():
  depths = np.array([4, 8, 16, 64])
  laws = np.array([-0.5, 0.0, 1.25])
  gaps = 3 * depths[:, None] ** laws
  np.testing.assert_allclose(
    lemma.fit_exponents(depths, gaps), laws, atol=1e-12
  )
  with pytest.raises(ValueError, match="at least two"):
    lemma.fit_exponents([4], gaps[:1])


MODEL = make_model()
PARAMS = nn.unbox(MODEL.init(jax.random.key(0)))
BATCHES = [batch for _, batch in zip(range(2), ToyDataset().batches(0))]


def without_branches(params, layer):
  """The layer's two branches end in products with zero."""

  def change(path, x):
    names = {key.key for key in path}
    last = "layers" in names and names & {"out", "wo"}
    return x.at[layer].set(0.0) if last else x

  return jax.tree_util.tree_map_with_path(change, params)


def test_a_layer_that_adds_nothing_has_no_gap():
  effect = trained_gap.measure(MODEL, without_branches(PARAMS, 1), BATCHES)
  others = [0, 2, 3]
  assert effect.psi[1] == effect.loss_change[1] == 0
  assert np.all(effect.psi[others] > 0)
  assert np.all(effect.loss_change[others] != 0)


def test_effects_are_those_of_the_model_on_all_batches():
  effect = trained_gap.measure(MODEL, PARAMS, BATCHES)

  @jax.jit
  def loss(batch, mask):
    draw = LayerDraw(mask, jnp.ones(LAYERS))
    return MODEL.loss_fn(PARAMS, batch, {"stack": draw}, None)[0]

  targets = sum(batch["target_weights"].sum() for batch in BATCHES)
  masks = np.concatenate([np.ones((1, LAYERS)), 1 - np.eye(LAYERS)]) > 0
  full, *bypassed = (
    sum(float(loss(batch, mask)) for batch in BATCHES) / targets
    for mask in masks
  )
  assert effect.loss == pytest.approx(full, rel=1e-6)
  np.testing.assert_allclose(
    effect.loss_change, np.array(bypassed) - full, atol=1e-5
  )
  assert effect.loss_gap == pytest.approx(np.mean(bypassed) - full, abs=1e-5)


def test_padding_does_not_count():
  batch = BATCHES[0]
  real = np.arange(len(batch["tokens"]))[:, None] < 2
  padded = {
    **batch,
    "segment_ids": batch["segment_ids"] * real,
    "target_weights": batch["target_weights"] * real,
  }
  repeated = {name: np.concatenate([x[:2]] * 4) for name, x in batch.items()}
  effect = trained_gap.measure(MODEL, PARAMS, [padded])
  expected = trained_gap.measure(MODEL, PARAMS, [repeated])
  np.testing.assert_allclose(effect.psi, expected.psi, rtol=1e-5)
  assert effect.loss == pytest.approx(expected.loss, rel=1e-5)


def test_no_batches_are_named():
  with pytest.raises(ValueError, match="no batches"):
    trained_gap.measure(MODEL, PARAMS, [])
