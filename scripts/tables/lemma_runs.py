"""The measurements of `theory_lemma.py`, and how to read them.

What is measured is in `raptr_jax/theory/lemma.py` and `trained_gap.py`.
"""

import contextlib
import datetime
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import gin
import jax
import numpy as np
from jaxtyping import Float

from raptr_jax import main
from raptr_jax.contracts import Params
from raptr_jax.display import Bar, Display, Lines
from raptr_jax.experiment import Experiment
from raptr_jax.plan import abstract_state, fresh_state
from raptr_jax.provenance import provenance
from raptr_jax.report import RemainingTime
from raptr_jax.theory import lemma, trained_gap

from .statistics import Estimate, estimate

DEPTHS = (4, 8, 16, 32, 64, 128, 256)
DEEP = 64  # Rates are told from here on.
WIDTH = 256
OTHER_WIDTHS = (64, 128, 512)  # Measured at the deep networks alone.
SEEDS = range(16)
INPUTS = 2
NUM_BATCHES = 8

Item = TypeVar("Item")
Record: TypeAlias = dict[str, Any]


def measure_networks() -> Record:
  """A cell for each width, depth and form: gaps by seed, mean psi by layer."""
  began = time.perf_counter()
  deep = [depth for depth in DEPTHS if depth >= DEEP]
  sizes = [
    *itertools.product([WIDTH], DEPTHS),
    *itertools.product(OTHER_WIDTHS, deep),
  ]
  cells = []
  for width, depth in shown(
    sizes, _lemma_work, lambda size: f"width {size[0]}, depth {size[1]}"
  ):
    by_seed = [
      jax.device_get(
        lemma.measure(
          jax.random.key(seed), depth=depth, width=width, inputs=INPUTS
        )
      )
      for seed in SEEDS
    ]
    for form in lemma.FORMS:
      psi = np.array([measured[form] for measured in by_seed], np.float64)
      cells.append(
        {
          "width": width,
          "form": form,
          "depth": depth,
          "gaps": psi.mean(1).tolist(),
          "psi": psi.mean(0).tolist(),
        }
      )
  return {
    "seeds": list(SEEDS),
    "inputs": INPUTS,
    "cells": cells,
    "seconds": time.perf_counter() - began,
    "provenance": provenance(),
  }


def _lemma_work(size: tuple[int, int]) -> float:
  """Work of all seeds in FLOPs; 1 is about what compiling takes."""
  width, depth = size
  return len(lemma.FORMS) * len(SEEDS) * INPUTS * (depth * width) ** 2 / 1e11


def measure_trained(depth: int, model_dir: Path) -> Record:
  """Effects of bypassing layers, before and after training."""
  began = time.perf_counter()
  argv = [
    f"--gin_file={model_dir / 'config.gin'}",
    f"--gin.MODEL_DIR='{model_dir}'",
    "--gin.COMPUTE_DTYPE='float32'",  # Changes below bfloat16's resolution.
  ]
  main.configure(argv, __doc__ or "")
  experiment = gin.get_configurable(Experiment)()
  (num_layers,) = experiment.model.stacks.values()
  if num_layers != depth:
    raise ValueError(f"{model_dir} has {num_layers} layers, expected {depth}.")
  experiment.eval_dataset.open()
  batches = list(
    itertools.islice(experiment.eval_dataset.batches(0), NUM_BATCHES)
  )

  def effect(params: Params) -> Record:
    measured = trained_gap.measure(experiment.model, params, batches)
    return {
      "psi": measured.psi.tolist(),
      "loss_change": measured.loss_change.tolist(),
      "loss": measured.loss,
    }

  return {
    "method": gin.query_parameter("%POLICY").selector.split(".")[-1],
    "width": experiment.model.config.embed_dim,
    "steps": experiment.total_steps,
    "seed": experiment.random_seed,
    "rows": sum(len(batch["tokens"]) for batch in batches),
    "before": effect(
      fresh_state(experiment, abstract_state(experiment)).params
    ),
    "after": effect(_trained_params(experiment)),
    "seconds": time.perf_counter() - began,
    "provenance": provenance(),
  }


def _trained_params(experiment: Experiment) -> Params:
  """Parameters of the last checkpoint, which must be of the last step."""
  with experiment.checkpointer.open(experiment.model_dir) as checkpoints:
    step = checkpoints.latest_step()
    if step != experiment.total_steps:
      raise ValueError(
        f"The last checkpoint of {experiment.model_dir} is of step {step},"
        f" expected {experiment.total_steps}: finish the run."
      )
    return checkpoints.restore(abstract_state(experiment))[0].params


def shown(
  items: Sequence[Item],
  work: Callable[[Item], float],
  label: Callable[[Item], str],
) -> Iterator[Item]:
  """Yields the items, showing how many are done and the time that is left."""
  remaining = RemainingTime(np.array([work(item) for item in items]), 0)
  with contextlib.ExitStack() as stack:
    display: Display = (
      Bar(stack, len(items), 0) if sys.stdout.isatty() else Lines(len(items))
    )
    for done, item in enumerate(items, start=1):
      began = time.perf_counter()
      yield item
      left = remaining.update(done, time.perf_counter() - began)
      display.train(
        done, label(item), str(datetime.timedelta(seconds=round(left)))
      )


def cells_of(
  measured: Record, form: str, width: int, least: int = 0
) -> list[Record]:
  """Cells of a form and width, by ascending depth, from a least one on."""
  return [
    cell
    for cell in measured["lemma"]["cells"]
    if (cell["form"], cell["width"]) == (form, width) and cell["depth"] >= least
  ]


def gaps_of(
  cells: Sequence[Record],
) -> tuple[list[int], Float[np.ndarray, "N S"]]:
  """Depths of the cells, and their gaps by seed."""
  depths = [cell["depth"] for cell in cells]
  return depths, np.array([cell["gaps"] for cell in cells])


def slope_of(cells: Sequence[Record]) -> Estimate:
  """The exponent of the gap: mean over seeds, each fitted by itself."""
  exponents = estimate(lemma.fit_exponents(*gaps_of(cells)).tolist())
  assert exponents is not None
  return exponents


def by_depth(trained: Mapping[str, Record]) -> dict[int, Record]:
  """What was measured on trained models, by ascending number of layers."""
  return {int(depth): trained[depth] for depth in sorted(trained, key=int)}
