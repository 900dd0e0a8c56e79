"""Layer-dropping methods: which layers run in a step, and how strongly.

A method is its inclusion probabilities over time, a sampler that draws a mask
with these marginals, and a scaling of the kept layers. To add one, write a
function here that returns a `LayerPolicy`, and a gin file in `gin/methods/`.

Each method that drops layers has one free number, such as a rate. A FLOP factor
(dense FLOPs over the method's, of the layers alone) decides it, so that methods
can be compared at equal cost; for staged methods it is in `schedule.py`.

Draws depend on the key and the step alone: nothing about them is saved, and a
resumed run draws the same paths, on any number of devices.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
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
    solved: numbers that were solved for to meet a FLOP factor, by name.
  """

  num_layers: int
  inclusion: Inclusion
  sampler: str = "bernoulli"
  scaling: str = "none"
  boundaries: tuple[int, ...] = ()
  solved: Mapping[str, float] = dataclasses.field(
    default_factory=dict, hash=False
  )

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
    schedule.solved,
  )


def stacked(*, schedule: StageSchedule) -> LayerPolicy:
  """The lowest layers, as many as a growing model has: stacking's policy.

  How new layers come to their parameters is in `growth.py`.

  Args:
    schedule: number of layers in each stage; whole numbers.
  """
  layers = jnp.arange(schedule.num_layers)
  return LayerPolicy(
    schedule.num_layers,
    lambda step: (layers < schedule.path_length(step)).astype(jnp.float32),
    boundaries=schedule.boundaries,
    solved=schedule.solved,
  )


def constant(
  *,
  num_layers: int,
  path_length: float | None = None,
  flop_factor: float | None = None,
  sampler: str = "bernoulli",
  fixed_layers: Sequence[int] = (0, -1),
  scaling: str = "none",
) -> LayerPolicy:
  """RaPTr's sampler with one path length for the whole run.

  Stochastic depth with constant p: the control that tells what of RaPTr's
  gain comes from its schedule.

  Args:
    num_layers: L.
    path_length: expected path length.
    flop_factor: if set, decides `path_length`.
    sampler: as for `raptr`.
    fixed_layers: as for `raptr`.
    scaling: as for `raptr`.

  Raises:
    ValueError: if the length is not between |I| and L, or neither it nor a
      FLOP factor is set.
  """
  fixed = _fixed_mask(fixed_layers, num_layers)
  solved = {}
  if flop_factor is not None:
    path_length = solved["path length"] = num_layers / flop_factor
  if path_length is None:
    raise ValueError("Set FLOP_FACTOR or policies.constant.path_length.")
  if not fixed.sum() <= path_length <= num_layers:
    raise ValueError(
      f"constant.path_length = {path_length:g}, expected {int(fixed.sum())} (the"
      f" fixed layers) to {num_layers} (all): set another FLOP_FACTOR or"
      " policies.constant.path_length."
    )
  inclusion = path_inclusion(path_length, fixed)
  return LayerPolicy(
    num_layers, lambda step: inclusion, sampler, scaling, solved=solved
  )


def layerdrop(
  *,
  num_layers: int,
  drop_rate: float = 0.2,
  flop_factor: float | None = None,
) -> LayerPolicy:
  """LayerDrop (arXiv 1909.11556): every layer is dropped at the same rate.

  Kept layers are not scaled. All layers run in an evaluation. One draw serves
  the batch.

  Args:
    num_layers: L.
    drop_rate: probability of a layer to be left out.
    flop_factor: if set, decides `drop_rate`.

  Raises:
    ValueError: if the rate is not in [0, 1).
  """
  solved = {}
  if flop_factor is not None:
    drop_rate = solved["drop rate"] = 1 - 1 / flop_factor
  if not 0 <= drop_rate < 1:
    raise ValueError(
      f"layerdrop.drop_rate = {drop_rate:g}, expected 0 to 1: set another"
      " FLOP_FACTOR or policies.layerdrop.drop_rate."
    )
  inclusion = jnp.full(num_layers, 1 - drop_rate, jnp.float32)
  return LayerPolicy(num_layers, lambda step: inclusion, solved=solved)


