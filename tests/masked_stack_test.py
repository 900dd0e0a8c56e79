import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from raptr_jax.contracts import LayerDraw, LayerPath
from raptr_jax.methods.draws import as_executed
from raptr_jax.models.bert import BertBlock, BertConfig
from raptr_jax.models.masked_stack import MaskedStack, full_path
from raptr_jax.models.masks import Mask
from raptr_jax.models.remat import POLICIES
from raptr_jax.training.partitioning import Partitioner

L, B, T, D = 8, 2, 6, 16
DROPOUT_KEY = jax.random.key(7)


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


def on_cpu(function):
  """The function, traced for a CPU: without remat, layers are laid out."""
  return Partitioner(devices=jax.devices()[:1]).on_mesh(function)


def anywhere(function):
  """The function, traced without knowing the device."""
  return function


@functools.cache
def make_stack(**overrides):
  config_ = config(**overrides)
  stack = MaskedStack(functools.partial(BertBlock, config_), L, config_.remat)
  x = jax.random.normal(jax.random.key(1), (B, T, D))
  segment_ids = jnp.asarray([[1] * 4 + [2] * 2, [1] * 5 + [0]])
  mask = Mask(segment_ids, segment_ids)
  init = jax.jit(functools.partial(stack.init, dropout_key=None))
  params = nn.unbox(init(jax.random.key(0), x, full_path(L), mask))
  return stack, params, x, mask


@functools.partial(jax.jit, static_argnums=0)
def run_layer(block, layer, x, mask, index, scale):
  return block.apply(
    {"params": layer},
    x,
    scale,
    mask,
    deterministic=False,
    rngs={"dropout": jax.random.fold_in(DROPOUT_KEY, index)},
  )


def plain(block, params, x, draw, mask):
  """The reference: a Python loop over the kept layers."""
  for index in np.flatnonzero(draw.mask):
    layer = jax.tree.map(lambda p, i=index: p[i], params["params"]["layers"])
    x = run_layer(block, layer, x, mask, index, draw.scale[index])
  return x


def as_form(draw: LayerDraw, execution: str):
  """The draw as this execution takes it."""
  return as_executed({"stack": draw}, execution)["stack"]


def unscaled(mask) -> LayerDraw:
  return LayerDraw(mask, mask.astype(np.float32))


def random_draw(seed: int) -> LayerDraw:
  rng = np.random.default_rng(seed)
  mask = rng.random(L) < 0.6
  scale = np.where(mask, rng.uniform(0.5, 2.0, L), 0).astype(np.float32)
  return LayerDraw(mask, scale)


def with_free_slots(path: LayerPath, slots: int) -> LayerPath:
  """The path in a larger program, with nonsense in the slots without layer."""
  free = (0, slots - len(path.indices))
  return LayerPath(
    np.pad(path.indices, free, constant_values=L - 1),
    np.pad(path.scale, free, constant_values=np.nan),
    np.arange(slots) < len(path.indices),
  )


@pytest.mark.parametrize("execution", ["gather", "cond"])
def test_a_path_without_layers_is_the_identity(execution):
  stack, params, x, mask = make_stack()
  empty = as_form(unscaled(np.zeros(L, bool)), execution)

  @jax.jit
  def output_and_gradient(params):
    def apply(params):
      out = stack.apply(params, x, empty, mask, dropout_key=None)
      return out.sum(), out

    grads, out = jax.grad(apply, has_aux=True)(params)
    return out, grads

  out, grads = output_and_gradient(params)
  np.testing.assert_array_equal(out, x)
  assert not any(np.any(g) for g in jax.tree.leaves(grads))


def loss(out):
  return (out * jnp.cos(jnp.arange(D))[None, None]).sum(), out


def assert_close(got, expected):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@functools.cache
def plain_gradient(norm, seed):
  """Gradients and output of the reference, which knows of no remat."""
  _, params, x, mask = make_stack(norm=norm, dropout_rate=0.2)
  block = BertBlock(config(norm=norm, dropout_rate=0.2))

  def apply(params, x):
    return loss(plain(block, params, x, random_draw(seed), mask))

  return jax.grad(apply, (0, 1), has_aux=True)(params, x)


@pytest.mark.parametrize(
  ("norm", "remat", "place"),
  [
    *itertools.product(("pre", "post"), POLICIES, (anywhere,)),
    ("pre", "none", on_cpu),
  ],
)
def test_cond_gather_and_a_plain_loop_agree(norm, remat, place):
  stack, params, x, mask = make_stack(norm=norm, remat=remat, dropout_rate=0.2)

  @jax.jit
  @place
  def run(params, x, form):
    def apply(params, x):
      return loss(stack.apply(params, x, form, mask, dropout_key=DROPOUT_KEY))

    return jax.grad(apply, (0, 1), has_aux=True)(params, x)

  for seed in range(3):
    draw = random_draw(seed)
    expected = plain_gradient(norm, seed)
    for execution in ("cond", "gather"):
      form = as_form(draw, execution)
      assert_close(run(params, x, form), expected)


@pytest.mark.parametrize(
  ("norm", "remat", "place"),
  [
    ("pre", "none", anywhere),
    ("post", "full", anywhere),
    ("pre", "none", on_cpu),
  ],
)
def test_free_slots_change_no_bit(norm, remat, place):
  stack, params, x, bias = make_stack(norm=norm, remat=remat, dropout_rate=0.2)

  @jax.jit
  @place
  def run(params, x, path):
    def apply(params, x):
      return loss(stack.apply(params, x, path, bias, dropout_key=DROPOUT_KEY))

    return jax.grad(apply, (0, 1), has_aux=True)(params, x)

  some, none = random_draw(1), unscaled(np.zeros(L, bool))
  for draw, slots in ((some, L), (some, int(some.mask.sum())), (none, L)):
    path = draw.path()
    shared = with_free_slots(path, slots)
    found, expected = run(params, x, shared), run(params, x, path)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    np.testing.assert_array_equal(shared.kept_mask(L), draw.mask)


