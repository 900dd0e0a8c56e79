"""Types and kernels of a computation, in every family of models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from raptr_jax.models.masked_stack import full_paths
from tests import families, toy

MIXED = {"dtype": "bfloat16", "residual_dtype": "float32"}
FAMILIES = ("decoder", "encoder_decoder", "bert", "post-norm bert")


def make(family, **overrides):
  """A model, and a batch for it."""
  if family in families.FAMILIES:
    model = families.make_model(family, **overrides)
    batch = families.make_batch(model)
  else:
    norm = "post" if "post" in family else "pre"
    model = toy.make_model(norm=norm, dropout_rate=0.0, **overrides)
    batch = next(toy.ToyDataset().batches(0))
  return model, jax.tree.map(jnp.asarray, batch)


def loss_of(family, **overrides):
  """The loss as a function of parameters, and float32 parameters."""
  model, batch = make(family, **overrides)
  draws = full_paths(model.stacks)
  params = families.random_params(make(family)[0])
  return lambda p: model.loss_fn(p, batch, draws, None)[0], params


def equations(jaxpr):
  """All operations of a program, inner ones included."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jaxprs_in_params(equation.params):
      yield from equations(inner)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wide_residual_leaves_products_narrow(family):
  loss, params = loss_of(family, **MIXED)
  program = jax.make_jaxpr(jax.grad(loss))(params)
  found = list(equations(program.jaxpr))
  products = [e for e in found if e.primitive.name == "dot_general"]
  assert len(products) > 10
  for product in products:
    assert {x.aval.dtype.name for x in product.invars} == {"bfloat16"}
  # Loops carry the residual.
  loops = [e for e in found if e.primitive.name == "scan"]
  carried = {
    x.aval.dtype.name
    for loop in loops
    for x in loop.outvars[: loop.params["num_carry"]]
    if x.aval.ndim == 3
  }
  assert "float32" in carried


@pytest.mark.parametrize("family", ["decoder", "post-norm bert"])
def test_a_wide_residual_is_nearer_to_float32(family):
  def error(**overrides):
    loss, params = loss_of(family, **overrides)
    exact, _ = loss_of(family)
    grads = [jax.jit(jax.grad(f))(params) for f in (loss, exact)]
    difference, size = (
      sum(jnp.square(x).sum() for x in jax.tree.leaves(tree))
      for tree in (jax.tree.map(jnp.subtract, *grads), grads[1])
    )
    return float(difference / size)

  assert error(**MIXED) < error(dtype="bfloat16")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernel_of_attention_is_a_choice(monkeypatch, family):
  monkeypatch.setattr("raptr_jax.models.attention.CHUNK", 4)
  # Halved: T5's logits are not scaled, and a softmax of large ones amplifies
  # the rounding of their products.
  got, expected = (
    jax.jit(jax.grad(loss))(jax.tree.map(lambda x: x / 2, params))
    for loss, params in (
      loss_of(family, attention_kernel=kernel)
      for kernel in ("chunked", "plain")
    )
  )
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_of_attention_alone(family):
  model, batch = make(family, attention_dropout_rate=0.5)
  params = families.random_params(make(family)[0])
  draws = full_paths(model.stacks)

  @jax.jit
  def loss(key):
    return model.loss_fn(params, batch, draws, key)[0]

  assert loss(jax.random.key(0)) != loss(jax.random.key(1))


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("attention_kernel", "flash"),
    ("residual_dtype", "float16"),
    ("dtype", "int8"),
    ("remat", "half"),
  ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_choice_is_refused(family, field, value):
  with pytest.raises(ValueError, match=f"Config.{field} = '{value}'"):
    make(family, **{field: value})
