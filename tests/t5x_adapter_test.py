"""Our models and methods as t5x takes them.

t5x is on no package index. What the adapter uses of it is stood in for, with
the same names and arguments.
"""

import importlib
import sys
import types
from functools import cached_property

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.methods import policies
from raptr_jax.methods.schedule import stage_schedule
from raptr_jax.models.encoder_decoder import EncoderDecoderConfig
from raptr_jax.models.encoder_decoder_lm import EncoderDecoderLM
from raptr_jax.models.masked_stack import full_paths

LAYERS, STEPS = 4, 30
MODEL = EncoderDecoderLM(
  EncoderDecoderConfig(
    vocab_size=40,
    num_encoder_layers=LAYERS,
    num_decoder_layers=LAYERS,
    embed_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=24,
  )
)
POLICY = policies.raptr(
  schedule=stage_schedule(
    path_lengths=(2, 3, 4), total_steps=STEPS, num_layers=LAYERS
  )
)
KEY = jax.random.key_data(jax.random.key(7))  # As t5x has keys.
VOCABULARY = types.SimpleNamespace(eos_id=3)


class BaseModel:
  def __init__(self, optimizer_def):
    self.optimizer_def = optimizer_def


class BaseTrainer:
  """The part of t5x's trainer that the adapter builds on."""

  def __init__(self, model, partitioner, learning_rate_fn, rng):
    self._model, self._partitioner = model, partitioner
    self._learning_rate_fn, self._base_rng = learning_rate_fn, rng
    self._num_microbatches = self._weight_metrics_computer = None
    self._train_state_axes = None

  def _get_step_rng(self, step):
    return jax.random.fold_in(self._base_rng, step)


class Metric:
  def __init__(self, total, count=1):
    self.total, self.count = total, count


def train_with_lr(
  train_state,
  batch,
  learning_rate,
  dropout_rng,
  model,
  num_microbatches,
  weight_metrics_computer=None,
  data_partition_spec=None,
):
  """The loss instead of a new state."""
  return model.loss_fn(train_state.params, batch, dropout_rng)


def module(name, **contents):
  found = types.ModuleType(name)
  vars(found).update(contents)
  return found


@pytest.fixture(scope="module")
def adapter():
  """The adapter, on what stands for t5x and clu."""
  parts = {
    "t5x.metrics": module("t5x.metrics", AveragePerStep=Metric),
    "t5x.models": module("t5x.models", BaseModel=BaseModel),
    "t5x.trainer": module(
      "t5x.trainer",
      Trainer=BaseTrainer,
      cached_property=cached_property,
      train_with_lr=train_with_lr,
    ),
    "clu.metrics": module("clu.metrics", Average=Metric),
  }
  parts["t5x"] = module(
    "t5x",
    **{name.split(".")[1]: x for name, x in parts.items() if "t5x" in name},
  )
  parts["clu"] = module("clu", metrics=parts["clu.metrics"])
  with pytest.MonkeyPatch.context() as patch:
    for name, part in parts.items():
      patch.setitem(sys.modules, name, part)
    patch.delitem(sys.modules, "raptr_jax.contrib.t5x", raising=False)
    yield importlib.import_module("raptr_jax.contrib.t5x")
  sys.modules.pop("raptr_jax.contrib.t5x", None)


@pytest.fixture(scope="module")
def model(adapter):
  return adapter.Model(MODEL, POLICY, "optimizer", VOCABULARY, "converter")


