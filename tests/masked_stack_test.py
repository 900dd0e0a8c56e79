import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.contracts import LayerDraw
from raptr_jax.execution import as_executed
from raptr_jax.models import layers
from raptr_jax.models.bert import BertBlock, BertConfig
from raptr_jax.models.masked_stack import MaskedStack, full_path

L, B, T, D = 8, 2, 6, 16


def config(**overrides) -> BertConfig:
  return BertConfig(
    vocab_size=10,
    num_layers=L,
    embed_dim=D,
    num_heads=2,
    layer_norm_epsilon=1e-6,
    init_stddev=0.3,
    **{"dropout_rate": 0.0, "norm": "pre"} | overrides,
  )


def make_stack(**overrides):
  config_ = config(**overrides)
  stack = MaskedStack(functools.partial(BertBlock, config_), L, config_.remat)
  x = jax.random.normal(jax.random.key(1), (B, T, D))
  bias = layers.segment_bias(jnp.asarray([[1] * 4 + [2] * 2, [1] * 5 + [0]]))
  params = nn.unbox(
    stack.init(jax.random.key(0), x, full_path(L), bias, dropout_key=None)
  )
  return stack, params, x, bias


def plain(params, x, draw, bias, *, block, dropout_key):
  """The reference: a Python loop over the kept layers."""

  @jax.jit
  def run(layer, x, index, scale):
    rngs = {"dropout": jax.random.fold_in(dropout_key, index)}
    variables = {"params": layer}
    return block.apply(
      variables, x, scale, bias, deterministic=False, rngs=rngs
    )

  for index in np.flatnonzero(draw.mask):
    layer = jax.tree.map(lambda p, i=index: p[i], params["params"]["layers"])
    x = run(layer, x, index, draw.scale[index])
  return x


def random_draw(seed: int) -> LayerDraw:
  rng = np.random.default_rng(seed)
  mask = rng.random(L) < 0.6
  scale = np.where(mask, rng.uniform(0.5, 2.0, L), 0).astype(np.float32)
  return LayerDraw(mask, scale)


@pytest.mark.parametrize("execution", ["gather", "cond"])
def test_a_path_without_layers_is_the_identity(execution):
  stack, params, x, bias = make_stack()
  empty = as_executed(np.zeros(L, bool), np.zeros(L, np.float32), execution)

  def apply(params):
    return stack.apply(params, x, empty, bias, dropout_key=None)

  np.testing.assert_array_equal(apply(params), x)
  grads = jax.grad(lambda params: apply(params).sum())(params)
  assert not any(np.any(g) for g in jax.tree.leaves(grads))


def loss(out):
  return (out * jnp.cos(jnp.arange(D))).sum(), out


def assert_close(got, expected):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_cond_gather_and_a_plain_loop_agree(norm, remat):
  stack, params, x, bias = make_stack(norm=norm, remat=remat, dropout_rate=0.2)
  block = BertBlock(config(norm=norm, dropout_rate=0.2))
  key = jax.random.key(7)

  @jax.jit
  def run(params, x, form):
    def apply(params, x):
      return loss(stack.apply(params, x, form, bias, dropout_key=key))

    return jax.grad(apply, (0, 1), has_aux=True)(params, x)

  for seed in range(3):
    draw = random_draw(seed)
    expected = jax.grad(
      lambda p, x, draw=draw: loss(
        plain(p, x, draw, bias, block=block, dropout_key=key)
      ),
      (0, 1),
      has_aux=True,
    )(params, x)
    for execution in ("cond", "gather"):
      form = as_executed(draw.mask, draw.scale, execution)
      assert_close(run(params, x, form), expected)