@pytest.mark.parametrize("execution", ["cond", "gather"])
def test_gradients_of_skipped_layers_are_exactly_zero(execution):
  stack, params, x, mask = make_stack()
  draw = random_draw(3)
  form = as_form(draw, execution)

  @jax.jit
  def gradient(params):
    return jax.grad(
      lambda p: loss(stack.apply(p, x, form, mask, dropout_key=None))[0]
    )(params)

  grads = gradient(params)
  for grad in jax.tree.leaves(grads):
    rows = np.abs(np.asarray(grad)).reshape(L, -1).max(axis=1)
    assert (rows[~draw.mask] == 0).all()
    assert (rows[draw.mask] > 0).all()


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_an_empty_path_is_the_identity(norm):
  stack, params, x, mask = make_stack(norm=norm)
  for execution in ("cond", "gather"):
    form = as_form(unscaled(np.zeros(L, bool)), execution)
    out = stack.apply(params, x, form, mask, dropout_key=None)
    np.testing.assert_array_equal(out, x)


def test_cond_is_one_program_with_a_conditional_and_gather_one_a_length():
  stack, params, x, mask = make_stack()
  traces = []

  @jax.jit
  def run(params, x, form):
    traces.append(jax.tree.map(jnp.shape, form))
    return stack.apply(params, x, form, mask, dropout_key=None)

  draws = [random_draw(seed) for seed in range(6)]
  for draw in draws:
    run(params, x, as_form(draw, "cond"))
  assert len(traces) == 1
  text = run.lower(params, x, draws[0]).compile().as_text()
  assert " conditional(" in text

  traces.clear()
  for draw in draws:
    run(params, x, as_form(draw, "gather"))
  assert len(traces) == len({int(draw.mask.sum()) for draw in draws})
  path = as_form(draws[0], "gather")
  assert " conditional(" not in run.lower(params, x, path).compile().as_text()
  path = with_free_slots(path, L)
  assert " conditional(" in run.lower(params, x, path).compile().as_text()


def compiled_gradient(
  length: int, remat: str, rows=16, tokens=32, place=anywhere
):
  stack, params, _, _ = make_stack(remat=remat)
  x = jnp.ones((rows, tokens, D))
  segment_ids = jnp.ones((rows, tokens), jnp.int32)
  mask = Mask(segment_ids, segment_ids)
  form = as_form(unscaled(np.arange(L) < length), "gather")

  def loss(params):
    return stack.apply(params, x, form, mask, dropout_key=None).sum()

  return jax.jit(place(jax.grad(loss))).lower(params).compile()


@pytest.mark.parametrize("place", [anywhere, on_cpu])
def test_memory_of_a_short_path_is_that_of_its_layers(place):
  short, full = (
    compiled_gradient(k, "none", place=place)
    .memory_analysis()
    .temp_size_in_bytes
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


def loops(length: int, remat: str, place=anywhere) -> int:
  """How many loops of a program run `length` times."""
  text = compiled_gradient(length, remat, place=place).as_text()
  return text.count(f'"known_trip_count":{{"n":"{length}"}}')


def test_the_program_of_k_layers_loops_k_times():
  for length in (2, 5):
    assert loops(length, "full") == 2  # Forward and backward.


def test_without_remat_a_cpu_has_no_loop():
  assert loops(5, "none") == 2
  assert loops(5, "none", on_cpu) == 0
  assert loops(5, "full", on_cpu) == 2


def test_dropout_differs_between_layers_and_keys():
  stack, params, x, mask = make_stack(dropout_rate=0.5)
  one = jax.tree.map(lambda p: jnp.broadcast_to(p[:1], p.shape), params)
  path = unscaled(np.arange(L) == 0).path()
  other = unscaled(np.arange(L) == 1).path()

  def run(path, seed):
    key = jax.random.key(seed)
    return np.asarray(stack.apply(one, x, path, mask, dropout_key=key))

  assert not np.allclose(run(path, 0), run(other, 0))
  assert not np.allclose(run(path, 0), run(path, 1))
  np.testing.assert_array_equal(run(path, 0), run(path, 0))


def products(jaxpr) -> int:
  """Matrix products in a program, those in loops once."""
  inner = (
    products(part)
    for equation in jaxpr.eqns
    for part in jaxprs_in_params(equation.params)
  )
  return sum(e.primitive.name == "dot_general" for e in jaxpr.eqns) + sum(inner)


@pytest.mark.parametrize(
  ("remat", "repeated"),
  [
    # Query, key and value; scores; mixed values; out; MLP in. Nothing needs
    # MLP out.
    ("full", 5),
    # Mixed values are kept.
    ("attention", 4),
    # Scores alone have a batch axis.
    ("products", 1),
  ],
)
@pytest.mark.parametrize("execution", ["gather", "cond"])
def test_remat_says_which_products_run_again(remat, repeated, execution):
  form = as_form(random_draw(0), execution)

  def count(remat):
    stack, params, x, mask = make_stack(remat=remat)

    def apply(params):
      return stack.apply(params, x, form, mask, dropout_key=None).sum()

    return products(jax.make_jaxpr(jax.grad(apply))(params).jaxpr)

  assert count(remat) == count("none") + repeated
