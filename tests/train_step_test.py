import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from raptr_jax.contracts import LayerDraw
from raptr_jax.models.bert import BertMaskedLM
from raptr_jax.training import optim
from raptr_jax.training.optim import Optimizer
from raptr_jax.training.state import init_state
from raptr_jax.training.train_step import train_step
from tests.toy import LAYERS, ToyDataset, make_model

KEY = jax.random.key(0)
MASK = np.asarray([True, False, False, True])
DRAWS = {"stack": LayerDraw(MASK, MASK.astype(np.float32)).path()}


OPTIMIZER = optim.adamw(learning_rate=lambda step: 1e-2, clip_norm=None)


@functools.cache
def fresh_state():
  init = functools.partial(init_state, model=make_model(), optimizer=OPTIMIZER)
  return nn.unbox(jax.jit(init)(KEY))


@functools.cache
def compiled(step):
  """The same jitted function whenever it is asked for."""
  return jax.jit(step)


@functools.cache
def step_of(dropout_rate):
  return functools.partial(
    train_step,
    model=make_model(dropout_rate=dropout_rate),
    optimizer=OPTIMIZER,
    dropout_key=KEY,
  )


def setup(*, dropout_rate):
  batch = next(ToyDataset().batches(0))
  return fresh_state(), batch, step_of(dropout_rate)


def assert_close(got, expected):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6),
    got,
    expected,
  )


@pytest.mark.parametrize("num_microbatches", [2, 4])
def test_accumulated_gradients_are_those_of_the_batch(num_microbatches):
  state, batch, step = setup(dropout_rate=0.0)
  # Targets are unevenly spread: a mean of means would not do.
  batch["target_weights"][0] = 0
  batch["target_weights"][3, 0] = 0
  whole, whole_metrics = compiled(step)(state, batch, DRAWS)
  parts, parts_metrics = jax.jit(
    functools.partial(step, num_microbatches=num_microbatches)
  )(state, batch, DRAWS)
  assert_close(parts_metrics, whole_metrics)
  # Adam's first step is the sign of the gradient: compare its moments.
  get = functools.partial(optax.tree.get, key="mu")
  assert_close(get(parts.opt_state), get(whole.opt_state))


def test_the_gradient_is_that_of_the_mean_loss():
  state, batch, step = setup(dropout_rate=0.0)
  model = make_model(dropout_rate=0.0)
  metrics = compiled(step)(state, batch, DRAWS)[1]

  def mean_loss(params, batch):
    loss, sums = model.loss_fn(params, batch, DRAWS, None)
    return loss / sums["weight"]

  expected = optax.tree.norm(jax.jit(jax.grad(mean_loss))(state.params, batch))
  np.testing.assert_allclose(metrics["grad_norm"], expected, rtol=1e-4)


def test_dropout_differs_between_steps_and_microbatches():
  state, batch, step = setup(dropout_rate=0.5)
  run = compiled(step)
  first = run(state, batch, DRAWS)[1]["loss"]
  assert run(state, batch, DRAWS)[1]["loss"] == first
  later = dataclasses.replace(state, step=state.step + 1)
  assert run(later, batch, DRAWS)[1]["loss"] != first

  one = {name: np.repeat(x[:1], 8, axis=0) for name, x in batch.items()}
  halves = functools.partial(step, num_microbatches=2)
  seen = []

  def spy(params, part, draws, key):
    jax.debug.callback(
      lambda k: seen.append(tuple(k.tolist())), jax.random.key_data(key)
    )
    return make_model(dropout_rate=0.5).loss_fn(params, part, draws, key)

  class Spy(BertMaskedLM):
    loss_fn = staticmethod(spy)

  model = Spy(make_model().config)
  jax.block_until_ready(jax.jit(functools.partial(halves, model=model))(
    state, one, DRAWS
  ))  # fmt: skip
  jax.effects_barrier()
  assert len(set(seen)) == 2


def test_the_step_counts_and_moves_only_kept_layers_by_their_gradient():
  state, batch, _ = setup(dropout_rate=0.0)
  model = make_model(dropout_rate=0.0)
  sgd = optax.with_extra_args_support(optax.sgd(1.0))
  plain = Optimizer(sgd.init, sgd.update, lambda step: 1.0)
  state = state.replace(opt_state=plain.init(state.params))
  after, metrics = jax.jit(
    functools.partial(train_step, model=model, optimizer=plain, dropout_key=KEY)
  )(state, batch, DRAWS)
  assert after.step == 1
  assert metrics["grad_norm"] > 0
  before = state.params["stack"]["layers"]
  for new, old in zip(
    jax.tree.leaves(after.params["stack"]["layers"]), jax.tree.leaves(before)
  ):
    moved = np.abs(np.asarray(new - old)).reshape(LAYERS, -1).max(axis=1) > 0
    np.testing.assert_array_equal(moved, MASK)