def progressive_layer_dropping(
  *,
  num_layers: int,
  total_steps: int,
  theta_bar: float = 0.5,
  decay: float = 100.0,
  indexing: str = "paper",
  flop_factor: float | None = None,
) -> LayerPolicy:
  """Drops more with time and with depth (PLD, arXiv 2010.13369).

  Layer i runs with probability 1 - (i / L) (1 - theta), where theta falls from
  1 to theta_bar, as theta(t) = (1 - theta_bar) exp(-decay t / total_steps) +
  theta_bar. A kept layer's residual is divided by its probability. The whole
  block has one gate.

  Args:
    num_layers: L.
    total_steps: steps of the whole run.
    theta_bar: the limit of theta.
    decay: how far theta falls within the run: the source's gamma of 0.001 over
      100k steps is 100.
    indexing: "paper" counts i from 1 to L; "deepspeed", as the authors' program
      did, from 0 to L - 1, so that the first layer always runs. That program
      divided layer i by the probability of layer i + 1, which we take for a
      mistake, and do not do.
    flop_factor: if set, decides `theta_bar`.

  Raises:
    ValueError: if theta_bar is not in [0, 1], or there is no such indexing.
  """
  first = {"paper": 1, "deepspeed": 0}.get(indexing)
  if first is None:
    raise ValueError(
      f"progressive_layer_dropping.indexing = {indexing!r}, expected 'paper' or"
      " 'deepspeed'."
    )
  depth = np.arange(first, first + num_layers) / num_layers
  solved = {}
  if flop_factor is not None:
    # Dropped layers of a mean step: sum(depth) (1 - theta_bar) mean(1 - fall).
    fallen = 1 - np.exp(-decay * np.arange(total_steps) / total_steps)
    dropped = num_layers * (1 - 1 / flop_factor)
    theta_bar = float(1 - dropped / (depth.sum() * fallen.mean()))
    solved["theta_bar"] = theta_bar
  if not 0 <= theta_bar <= 1:
    raise ValueError(
      f"progressive_layer_dropping.theta_bar = {theta_bar:g}, expected 0 to 1:"
      " set a smaller FLOP_FACTOR, or another theta_bar."
    )

  def inclusion(step):
    fall = jnp.exp(-decay * step / total_steps)
    theta = (1 - theta_bar) * fall + theta_bar
    return (1 - depth * (1 - theta)).astype(jnp.float32)

  return LayerPolicy(num_layers, inclusion, scaling="inverse_p", solved=solved)


def dont_drop_dropout(
  *,
  num_layers: int,
  total_steps: int,
  max_drop_rate: float = 0.6,
  flop_factor: float | None = None,
) -> LayerPolicy:
  """Drops less with time, more with depth ("Don't Drop Dropout").

  arXiv 2609.05275. Layer l = 0 ... L - 1 is dropped in step t of T at a rate of
  max_drop_rate l / (L - 1) (1 - t / (T - 1)), which saves a quarter of
  max_drop_rate, and a kept layer is divided by its probability.

  We depart from it in two ways: the source draws a mask for each sequence, here
  one draw serves the batch, so that a dropped layer costs nothing; and the
  residual of a (pre-norm) block is scaled once, since scaling attention and MLP
  of one mask one after the other does not keep the mean.

  At a rate near 1, which a FLOP factor near 4/3 asks for, the last layers run
  hardly ever at first, and are then scaled by large numbers.

  Args:
    num_layers: L.
    total_steps: T, steps of the whole run.
    max_drop_rate: of the last layer in the first step; 0.6 saves the 15 % that
      the source has for 1.8 B parameters.
    flop_factor: if set, decides `max_drop_rate`; 4/3 at most.

  Raises:
    ValueError: if the rate is not in [0, 1].
  """
  solved = {}
  if flop_factor is not None:
    # Rounded, so that a factor of 4/3 is not a rate above 1.
    max_drop_rate = round(4 * (1 - 1 / flop_factor), 9)
    solved["max drop rate"] = max_drop_rate
  if not 0 <= max_drop_rate <= 1:
    raise ValueError(
      f"dont_drop_dropout.max_drop_rate = {max_drop_rate:g}, expected 0 to 1:"
      " set a FLOP_FACTOR of at most 1.333, or another max_drop_rate."
    )
  depth = jnp.arange(num_layers) / max(num_layers - 1, 1)

  def inclusion(step):
    left = 1 - step / max(total_steps - 1, 1)
    return (1 - max_drop_rate * depth * left).astype(jnp.float32)

  return LayerPolicy(num_layers, inclusion, scaling="inverse_p", solved=solved)


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
  """1 / p: the residual of a pre-norm layer keeps its mean."""
  return 1 / jnp.maximum(inclusion, jnp.finfo(inclusion.dtype).tiny)


SAMPLERS: dict[str, Sampler] = {"bernoulli": bernoulli, "exact": exact}
SCALINGS: dict[str, Scaling] = {
  "none": no_scaling,
  "sqrt_gap": sqrt_gap,
  "sqrt_global": sqrt_global,
  "inverse_p": inverse_p,
}
