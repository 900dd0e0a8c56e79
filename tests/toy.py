"""A run small enough to be trained in a test, on data that can be learnt."""

import itertools

import jax
import numpy as np

from raptr_jax import optim, policies
from raptr_jax.checkpoint import Checkpointer
from raptr_jax.experiment import Experiment
from raptr_jax.models.bert import BertConfig, BertMaskedLM
from raptr_jax.partitioning import Partitioner
from raptr_jax.schedule import stage_schedule

VOCAB, LENGTH, TARGETS, LAYERS = 32, 8, 2, 4


class ToyDataset:
  """Rows of one repeated token, of which two are masked."""

  num_examples = None

  def __init__(self, batch_size=8, seed=0):
    self.batch_size = batch_size
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
    return {
      "tokens": tokens,
      "segment_ids": np.ones(shape, np.int32),
      "positions": positions.copy(),
      "target_positions": places.astype(np.int32),
      "targets": np.repeat(targets, TARGETS, axis=1),
      "target_weights": np.ones((self.batch_size, TARGETS), np.float32),
    }


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


def make_experiment(model_dir, **overrides) -> Experiment:
  """RaPTr 2-3-4 on a four-layer model, twelve steps."""
  total_steps = overrides.get("total_steps", 12)
  rate = optim.linear(peak=1e-2, warmup_steps=2, total_steps=total_steps)
  schedule = stage_schedule(
    path_lengths=(2, 3, 4), total_steps=total_steps, num_layers=LAYERS
  )
  kwargs = dict(
    model=make_model(),
    policy=policies.raptr(schedule=schedule, sampler="exact"),
    train_dataset=ToyDataset(),
    eval_dataset=ToyDataset(seed=1),
    optimizer=optim.adamw(learning_rate=rate),
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
