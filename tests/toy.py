"""A run small enough to be trained in a test, on data that can be learned."""

import contextlib
import dataclasses
import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raptr_jax.contracts import LayerDraw
from raptr_jax.methods import policies
from raptr_jax.methods.schedule import stage_schedule
from raptr_jax.models import flops, losses
from raptr_jax.models.bert import BertConfig, BertMaskedLM
from raptr_jax.models.masked_stack import MaskedStack, full_paths
from raptr_jax.training import learning_rates, optim, setup
from raptr_jax.training.checkpoint import Checkpointer
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.partitioning import Partitioner

VOCAB, LENGTH, TARGETS, LAYERS = 32, 8, 2, 4


class ToyDataset:
  """Rows of one repeated token, of which two are masked.

  The kind of a row, if there are several, is the remainder of its token.
  """

  num_examples = None

  def __init__(self, batch_size=8, seed=0, example_kinds=()):
    self.batch_size = batch_size
    self.example_kinds = example_kinds
    self.unigram_counts = np.ones(VOCAB, np.int64)
    self._seed = seed

  def open(self):
    pass

  def batch_spec(self):
    return {
      name: jax.ShapeDtypeStruct((self.batch_size, *x.shape[1:]), x.dtype)
      for name, x in self._batch(0).items()
    }

  def batches(self, start):
    return (self._batch(number) for number in itertools.count(start))

  def _batch(self, number):
    rng = np.random.default_rng([self._seed, number])
    shape = (self.batch_size, LENGTH)
    targets = rng.integers(5, VOCAB, (self.batch_size, 1), np.int32)
    tokens = np.broadcast_to(targets, shape).copy()
    tokens[:, :TARGETS] = 4
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), shape)
    places = np.broadcast_to(np.arange(TARGETS), (self.batch_size, TARGETS))
    kinds = len(self.example_kinds)
    kind = {"example_kind": targets % kinds} if kinds else {}
    return kind | {
      "tokens": tokens,
      "segment_ids": np.ones(shape, np.int32),
      "positions": positions.copy(),
      "target_positions": places.astype(np.int32),
      "targets": np.repeat(targets, TARGETS, axis=1),
      "target_weights": np.ones((self.batch_size, TARGETS), np.float32),
    }


class SpecDataset:
  """Random batches of the shapes of another dataset, which is not opened."""

  num_examples = None
  unigram_counts = None

  def __init__(self, dataset, vocabulary_size, seed=0):
    self.batch_size = dataset.batch_size
    self.example_kinds = dataset.example_kinds
    self._spec, self._size = dataset.batch_spec(), vocabulary_size
    self._seed = seed

  def open(self):
    pass

  def batch_spec(self):
    return self._spec

  def batches(self, start):
    return (self._batch(number) for number in itertools.count(start))

  def _batch(self, number):
    rng = np.random.default_rng([self._seed, number])
    most = {
      "tokens": self._size,
      "targets": self._size,
      "example_kind": len(self.example_kinds),
    }
    return {
      name: rng.integers(most.get(name, 2), size=x.shape).astype(x.dtype)
      for name, x in self._spec.items()
    }


@dataclasses.dataclass(frozen=True, eq=False)
class ScriptedPolicy:
  """Draws what it is told, step by step: masks and scales [N, L]."""

  mask: np.ndarray
  scale: np.ndarray
  boundaries = ()

  @property
  def num_layers(self):
    return self.mask.shape[1]

  def __call__(self, key, step):
    return LayerDraw(
      jnp.asarray(self.mask)[step], jnp.asarray(self.scale)[step]
    )

  def keep_probabilities(self, step):
    return jnp.asarray(self.mask)[step].astype(jnp.float32)


def scripted(mask) -> ScriptedPolicy:
  return ScriptedPolicy(mask, mask.astype(np.float32))


def make_model(**overrides) -> BertMaskedLM:
  kwargs = dict(
    vocab_size=VOCAB,
    num_layers=LAYERS,
    embed_dim=16,
    num_heads=2,
    max_length=LENGTH,
    norm="pre",
    init_stddev=0.1,
    dropout_rate=0.1,
  )
  return BertMaskedLM(BertConfig(**kwargs | overrides))


class ToyBlock(nn.Module):
  """A residual MLP, which also reads the mean of what the encoder gives."""

  width: int

  @nn.compact
  def __call__(self, x, scale, *memory, deterministic):
    read = sum(m.mean(1, keepdims=True) for m in memory)
    hidden = jnp.tanh(nn.Dense(self.width)(x + read))
    branch = nn.Dense(x.shape[-1])(hidden)
    return x + scale * nn.Dropout(0.1, deterministic=deterministic)(branch)


