"""The runs of `theory_polynomial`: sizes, methods, training and records.

`raptr_jax/theory/polynomial.py` defines what is trained and measured.
"""

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from raptr_jax.methods import layer_dropping, policies
from raptr_jax.methods.schedule import stage_schedule
from raptr_jax.reports.axes import BLACK, GREEN, GREY, SKY, VERMILION
from raptr_jax.reports.provenance import provenance
from raptr_jax.tasks import files
from raptr_jax.tasks.progress import Progress
from raptr_jax.theory import polynomial
from raptr_jax.training import learning_rates, optim

Record: TypeAlias = dict[str, Any]

RESULTS_FILE = "results.json"
FLOP_FACTOR = 4 / 3
PATH_LENGTHS = (6, 8, 10, 12)
SEEDS = (0, 1, 2, 3, 4)
# Tried for dense training with the first seed.
LEARNING_RATES = (1e-3, 2e-3, 4e-3, 8e-3)


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Sizes of the task, the network and a run; the paper's are unknown.

  Attributes:
    num_bits: n.
    max_degree: the target has terms of degrees 1 to `max_degree`.
    terms_per_degree: random parities of each degree.
    num_layers: L.
    width: D.
    mlp_dim: F.
    batch_size: inputs per step.
    total_steps: steps of all methods except dense training at equal FLOPs.
    warmup_steps: of the learning rate.
    eval_period: steps between evaluations.
  """

  num_bits: int = 12
  max_degree: int = 10
  terms_per_degree: int = 3
  num_layers: int = 12
  width: int = 32
  mlp_dim: int = 64
  batch_size: int = 256
  total_steps: int = 1600
  warmup_steps: int = 80
  eval_period: int = 100


@dataclasses.dataclass(frozen=True)
class Method:
  """A training method.

  Attributes:
    label: on the page and in the picture.
    color: of its lines.
    policy: draws the layers of each step.
    total_steps: steps of its runs.
  """

  label: str
  color: str
  policy: policies.LayerPolicy
  total_steps: int

  def nominal_factor(self, sizes: Sizes) -> float:
    """Dense over expected FLOPs, residual blocks only."""
    steps = jnp.arange(self.total_steps)
    expected = jax.vmap(self.policy.keep_probabilities)(steps).sum()
    return sizes.total_steps * sizes.num_layers / float(expected)


def make_methods(sizes: Sizes) -> dict[str, Method]:
  """All methods by name; the first is the reference."""
  num_layers, total_steps = sizes.num_layers, sizes.total_steps
  schedule = stage_schedule(
    path_lengths=PATH_LENGTHS, total_steps=total_steps, num_layers=num_layers
  )
  dense = policies.full(num_layers=num_layers)
  constant = policies.constant(num_layers=num_layers, flop_factor=FLOP_FACTOR)
  dropping = layer_dropping.progressive_layer_dropping(
    num_layers=num_layers, total_steps=total_steps, flop_factor=FLOP_FACTOR
  )
  return {
    "dense": Method("dense", BLACK, dense, total_steps),
    "dense_equal_flops": Method(
      "dense, equal FLOPs",
      GREY,
      dense,
      round(total_steps / FLOP_FACTOR),
    ),
    "raptr": Method(
      "RaPTr", VERMILION, policies.raptr(schedule=schedule), total_steps
    ),
    "constant": Method("constant path length", SKY, constant, total_steps),
    "progressive_layer_dropping": Method(
      "progressive layer dropping", GREEN, dropping, total_steps
    ),
  }


def run(
  folder: Path, *, sizes: Sizes | None = None, seeds: Sequence[int] = SEEDS
) -> None:
  """Trains all methods with all seeds and writes results.json.

  Each run leaves a file in `folder` and is not repeated while it is there.

  Args:
    folder: made if missing.
    sizes: by default those of `Sizes`.
    seeds: each determines a target, its network, inputs and draws.

  Raises:
    ValueError: if the folder has a run of other sizes.
  """
  sizes = sizes or Sizes()
  methods = make_methods(sizes)
  steps = [method.total_steps for method in methods.values()]
  # One run of the grid is the first seed's.
  total_steps = len(seeds) * sum(steps) + (len(LEARNING_RATES) - 1) * steps[0]
  with Progress(total_steps) as progress:
    runs = Runs(
      folder, sizes, methods, progress=progress, total_steps=total_steps
    )
    grid = {
      rate: runs.record("dense", rate, seeds[0])["losses"][-1]
      for rate in LEARNING_RATES
    }
    best = min(grid, key=lambda rate: grid[rate])
    # Seed by seed, so that methods have equally many runs at any time.
    for seed, name in itertools.product(seeds, methods):
      runs.record(name, best, seed)
    rows = {
      name: _method_record(
        method, sizes, [runs.record(name, best, seed) for seed in seeds]
      )
      for name, method in methods.items()
    }
  results = {
    "provenance": provenance(),
    "sizes": dataclasses.asdict(sizes),
    "seeds": list(seeds),
    "seconds": runs.seconds,
    "learning_rates": {f"{rate:g}": loss for rate, loss in grid.items()},
    "learning_rate": best,
    "path_lengths": list(PATH_LENGTHS),
    "boundaries": list(methods["raptr"].policy.boundaries),
    "methods": rows,
  }
  files.write_json(folder / RESULTS_FILE, results)


def _method_record(
  method: Method, sizes: Sizes, runs: Sequence[Record]
) -> Record:
  return {
    "label": method.label,
    "color": method.color,
    "total_steps": method.total_steps,
    "solved_for": dict(method.policy.solved_for),
    "flop_factor_nominal": method.nominal_factor(sizes),
    "runs": list(runs),
  }


class Runs:
  """The runs of a folder, each trained once and then read from its file."""

  def __init__(
    self,
    folder: Path,
    sizes: Sizes,
    methods: Mapping[str, Method],
    *,
    progress: Progress,
    total_steps: int,
  ):
    folder.mkdir(parents=True, exist_ok=True)
    self._folder = folder
    self._sizes = sizes
    self._methods = methods
    self._total_steps = total_steps
    self._progress = progress
    self._records: dict[Path, Record] = {}
    self._steps = self._trained_steps = 0
    self._trained_seconds = 0.0
    # Equal arguments give the same object, so that programs compile once.
    self._optimizer = functools.cache(self._make_optimizer)

  @property
  def seconds(self) -> float:
    """Time of all runs, including compilation and evaluation."""
    return float(sum(r["seconds"] for r in self._records.values()))

  def record(self, name: str, learning_rate: float, seed: int) -> Record:
    """A run's settings, evaluations and seconds."""
    path = self._folder / f"{name}_lr{learning_rate:g}_seed{seed}.json"
    if path not in self._records:
      if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        self._check(path, record)
        self._steps += self._methods[name].total_steps
      else:
        record = self._train(path.stem, name, learning_rate, seed)
        files.write_json(path, record)
      self._records[path] = record
    return self._records[path]

  def _check(self, path: Path, record: Record) -> None:
    sizes = dataclasses.asdict(self._sizes)
    if record["sizes"] != sizes:
      raise ValueError(
        f"{path} is of sizes {record['sizes']}, expected {sizes}: delete it, or"
        " choose another folder."
      )

  def _make_optimizer(
    self, learning_rate: float, total_steps: int
  ) -> optim.Optimizer:
    rate = learning_rates.linear(
      peak=learning_rate,
      warmup_steps=self._sizes.warmup_steps,
      total_steps=total_steps,
    )
    return optim.adamw(learning_rate=rate)

  def _train(
    self, title: str, name: str, learning_rate: float, seed: int
  ) -> Record:
    sizes, method = self._sizes, self._methods[name]
    began = time.monotonic()
    done: list[polynomial.Evaluation] = []
    for evaluation in polynomial.train(
      polynomial.ResidualMlp(sizes.num_layers, sizes.width, sizes.mlp_dim),
      polynomial.random_target(
        seed,
        num_bits=sizes.num_bits,
        max_degree=sizes.max_degree,
        terms_per_degree=sizes.terms_per_degree,
      ),
      method.policy,
      self._optimizer(learning_rate, method.total_steps),
      total_steps=method.total_steps,
      batch_size=sizes.batch_size,
      eval_period=sizes.eval_period,
      seed=seed,
    ):
      done.append(evaluation)
      seconds = time.monotonic() - began
      if self._progress.is_terminal or evaluation.step == method.total_steps:
        self._show(title, evaluation, seconds)
    self._steps += method.total_steps
    self._trained_steps += method.total_steps
    self._trained_seconds += seconds
    return {
      "seed": seed,
      "learning_rate": learning_rate,
      "sizes": dataclasses.asdict(sizes),
      "seconds": seconds,
      "steps": [e.step for e in done],
      "layers_run": [e.layers_run for e in done],
      "losses": [e.loss for e in done],
      "degree_errors": [e.degree_errors for e in done],
    }

  def _show(
    self, title: str, evaluation: polynomial.Evaluation, seconds: float
  ) -> None:
    step, left = evaluation.step, None
    if step:
      pace = (self._trained_seconds + seconds) / (self._trained_steps + step)
      left = pace * (self._total_steps - self._steps - step)
    status = f"{title:<42} loss {evaluation.loss:.4f}"
    self._progress.update(self._steps + step, status, left)
