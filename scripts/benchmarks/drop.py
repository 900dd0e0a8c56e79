"""Suite `drop`: what dropping layers saves of a step's time and memory.

At each path length k of a model of L layers these programs take turns:

  dense-k   a model that has only k layers: the ideal
  gather    a path of k layers, the default execution
  bucket    the same in a program that has room for two layers more, as if it
            shared one with longer paths
  cond      the same, with a conditional around each layer
  multiply  all L layers, each branch multiplied by 0 or 1, as layer dropping is
            often written

The drop efficiency of a program is (1 - t_k / t_L) / (1 - F_k / F_L): the share
of a dense step's time that it saves, over the share of its FLOPs. A step is a
whole one, optimizer included.
"""

import concurrent.futures
import os
import statistics
from collections.abc import Iterator
from typing import TypeAlias

import jax
import numpy as np

from benchmarks.end_to_end import end_to_end
from benchmarks.programs import (
  Trainer,
  Workload,
  draw_of,
  high_water_mark,
  memory_mb,
)
from benchmarks.results import Table
from benchmarks.timing import ratio, take_turns
from raptr_jax.contracts import Draws, LayerPath, Params
from raptr_jax.methods.draws import EXECUTIONS, as_executed, with_slots
from raptr_jax.methods.layer_rows import in_layer_stack
from raptr_jax.models.bert import BertConfig
from raptr_jax.models.decoder import DecoderConfig

WORKLOADS = {
  "tiny": (
    Workload(
      "BERT",
      BertConfig(32, 4, 16, 2, norm="pre", dropout_rate=0.0),
      batch=8,
      length=16,
    ),
    Workload("decoder", DecoderConfig(32, 4, 16, 2, 32), batch=8, length=16),
  ),
  "cpu": (
    Workload(
      "BERT",
      BertConfig(4096, 12, 256, 4, norm="pre", dropout_rate=0.0),
      batch=32,
      length=128,
    ),
    Workload(
      "decoder", DecoderConfig(4096, 12, 256, 4, 960), batch=8, length=256
    ),
  ),
  "gpu": (
    Workload(
      "BERT-Base",
      BertConfig(
        30592, 12, 768, 12, norm="pre", dropout_rate=0.0, dtype="bfloat16"
      ),
      batch=64,
      length=512,
    ),
    Workload(
      "half of the 1.6 B decoder",
      DecoderConfig(32128, 12, 2048, 16, 7680, dtype="bfloat16"),
      batch=8,
      length=1024,
    ),
  ),
}
QUARTERS = (1, 2, 3, 4)  # Of L: the path lengths.
UNUSED = 2  # Slots of a bucket.
# Largest difference between gradients of the executions, over the gradient.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
Case: TypeAlias = tuple[Trainer, Draws]


def run(size: str, rounds: int) -> Iterator[Table]:
  """The tables of a size, each as soon as it is measured."""
  for workload in WORKLOADS[size]:
    trainer = Trainer(workload)
    yield paths(workload, trainer, rounds)
    yield end_to_end(workload, trainer, rounds)
    yield gradients(workload, trainer)


def paths(workload: Workload, trainer: Trainer, rounds: int) -> Table:
  """Times and memory by path length and program."""
  num_layers = workload.config.num_layers
  lengths = [num_layers * quarter // 4 for quarter in QUARTERS]
  workers = max(1, len(os.sched_getaffinity(0)) // 2)
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    parts = pool.map(lambda k: _cases(workload, trainer, k), lengths)
    cases = {name: case for part in parts for name, case in part.items()}
    programs = {
      (owner, owner.form(draws)): (owner, draws)
      for owner, draws in cases.values()
    }
    list(pool.map(lambda case: case[0].compiled(case[1]), programs.values()))
  steps = {name: owner.step(draws) for name, (owner, draws) in cases.items()}
  seconds = take_turns(steps, rounds=rounds)
  dense = seconds[num_layers, "dense-k"]
  rows = []
  for (length, name), (owner, draws) in cases.items():
    own = seconds[length, name]
    saved = 1 - workload.flops(length) / workload.flops(num_layers)
    rows.append(
      {
        "k": length,
        "program": name,
        "ms": statistics.median(own) * 1e3,
        "over dense-k": ratio(own, seconds[length, "dense-k"]),
        "drop efficiency": (1 - ratio(own, dense)) / saved if saved else None,
        **memory_mb(owner.compiled(draws)),
      }
    )
  return Table(f"Paths: {workload}", rows, note=high_water_mark())


def _cases(
  workload: Workload, trainer: Trainer, length: int
) -> dict[tuple[int, str], Case]:
  """The programs that are compared at a path length."""
  num_layers = workload.config.num_layers
  draw = draw_of(spread_mask(num_layers, length))
  path = draw.path()
  every_layer = np.arange(num_layers, dtype=np.int32)
  small = trainer
  if length < num_layers:
    small = Trainer(workload.with_config(num_layers=length))
  all_of_small = draw_of(np.ones(length, bool))
  cases: dict[str, Case] = {
    "dense-k": (small, as_executed({"stack": all_of_small}, "gather")),
    "gather": (trainer, {"stack": path}),
    "bucket": (trainer, {"stack": with_slots(path, length + UNUSED)}),
    "cond": (trainer, as_executed({"stack": draw}, "cond")),
    # Scaled by 0, a pre-norm block is the identity.
    "multiply": (trainer, {"stack": LayerPath(every_layer, draw.scale)}),
  }
  if length + UNUSED > num_layers:
    del cases["bucket"]
  return {(length, name): case for name, case in cases.items()}


def spread_mask(num_layers: int, kept: int) -> np.ndarray:
  """bool[L], `kept` layers evenly spread, the first and the last among them."""
  places = np.rint(np.linspace(0, num_layers - 1, kept)).astype(int)
  return np.isin(np.arange(num_layers), places)


def gradients(workload: Workload, trainer: Trainer) -> Table:
  """Whether skipped layers have zero gradients, and the executions agree."""
  num_layers, dtype = workload.config.num_layers, workload.config.dtype
  mask = spread_mask(num_layers, num_layers // 2)
  run = trainer.experiment
  gradient = run.partitioner.jit(jax.grad(run.model.loss_fn, has_aux=True))
  by_execution = []
  for execution in EXECUTIONS:
    draws = as_executed({"stack": draw_of(mask)}, execution)
    grads, _ = gradient(trainer.params, trainer.batch, draws, jax.random.key(0))
    by_execution.append(jax.device_get(grads))
  skipped = max(_largest_of_skipped(grads, mask) for grads in by_execution)
  apart = max(jax.tree.leaves(jax.tree.map(_apart, *by_execution)))
  found = {
    "gradients of skipped layers are 0": (skipped, 0.0),
    "gather and cond have the same gradients": (apart, TOLERANCE[dtype]),
  }
  rows = [
    {"check": name, "found": x, "allowed": most, "holds": x <= most}
    for name, (x, most) in found.items()
  ]
  return Table(f"Gradients: {workload}", rows)


def _largest_of_skipped(grads: Params, mask: np.ndarray) -> float:
  rows = [
    np.abs(leaf[~mask]).max()
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
    if in_layer_stack(path)
  ]
  return float(max(rows))


def _apart(x: np.ndarray, y: np.ndarray) -> float:
  """Largest difference of two arrays, over the largest entry."""
  return float(np.abs(x - y).max() / np.abs(y).max())