class ToyTwoStacks(nn.Module):
  """Reads tokens in one stack, and predicts places in another."""

  encoder_layers: int
  decoder_layers: int

  def setup(self):
    self.tokens = nn.Embed(VOCAB, 16)
    self.places = nn.Embed(LENGTH, 16)
    self.encoder = MaskedStack(
      functools.partial(ToyBlock, 16), self.encoder_layers
    )
    self.decoder = MaskedStack(
      functools.partial(ToyBlock, 32), self.decoder_layers
    )
    self.head = nn.Dense(VOCAB)

  def __call__(self, batch, draws, dropout_key=None):
    x = self.tokens(batch["tokens"])
    memory = self.encoder(x, draws["encoder"], dropout_key=dropout_key)
    x = self.places(batch["target_positions"])
    draw = draws["decoder"]
    return self.head(self.decoder(x, draw, memory, dropout_key=dropout_key))


@dataclasses.dataclass(frozen=True)
class ToyEncoderDecoder:
  """A `contracts.Model` of two stacks whose layers do not cost the same."""

  encoder_layers: int = 3
  decoder_layers: int = 4

  @property
  def stacks(self):
    return {"encoder": self.encoder_layers, "decoder": self.decoder_layers}

  @property
  def module(self):
    return ToyTwoStacks(self.encoder_layers, self.decoder_layers)

  def init(self, key):
    batch = dict.fromkeys(
      ("tokens", "target_positions"), jnp.zeros((1, 1), jnp.int32)
    )
    paths = full_paths(self.stacks)
    return self.module.init(key, batch, paths)["params"]

  def loss_fn(self, params, batch, draws, dropout_key):
    logits = self.module.apply({"params": params}, batch, draws, dropout_key)
    return losses.cross_entropy(
      logits, batch["targets"], batch["target_weights"]
    )

  def score_batch(self, params, batch, draws):
    logits = self.module.apply({"params": params}, batch, draws)
    scores = losses.token_log_likelihood(logits, batch["targets"])
    return (scores * batch["target_weights"]).sum(-1)

  def step_flops(self, batch):
    read, predicted = (
      math.prod(batch[name].shape) for name in ("tokens", "targets")
    )
    blocks = {
      "encoder": 2 * flops.product(read, 16, 16),
      "decoder": 2 * flops.product(predicted, 16, 32),
    }
    return flops.StepFlops(blocks, flops.product(predicted, 16, VOCAB))


@functools.cache
def make_optimizer(total_steps) -> optim.Optimizer:
  rate = learning_rates.linear(
    peak=1e-2, warmup_steps=2, total_steps=total_steps
  )
  return optim.adamw(learning_rate=rate)


def make_experiment(model_dir, **overrides) -> Experiment:
  """RaPTr 2-3-4 on a four-layer model, twelve steps."""
  total_steps = overrides.get("total_steps", 12)
  schedule = stage_schedule(
    path_lengths=(2, 3, 4), total_steps=total_steps, num_layers=LAYERS
  )
  kwargs = dict(
    model=make_model(),
    policy=policies.raptr(schedule=schedule, sampler="exact"),
    train_dataset=ToyDataset(),
    eval_dataset=ToyDataset(seed=1),
    optimizer=make_optimizer(total_steps),
    partitioner=Partitioner(),
    checkpointer=Checkpointer(period=5),
    model_dir=str(model_dir),
    total_steps=total_steps,
    random_seed=0,
    eval_period=5,
    num_eval_batches=2,
    report_period=2,
  )
  return Experiment(**kwargs | overrides)


@contextlib.contextmanager
def shared_programs():
  """Runs of the same parts share their programs, which are compiled once.

  Each run makes jitted functions of its own otherwise, and tracing and loading
  these takes most of the time of a run as short as a test's.
  """
  jitted_step, jitted_grow = setup.jitted_step, setup.jitted_grow
  programs = {}

  def shared_step(experiment, abstract):
    key = (
      experiment.model,
      experiment.optimizer,
      experiment.partitioner,
      experiment.random_seed,
      experiment.num_microbatches,
    )
    if key not in programs:
      programs[key] = jitted_step(experiment, abstract)
    return programs[key]

  def shared_grow(abstract):
    leaves, tree = jax.tree.flatten(abstract)
    key = (tree, *leaves)
    if key not in programs:
      programs[key] = jitted_grow(abstract)
    return programs[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(setup, "jitted_step", shared_step)
    patch.setattr(setup, "jitted_grow", shared_grow)
    yield
