"""Training steps to be timed: those of real runs, on random batches."""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np
from jax.stages import Compiled

from raptr_jax.contracts import (
  Batch,
  BatchSpec,
  DeviceBatch,
  Draws,
  LayerDraw,
  Model,
  Params,
)
from raptr_jax.methods import policies
from raptr_jax.models.bert import BertConfig, BertMaskedLM
from raptr_jax.models.decoder import DecoderConfig
from raptr_jax.models.decoder_lm import DecoderLM
from raptr_jax.training import optim, setup
from raptr_jax.training.compiled_steps import abstract_copies
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Workload:
  """A model and the size of its batches.

  Attributes:
    name: in tables.
    config: of the model.
    batch: B.
    length: T.
  """

  name: str
  config: BertConfig | DecoderConfig
  batch: int
  length: int

  @property
  def tokens(self) -> int:
    """Tokens of a batch."""
    return self.batch * self.length

  def __str__(self) -> str:
    config = self.config
    return (
      f"{self.name}, {config.num_layers} x {config.embed_dim}, {self.batch} x"
      f" {self.length} tokens, {config.dtype}"
    )

  def with_config(self, **changes: Any) -> "Workload":
    """The same with other fields of its config."""
    config = dataclasses.replace(self.config, **changes)
    return dataclasses.replace(self, config=config)

  def model(self) -> Model:
    """The model."""
    if isinstance(self.config, BertConfig):
      return BertMaskedLM(self.config)
    return DecoderLM(self.config)

  def flops(self, num_layers: int) -> float:
    """Model FLOPs of a step on a path of this length."""
    return self.model().step_flops(self.batch_of(0)).step({"stack": num_layers})

  def batch_of(self, number: int) -> Batch:
    """A batch of random tokens, one segment a row.

    BERT predicts 15 % of them. A prefix language model has read half of them.
    """
    rng = np.random.default_rng(number)
    shape = (self.batch, self.length)
    size = self.config.vocab_size
    row = np.arange(self.length, dtype=np.int32)
    batch = {
      "tokens": rng.integers(0, size, shape, np.int32),
      "segment_ids": np.ones(shape, np.int32),
      "positions": np.broadcast_to(row, shape).copy(),
    }
    if isinstance(self.config, BertConfig):
      shape = (self.batch, -(-self.length * 3 // 20))
      places = rng.permuted(batch["positions"], axis=1)[:, : shape[1]]
      batch["target_positions"] = np.sort(places, axis=1)
    else:
      batch["in_prefix"] = (batch["positions"] < self.length // 2).astype(
        np.int32
      )
    return batch | {
      "targets": rng.integers(0, size, shape, np.int32),
      "target_weights": np.ones(shape, np.float32),
    }


class RandomDataset:
  """A `contracts.Dataset` of a workload's batches."""

  num_examples = None
  unigram_counts = None
  example_kinds = ()

  def __init__(self, workload: Workload):
    self.batch_size = workload.batch
    self._workload = workload

  def open(self) -> None:
    """There is nothing to open."""

  def batch_spec(self) -> BatchSpec:
    """Shapes and types of a batch."""
    return {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype)
      for name, x in self._workload.batch_of(0).items()
    }

  def batches(self, start: int) -> Iterator[Batch]:
    """The batches `start`, `start + 1`, ... without end."""
    return map(self._workload.batch_of, itertools.count(start))


class Trainer:
  """A model in training, and the programs of its steps, which share its state.

  Attributes:
    workload: the model and its batches.
    experiment: the run whose steps these are.
    batch: on the devices.
  """

  def __init__(self, workload: Workload):
    self.workload = workload
    self._prepare()
    batch = workload.batch_of(0)
    self.batch = self.experiment.partitioner.put_batch(batch)
    self._held: list[TrainState] = []  # One state, or none.
    self.renew()

  def with_remat(self, remat: str) -> "Trainer":
    """One that keeps other values for the backward pass, with the same state."""
    other = copy.copy(self)
    other.workload = self.workload.with_config(remat=remat)
    other._prepare()
    return other

  def _prepare(self) -> None:
    dataset = RandomDataset(self.workload)
    self.experiment = Experiment(
      model=self.workload.model(),
      policy=policies.full(num_layers=self.workload.config.num_layers),
      train_dataset=dataset,
      eval_dataset=dataset,
      optimizer=optim.adamw(learning_rate=1e-4),
      model_dir="unused",
      total_steps=1,
    )
    self._abstract = setup.abstract_state(self.experiment)
    self._step = setup.jitted_step(self.experiment, self._abstract)
    self._compiled: dict[Hashable, Compiled] = {}

  def renew(self) -> None:
    """Begins with a fresh state, as after a step that failed and lost its own."""
    self._held.clear()
    self._held.append(setup.fresh_state(self.experiment, self._abstract))

  @property
  def params(self) -> Params:
    return self._held[0].params

  def form(self, draws: Draws) -> Hashable:
    """Identifies the program of draws, by their structure and shapes."""
    shapes = (x.shape for x in jax.tree.leaves(draws))
    return jax.tree.structure(draws), *shapes

  def compiled(self, draws: Draws) -> Compiled:
    """The program of draws of this form."""
    form = self.form(draws)
    if form not in self._compiled:
      replicated = self.experiment.partitioner.replicated
      batch = setup.abstract_batch(self.experiment)
      lowered = self._step.lower(
        self._abstract, batch, abstract_copies(draws, replicated)
      )
      self._compiled[form] = lowered.compile()
    return self._compiled[form]

  def step(self, draws: Draws) -> Callable[[], None]:
    """A function that runs a step with these draws, on the same batch."""
    program = self.compiled(draws)
    placed = self.experiment.partitioner.put_replicated(draws)
    return lambda: self._run(program, self.batch, placed)

  def feed(self, draws: Draws, batch: Batch) -> None:
    """Runs a step with draws and a batch that are still on the host."""
    partitioner = self.experiment.partitioner
    placed = partitioner.put_replicated(draws)
    self._run(self.compiled(draws), partitioner.put_batch(batch), placed)

  def _run(self, program: Compiled, batch: DeviceBatch, draws: Draws) -> None:
    self._held[0], metrics = program(self._held[0], batch, draws)
    jax.block_until_ready((self._held[0], metrics))


def draw_of(mask: np.ndarray) -> LayerDraw:
  """The draw of a mask, unscaled."""
  return LayerDraw(mask, mask.astype(np.float32))


def memory_mb(program: Compiled) -> dict[str, float | None]:
  """XLA's figures of the memory of a program on a device, in MB.

  The peak includes arguments and results; for CPUs, XLA does not compute it.
  """
  memory = program.memory_analysis()
  if memory is None:
    return {"temporary MB": None, "peak MB": None}
  known = jax.default_backend() != "cpu"
  return {
    "temporary MB": memory.temp_size_in_bytes / 1e6,
    "peak MB": memory.peak_memory_in_bytes / 1e6 if known else None,
  }


def device_gb() -> float:
  """What JAX may take of the first device's memory; 0 for a CPU."""
  memory = jax.devices()[0].memory_stats() or {}
  return memory.get("bytes_limit", 0) / 1e9


def high_water_mark() -> str:
  """What a device has had allocated at most, as a sentence; "" for a CPU."""
  memory = jax.devices()[0].memory_stats()
  if not memory:
    return ""
  peak = memory["peak_bytes_in_use"] / 1e9
  return f"So far the first device had {peak:.1f} GB in use at most."
