"""The runs of `theory_polynomial.py`: sizes, methods, and their records."""

import dataclasses
import functools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from raptr_jax import optim, policies
from raptr_jax.display import Display, Lines
from raptr_jax.schedule import stage_schedule
from raptr_jax.theory import polynomial
from tasks import records

Record: TypeAlias = dict[str, Any]

FLOP_FACTOR = 4 / 3
PATH_LENGTHS = (6, 8, 10, 12)


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Of the task, the network and a run; all of them are ours.

  Attributes:
    num_bits: n.
    max_degree: the target has terms of degrees 1 to this.
    terms_per_degree: random parities of each degree.
    num_layers: L.
    width: D.
    mlp_dim: F.
    batch_size: inputs in a step.
    total_steps: steps of all methods but dense training at equal FLOPs.
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
  """What is compared.

  Attributes:
    policy: draws the layers of each step.
    total_steps: steps of its runs.
  """

  policy: policies.LayerPolicy
  total_steps: int

  def nominal_factor(self, sizes: Sizes) -> float:
    """FLOPs of the dense runs over expected ones, blocks alone."""
    steps = jnp.arange(self.total_steps)
    expected = jax.vmap(self.policy.inclusion)(steps).sum()
    return sizes.total_steps * sizes.num_layers / float(expected)


def make_methods(sizes: Sizes) -> dict[str, Method]:
  """All methods, by the names of `METHOD_STYLES`; the first is the reference."""
  num_layers, total_steps = sizes.num_layers, sizes.total_steps
  schedule = stage_schedule(
    path_lengths=PATH_LENGTHS, total_steps=total_steps, num_layers=num_layers
  )
  dense = policies.full(num_layers=num_layers)
  return {
    "dense": Method(dense, total_steps),
    "dense_equal_flops": Method(dense, round(total_steps / FLOP_FACTOR)),
    "raptr": Method(policies.raptr(schedule=schedule), total_steps),
    "constant": Method(
      policies.constant(num_layers=num_layers, flop_factor=FLOP_FACTOR),
      total_steps,
    ),
    "progressive_layer_dropping": Method(
      policies.progressive_layer_dropping(
        num_layers=num_layers,
        total_steps=total_steps,
        flop_factor=FLOP_FACTOR,
      ),
      total_steps,
    ),
  }


class Runs:
  """The runs of a folder: read if they are there, trained if not."""

  def __init__(
    self,
    folder: Path,
    sizes: Sizes,
    methods: Mapping[str, Method],
    total_steps: int,
    display: Display,
  ):
    self._folder = folder
    self._sizes = sizes
    self._methods = methods
    self._total_steps = total_steps
    self._display = display
    self._records: dict[Path, Record] = {}
    self._steps = self._trained_steps = 0
    self._trained_seconds = 0.0
    # The same object for the same numbers: programs are compiled once.
    self._optimizer = functools.cache(self._make_optimizer)

  @property
  def seconds(self) -> float:
    """Time of all runs, compilation and evaluation included."""
    return sum(record["seconds"] for record in self._records.values())

  def record(self, name: str, learning_rate: float, seed: int) -> Record:
    """What a run has left: its settings, evaluations and seconds."""
    path = self._folder / f"{name}_lr{learning_rate:g}_seed{seed}.json"
    if path not in self._records:
      if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        self._check(path, record)
        self._steps += self._methods[name].total_steps
      else:
        record = self._train(path.stem, name, learning_rate, seed)
        records.write_json(path, record)
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
    rate = optim.linear(
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
      self._show(title, evaluation, seconds, method.total_steps)
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
    self,
    title: str,
    evaluation: polynomial.Evaluation,
    seconds: float,
    last_step: int,
  ) -> None:
    """Moves a bar at every evaluation, prints a line at the end of a run."""
    step = evaluation.step
    if step == 0 or (step < last_step and isinstance(self._display, Lines)):
      return
    pace = (self._trained_seconds + seconds) / (self._trained_steps + step)
    left = pace * (self._total_steps - self._steps - step)
    status = f"{title:<42} loss {evaluation.loss:.4f}"
    self._display.train(self._steps + step, status, f"{left / 60:.1f} min")
