"""Policies: which layers run in a step, and how strongly.

A method has three parts: keep probabilities over time, a sampler that draws a
mask with these marginals, and a scaling of the kept layers. To add a method,
write a function that returns a `LayerPolicy`, in a module of its own, and a gin
file.

Each method that drops layers has one free number, such as a rate. A FLOP factor
(dense FLOPs over the method's, counting only layers) determines it, so that
methods can be compared at equal cost; for staged methods see `schedule.py`.

Draws depend only on the key and the step: nothing about them is saved, and a
resumed run draws the same paths on any number of devices.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from raptr_jax.contracts import LayerDraw, Step
from raptr_jax.methods.samplers import (
  SAMPLERS,
  Sampler,
  fixed_mask,
  path_keep_probabilities,
)
from raptr_jax.methods.scalings import SCALINGS, Scaling
from raptr_jax.methods.schedule import StageSchedule

# Step -> probability of each layer to run.
KeepProbabilities = Callable[[Step], Float[Array, "L"]]


@dataclasses.dataclass(frozen=True)
class LayerPolicy:
  """A `contracts.Policy`, assembled from its three parts.

  Attributes:
    num_layers: L.
    keep_probabilities: step -> probability of each layer to run.
    sampler: name in `SAMPLERS`, or a function like those.
    scaling: name in `SCALINGS`, or a function like those.
    boundaries: first step of each stage but the first.
    solved_for: numbers that a FLOP factor determined, by name.
  """

  num_layers: int
  keep_probabilities: KeepProbabilities
  sampler: str | Sampler = "bernoulli"
  scaling: str | Scaling = "none"
  boundaries: tuple[int, ...] = ()
  solved_for: Mapping[str, float] = dataclasses.field(
    default_factory=dict, hash=False
  )

  def __post_init__(self) -> None:
    for name, table in (("sampler", SAMPLERS), ("scaling", SCALINGS)):
      value = getattr(self, name)
      if not callable(value) and value not in table:
        raise ValueError(
          f"{name} = {value!r}, expected one of {sorted(table)}: set"
          f" --gin.policies.raptr.{name}, or PATH_SAMPLER for the sampler."
        )

  def __call__(self, key: Key[Array, ""], step: Step) -> LayerDraw:
    sampler, scaling = self.sampler, self.scaling
    draw_mask = SAMPLERS[sampler] if isinstance(sampler, str) else sampler
    scale_layers = SCALINGS[scaling] if isinstance(scaling, str) else scaling
    keep_probabilities = self.keep_probabilities(step)
    mask = draw_mask(jax.random.fold_in(key, step), keep_probabilities)
    scale = scale_layers(mask, keep_probabilities)
    return LayerDraw(mask, jnp.where(mask, scale, 0.0))


def full(*, num_layers: int) -> LayerPolicy:
  """Dense training: every layer, every step."""
  return LayerPolicy(num_layers, lambda step: jnp.ones(num_layers))


def raptr(
  *,
  schedule: StageSchedule,
  sampler: str | Sampler = "bernoulli",
  fixed_layers: Sequence[int] = (0, -1),
  scaling: str | Scaling = "none",
) -> LayerPolicy:
  """Random paths that grow longer in stages (RaPTr, arXiv 2402.05913).

  In a stage of expected path length n, the layers of the fixed set I always
  run, and every other layer runs with probability p = (n - |I|) / (L - |I|).

  Args:
    schedule: expected path length of each stage.
    sampler: "bernoulli" draws each layer independently (the paper's);
      "exact" draws uniformly among the subsets of exactly n layers.
    fixed_layers: I, by index; negative indices count from the end. The paper
      fixes the first and the last layer.
    scaling: of kept layers, a name in `SCALINGS`; the paper's v2 has none.

  Raises:
    ValueError: if a fixed layer does not exist, or a stage's paths are shorter
      than I.
  """
  fixed = fixed_mask(fixed_layers, schedule.num_layers)
  shortest = min(stage.path_length for stage in schedule.stages)
  if shortest < fixed.sum():
    raise ValueError(
      f"The schedule has paths of {shortest:g} layers, but"
      f" policies.raptr.fixed_layers = {tuple(fixed_layers)} keeps"
      f" {int(fixed.sum())}: set longer schedule.stage_schedule.path_lengths or"
      " fewer policies.raptr.fixed_layers."
    )
  return LayerPolicy(
    schedule.num_layers,
    lambda step: path_keep_probabilities(schedule.path_length(step), fixed),
    sampler,
    scaling,
    schedule.boundaries,
    schedule.solved_for,
  )


def constant(
  *,
  num_layers: int,
  path_length: float | None = None,
  flop_factor: float | None = None,
  sampler: str | Sampler = "bernoulli",
  fixed_layers: Sequence[int] = (0, -1),
  scaling: str | Scaling = "none",
) -> LayerPolicy:
  """RaPTr's sampler with one path length for the whole run.

  Stochastic depth with constant p: a control that shows how much of RaPTr's
  gain comes from its schedule.

  Args:
    num_layers: L.
    path_length: expected path length.
    flop_factor: if set, determines `path_length`.
    sampler: as for `raptr`.
    fixed_layers: as for `raptr`.
    scaling: as for `raptr`.

  Raises:
    ValueError: if the length is not between |I| and L, or if neither it nor a
      FLOP factor is set.
  """
  fixed = fixed_mask(fixed_layers, num_layers)
  solved_for = {}
  if flop_factor is not None:
    path_length = solved_for["path length"] = num_layers / flop_factor
  if path_length is None:
    raise ValueError("Set FLOP_FACTOR or policies.constant.path_length.")
  if not fixed.sum() <= path_length <= num_layers:
    raise ValueError(
      f"policies.constant.path_length = {path_length:g}, expected"
      f" {int(fixed.sum())} (the fixed layers) to {num_layers} (all): set"
      " another FLOP_FACTOR or policies.constant.path_length."
    )
  probabilities = path_keep_probabilities(path_length, fixed)
  return LayerPolicy(
    num_layers,
    lambda step: probabilities,
    sampler,
    scaling,
    solved_for=solved_for,
  )


def stacked(*, schedule: StageSchedule) -> LayerPolicy:
  """Stacking's policy: the lowest layers, as many as the model has grown to.

  `growth.py` says where new layers get their parameters from.

  Args:
    schedule: number of layers in each stage; whole numbers.
  """
  layers = jnp.arange(schedule.num_layers)
  return LayerPolicy(
    schedule.num_layers,
    lambda step: (layers < schedule.path_length(step)).astype(jnp.float32),
    boundaries=schedule.boundaries,
    solved_for=schedule.solved_for,
  )