@pytest.mark.parametrize("execution", ["cond", "gather"])
def test_gradients_of_skipped_layers_are_exactly_zero(execution):
  stack, params, x, bias = make_stack()
  draw = random_draw(3)
  form = as_executed(draw.mask, draw.scale, execution)

  @jax.jit
  def gradient(params):
    return jax.grad(
      lambda p: loss(stack.apply(p, x, form, bias, dropout_key=None))[0]
    )(params)

  grads = gradient(params)
  for grad in jax.tree.leaves(grads):
    rows = np.abs(np.asarray(grad)).reshape(L, -1).max(axis=1)
    assert (rows[~draw.mask] == 0).all()
    assert (rows[draw.mask] > 0).all()


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_an_empty_path_is_the_identity(norm):
  stack, params, x, bias = make_stack(norm=norm)
  nothing = np.zeros(L, bool)
  for execution in ("cond", "gather"):
    form = as_executed(nothing, np.zeros(L, np.float32), execution)
    out = stack.apply(params, x, form, bias, dropout_key=None)
    np.testing.assert_array_equal(out, x)


def test_cond_is_one_program_with_a_conditional_and_gather_one_a_length():
  stack, params, x, bias = make_stack()
  traces = []

  @jax.jit
  def run(params, x, form):
    traces.append(jax.tree.map(jnp.shape, form))
    return stack.apply(params, x, form, bias, dropout_key=None)

  draws = [random_draw(seed) for seed in range(6)]
  for draw in draws:
    run(params, x, as_executed(draw.mask, draw.scale, "cond"))
  assert len(traces) == 1
  text = run.lower(params, x, draws[0]).compile().as_text()
  assert " conditional(" in text

  traces.clear()
  for draw in draws:
    run(params, x, as_executed(draw.mask, draw.scale, "gather"))
  assert len(traces) == len({int(draw.mask.sum()) for draw in draws})
  path = as_executed(draws[0].mask, draws[0].scale, "gather")
  assert " conditional(" not in run.lower(params, x, path).compile().as_text()


def compiled_gradient(length: int, remat: str, rows=16, tokens=32):
  stack, params, _, _ = make_stack(remat=remat)
  x = jnp.ones((rows, tokens, D))
  bias = jnp.zeros((rows, 1, tokens, tokens))
  mask = np.arange(L) < length
  form = as_executed(mask, mask.astype(np.float32), "gather")

  def loss(params):
    return stack.apply(params, x, form, bias, dropout_key=None).sum()

  return jax.jit(jax.grad(loss)).lower(params).compile()


def test_memory_of_a_short_path_is_that_of_its_layers():
  short, full = (
    compiled_gradient(k, "none").memory_analysis().temp_size_in_bytes
    for k in (L // 4, L)
  )
  assert short < 0.45 * full


def test_no_layers_parameters_are_kept_for_the_backward_pass():
  full, none = (
    compiled_gradient(L, remat, rows=1, tokens=2)
    .memory_analysis()
    .temp_size_in_bytes
    for remat in ("full", "none")
  )
  params = make_stack()[1]
  size = sum(p.nbytes for p in jax.tree.leaves(params))
  assert none < full + 0.5 * size


def loop_products(length: int) -> int:
  """How often the loops of a program run: its work is in their bodies."""
  text = compiled_gradient(length, "full").as_text()
  return text.count(f'"known_trip_count":{{"n":"{length}"}}')


def test_the_program_of_k_layers_loops_k_times():
  for length in (2, 5):
    assert loop_products(length) == 2  # Forward and backward.


def test_dropout_differs_between_layers_and_keys():
  stack, params, x, bias = make_stack(dropout_rate=0.5)
  one = jax.tree.map(lambda p: jnp.broadcast_to(p[:1], p.shape), params)
  path = as_executed(np.arange(L) == 0, np.ones(L, np.float32), "gather")
  other = as_executed(np.arange(L) == 1, np.ones(L, np.float32), "gather")

  def run(path, seed):
    key = jax.random.key(seed)
    return np.asarray(stack.apply(one, x, path, bias, dropout_key=key))

  assert not np.allclose(run(path, 0), run(other, 0))
  assert not np.allclose(run(path, 0), run(path, 1))
  np.testing.assert_array_equal(run(path, 0), run(path, 0))
