"""Layer-dropping methods: which layers run in a step, and how strongly.

A method is its inclusion probabilities over time, a sampler that draws a mask
with these marginals, and a scaling of the kept layers. To add one, write a
function here that returns a `LayerPolicy`, and a gin file in `gin/methods/`.

Draws depend on the key and the step alone: nothing about them is saved, and a
resumed run draws the same paths, on any number of devices.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from raptr_jax.contracts import LayerDraw
from raptr_jax.schedule import StageSchedule

Inclusion = Callable[[Int[Array, ""]], Float[Array, "L"]]
Sampler = Callable[[jax.Array, Float[Array, "L"]], Bool[Array, "L"]]
Scaling = Callable[[Bool[Array, "L"], Float[Array, "L"]], Float[Array, "L"]]


@dataclasses.dataclass(frozen=True)
class LayerPolicy:
  """A `contracts.Policy` put together from its three parts.

  Attributes:
    num_layers: L.
    inclusion: step -> probability of each layer to run.
    sampler: name in `SAMPLERS`.
    scaling: name in `SCALINGS`.
    boundaries: steps at which a new stage begins.
  """

  num_layers: int
  inclusion: Inclusion
  sampler: str = "bernoulli"
  scaling: str = "none"
  boundaries: tuple[int, ...] = ()

  def __post_init__(self):
    for name, table in (("sampler", SAMPLERS), ("scaling", SCALINGS)):
      if getattr(self, name) not in table:
        raise ValueError(
          f"{name} = {getattr(self, name)!r}, expected one of {sorted(table)}."
        )

  def __call__(self, key: jax.Array, step: Int[Array, ""]) -> LayerDraw:
    inclusion = self.inclusion(step)
    mask = SAMPLERS[self.sampler](jax.random.fold_in(key, step), inclusion)
    scale = SCALINGS[self.scaling](mask, inclusion)
    return LayerDraw(mask, jnp.where(mask, scale, 0.0))


def full(*, num_layers: int) -> LayerPolicy:
  """Dense training: every layer, every step."""
  return LayerPolicy(num_layers, lambda step: jnp.ones(num_layers))


def raptr(
  *,
  schedule: StageSchedule,
  sampler: str = "bernoulli",
  fixed_layers: Sequence[int] = (0, -1),
  scaling: str = "none",
) -> LayerPolicy:
  """Random paths that grow longer in stages (RaPTr, arXiv 2402.05913).

  In a stage of expected path length n the layers of the fixed set I always
  run, each other one with probability p = (n - |I|) / (L - |I|).

  Args:
    schedule: expected path length of each stage.
    sampler: "bernoulli" draws each layer independently (the paper's);
      "exact" draws uniformly among the subsets of exactly n layers.
    fixed_layers: I, by index, negative ones from the end. The paper's choice
      is the first and the last layer.
    scaling: of kept layers, a name in `SCALINGS`; the paper's v2 has none.

  Raises:
    ValueError: if a fixed layer does not exist, or a path is shorter than I.
  """
  fixed = _fixed_mask(fixed_layers, schedule.num_layers)
  shortest = min(stage.path_length for stage in schedule.stages)
  if shortest < fixed.sum():
    raise ValueError(
      f"The schedule has paths of {shortest:g} layers, but"
      f" raptr.fixed_layers = {tuple(fixed_layers)} keeps {int(fixed.sum())}:"
      " set longer stage_schedule.path_lengths or fewer raptr.fixed_layers."
    )
  return LayerPolicy(
    schedule.num_layers,
    lambda step: path_inclusion(schedule.path_length(step), fixed),
    sampler,
    scaling,
    schedule.boundaries,
  )


def constant(
  *,
  path_length: float,
  num_layers: int,
  sampler: str = "bernoulli",
  fixed_layers: Sequence[int] = (0, -1),
  scaling: str = "none",
) -> LayerPolicy:
  """RaPTr's sampler with one path length for the whole run.

  Stochastic depth with constant p: the control that tells what of RaPTr's
  gain comes from its schedule.

  Raises:
    ValueError: if the length is not between |I| and L.
  """
  fixed = _fixed_mask(fixed_layers, num_layers)
  if not fixed.sum() <= path_length <= num_layers:
    raise ValueError(
      f"constant.path_length = {path_length}, expected {int(fixed.sum())} (the"
      f" fixed layers) to {num_layers} (all)."
    )
  return LayerPolicy(
    num_layers,
    lambda step: path_inclusion(path_length, fixed),
    sampler,
    scaling,
  )


def path_inclusion(
  path_length: float | Float[Array, ""], fixed: Bool[Array, "L"]
) -> Float[Array, "L"]:
  """Inclusion probabilities of a path of this expected length."""
  num_free = (~fixed).sum()
  p = (path_length - fixed.sum()) / jnp.maximum(num_free, 1)
  return jnp.where(fixed, 1.0, p.astype(jnp.float32))


def _fixed_mask(
  fixed_layers: Sequence[int], num_layers: int
) -> Bool[Array, "L"]:
  for layer in fixed_layers:
    if not -num_layers <= layer < num_layers:
      raise ValueError(
        f"fixed_layers has {layer}, expected {-num_layers} to {num_layers - 1}"
        f" for a model of {num_layers} layers."
      )
  indices = [layer % num_layers for layer in fixed_layers]
  return jnp.asarray([layer in indices for layer in range(num_layers)])


def bernoulli(key: jax.Array, inclusion: Float[Array, "L"]) -> Bool[Array, "L"]:
  """Draws each layer independently."""
  return jax.random.uniform(key, inclusion.shape) < inclusion


def exact(key: jax.Array, inclusion: Float[Array, "L"]) -> Bool[Array, "L"]:
  """Draws uniformly among the subsets of the expected size.

  Layers of probability 1 are always in, those of 0 never; the others must
  share one probability, which is then their marginal. An expected size that is
  no whole number is rounded at random, so that it holds in the mean.
  """
  layer_key, size_key = jax.random.split(key)
  # Probabilities are float32: a size of 6 may read 6.0000005.
  size = inclusion.sum()
  size = jnp.where(jnp.abs(size - jnp.rint(size)) < 1e-3, jnp.rint(size), size)
  extra = jax.random.uniform(size_key) < size - jnp.floor(size)
  uniform = jax.random.uniform(layer_key, inclusion.shape)
  score = jnp.where(inclusion >= 1, 2.0, jnp.where(inclusion <= 0, -1, uniform))
  rank = jnp.argsort(jnp.argsort(-score))
  return rank < jnp.floor(size) + extra


def no_scaling(mask, inclusion):
  """1: the default of the paper's second version."""
  return jnp.ones_like(inclusion)


def sqrt_gap(mask, inclusion):
  """sqrt(g + 1) for a layer that follows g bypassed ones.

  Our reading of the paper's appendix, which is not confirmed.
  """
  index = jnp.arange(mask.shape[0])
  last_kept = jax.lax.cummax(jnp.where(mask, index, -1))
  previous = jnp.concatenate([jnp.array([-1]), last_kept[:-1]])
  return jnp.sqrt((index - previous).astype(jnp.float32))


def sqrt_global(mask, inclusion):
  """sqrt(L / k): the whole path keeps the variance of the full network."""
  kept = jnp.maximum(mask.sum(), 1)
  return jnp.full_like(inclusion, jnp.sqrt(mask.shape[0] / kept))


def inverse_p(mask, inclusion):
  """1 / p: each layer's residual keeps its mean (inverted dropout)."""
  return 1 / jnp.maximum(inclusion, jnp.finfo(inclusion.dtype).tiny)


SAMPLERS: dict[str, Sampler] = {"bernoulli": bernoulli, "exact": exact}
SCALINGS: dict[str, Scaling] = {
  "none": no_scaling,
  "sqrt_gap": sqrt_gap,
  "sqrt_global": sqrt_global,
  "inverse_p": inverse_p,
}