@pytest.fixture(scope="module")
def params():
  return nn.unbox(MODEL.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  tokens = rng.integers(4, 40, (2, 6)).astype(np.int32)
  ones = np.ones_like(tokens)
  found = {
    "encoder_tokens": tokens,
    "encoder_segment_ids": ones,
    "tokens": tokens,
    "targets": tokens[:, ::-1],
    "target_weights": ones.astype(np.float32),
    "segment_ids": ones,
  }
  return jax.tree.map(jnp.asarray, found)


def test_a_model_says_what_t5x_asks(model):
  assert model.optimizer_def == "optimizer"
  assert model.FEATURE_CONVERTER_CLS == "converter"
  assert model.input_vocabulary is model.output_vocabulary is VOCABULARY


def test_variables_are_parameters_and_names_of_their_axes(model):
  variables = model.get_initial_variables(KEY, {"encoder_tokens": (2, 6)})
  params = flax.core.unfreeze(variables["params"])
  expected = nn.unbox(MODEL.init(jax.random.wrap_key_data(KEY)))
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  flat = flax.traverse_util.flatten_dict(params)
  axes = flax.traverse_util.flatten_dict(
    flax.core.unfreeze(variables["params_axes"])
  )
  assert {(*p[:-1], f"{p[-1]}_axes") for p in flat} == set(axes)
  for path, array in flat.items():
    names = axes[(*path[:-1], f"{path[-1]}_axes")].names
    assert len(names) == array.ndim
    assert len(set(names)) == len(names)  # Flax refuses one twice.
  kernel = axes["encoder", "layers", "mlp", "wo", "kernel_axes"].names
  assert kernel == ("layers", "mlp", "embed")


def test_draws_follow_the_schedule_and_nothing_else(model):
  again = type(model)(MODEL, POLICY, None, VOCABULARY, None)
  lengths = []
  for step in range(STEPS):
    draws = model.draws(KEY, step)
    traced = jax.jit(again.draws)(KEY, jnp.asarray(step))
    jax.tree.map(np.testing.assert_array_equal, draws, traced)
    lengths.append({name: int(d.mask.sum()) for name, d in draws.items()})
  assert lengths[0] == {"encoder": 2, "decoder": 2}
  assert lengths[-1] == {"encoder": 4, "decoder": 4}
  # In the middle, stacks draw independently.
  assert any(x["encoder"] != x["decoder"] for x in lengths)


def test_hardware_keys_are_keys(model):
  rbg = jax.random.key_data(jax.random.key(0, impl="unsafe_rbg"))
  assert model.draws(rbg, 0)["encoder"].mask.shape == (LAYERS,)


def test_evaluation_is_of_the_full_model(model, params, batch):
  loss, metrics = model.loss_fn(params, batch, None)
  paths = full_paths(MODEL.stacks)
  expected, theirs = MODEL.loss_fn(params, batch, paths, None)
  assert float(loss) == float(expected)
  found = metrics["loss_per_target"]
  assert float(found.total / found.count) == pytest.approx(
    float(theirs["loss"] / theirs["weight"])
  )
  assert float(metrics["layers/encoder"].total) == LAYERS
  scores = model.score_batch(params, batch)
  assert float(scores.sum()) == pytest.approx(-float(expected), rel=1e-5)


def test_a_step_trains_the_layers_that_it_draws(adapter, model, params, batch):
  seen = {}

  def partition(function, **arguments):
    seen.update(arguments)
    return function

  partitioner = types.SimpleNamespace(
    partition=partition, data_partition_spec="data"
  )
  trainer = adapter.Trainer(model, partitioner, lambda step: 0.1, KEY)
  for step in (0, 12, STEPS - 1):
    state = types.SimpleNamespace(step=jnp.asarray(step), params=params)
    loss, metrics = trainer._partitioned_train_step(state, batch)
    draws = model.draws(KEY, step)
    key = jax.random.wrap_key_data(trainer._get_step_rng(state.step))
    expected, _ = MODEL.loss_fn(params, batch, draws, key)
    assert float(loss) == float(expected)
    for name, draw in draws.items():
      assert float(metrics[f"layers/{name}"].total) == draw.mask.sum()
  assert seen["donate_argnums"] == (0,)
  assert seen["in_axis_resources"] == (None, "data")


def test_an_encoder_decoder_writes(model, params, batch):
  tokens, aux = model.predict_batch_with_aux(params, batch)
  assert tokens.shape == (2, 64) and aux == {}
  alone = {name: x for name, x in batch.items() if name != "encoder_tokens"}
  with pytest.raises(ValueError, match="makes no predictions in t5x"):
    model.predict_batch_with_aux(params, alone)


def test_another_depth_is_refused(adapter):
  other = policies.full(num_layers=3)
  with pytest.raises(ValueError, match="has 4 layers, but its policy is for 3"):
    adapter.Model(MODEL, other, None, VOCABULARY, None)
