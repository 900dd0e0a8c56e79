"""The measurements of `theory_lemma`, on random and on trained networks.

They are kept in results.json. `raptr_jax/theory/lemma.py` and `trained_gap.py`
define what is measured.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np
from jaxtyping import Float

from raptr_jax import main
from raptr_jax.configuration.bindings import macros
from raptr_jax.configuration.configure import build
from raptr_jax.contracts import Params
from raptr_jax.reports.provenance import provenance
from raptr_jax.tasks import files
from raptr_jax.tasks.progress import Progress
from raptr_jax.theory import lemma, trained_gap
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.setup import abstract_state, fresh_state
from tables.results import Estimate, estimate

RESULTS_FILE = "results.json"
DEPTHS = (4, 8, 16, 32, 64, 128, 256)
DEEP = 64  # Rates are fitted from this depth on.
WIDTH = 256
OTHER_WIDTHS = (64, 128, 512)  # Measured for deep networks only.
SEEDS = range(16)
INPUTS = 2
NUM_BATCHES = 8

Item = TypeVar("Item")
Record: TypeAlias = dict[str, Any]


def run(folder: Path, model_dirs: Mapping[int, Path]) -> None:
  """Measures what the folder's results.json lacks.

  Args:
    folder: made if missing.
    model_dirs: finished BERT runs by number of layers; may be empty. Relative
      data paths in their configurations start from the current folder.

  Raises:
    ValueError: if a run has another number of layers or is not finished.
    ConfigurationError: if a run's configuration is invalid.
  """
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / RESULTS_FILE
  results: Record = {"trained": {}}
  if path.exists():
    results = json.loads(path.read_text(encoding="utf-8"))
  if "lemma" not in results:
    results["lemma"] = measure_networks()
    files.write_json(path, results)
  missing = [d for d in sorted(model_dirs) if str(d) not in results["trained"]]
  for depth in _shown(missing, lambda d: d * d, lambda d: f"{d}-layer BERT"):
    results["trained"][str(depth)] = measure_trained(depth, model_dirs[depth])
    files.write_json(path, results)


def measure_networks() -> Record:
  """A cell per width, depth and form: gaps by seed, mean psi by layer."""
  began = time.perf_counter()
  deep = [depth for depth in DEPTHS if depth >= DEEP]
  sizes = [
    *itertools.product([WIDTH], DEPTHS),
    *itertools.product(OTHER_WIDTHS, deep),
  ]
  cells = []
  for width, depth in _shown(
    sizes, _work, lambda size: f"width {size[0]}, depth {size[1]}"
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


def _work(size: tuple[int, int]) -> float:
  """FLOPs of all seeds, in units of what compiling costs, plus compiling."""
  width, depth = size
  flops = len(lemma.FORMS) * len(SEEDS) * INPUTS * (depth * width) ** 2
  return 1 + flops / 1e11


def measure_trained(depth: int, model_dir: Path) -> Record:
  """Effects of bypassing each layer of a BERT, before and after training."""
  began = time.perf_counter()
  argv = [
    f"--gin_file={model_dir / 'config.gin'}",
    f"--gin.MODEL_DIR={str(model_dir)!r}",
    "--gin.COMPUTE_DTYPE='float32'",  # bfloat16 cannot resolve the changes.
  ]
  main.configure(argv)
  experiment = build("RUN")
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
    "method": repr(macros()["POLICY"]).strip("()").split(".")[-1],
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
  """The parameters after the last step."""
  with experiment.checkpointer.open(experiment.model_dir) as checkpoints:
    step = checkpoints.latest_step()
    if step != experiment.total_steps:
      raise ValueError(
        f"The last checkpoint of {experiment.model_dir} is of step {step},"
        f" expected {experiment.total_steps}: finish the run."
      )
    return checkpoints.restore(abstract_state(experiment))[0].params


def _shown(
  items: Sequence[Item],
  work: Callable[[Item], float],
  label: Callable[[Item], str],
) -> Iterator[Item]:
  """Yields the items, and shows progress and the time left."""
  if not items:
    return
  began, done = time.perf_counter(), 0.0
  total = sum(map(work, items))
  with Progress(len(items), unit="measurement") as progress:
    for number, item in enumerate(items, start=1):
      yield item
      done += work(item)
      left = (time.perf_counter() - began) * (total - done) / done
      progress.update(number, label(item), left)


def cells_of(
  measured: Record, form: str, width: int, least: int = 0
) -> list[Record]:
  """Cells of a form and width with at least `least` layers, ascending."""
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
  """The exponent of the gap: mean over seeds, fitted for each seed."""
  exponents = estimate(lemma.fit_exponents(*gaps_of(cells)).tolist())
  assert exponents is not None
  return exponents


def by_depth(trained: Mapping[str, Record]) -> dict[int, Record]:
  """The trained models' records, by ascending number of layers."""
  return {int(depth): trained[depth] for depth in sorted(trained, key=int)}
