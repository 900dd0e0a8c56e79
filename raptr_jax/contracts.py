"""What the parts of the codebase hand to each other.

A training method is two pure functions of the step: a *policy*, which draws
the layers that run, and (for stacking) a *growth plan*. Everything else is
shared, and knows the method only through the `LayerDraw` of a step.

Shape letters, here and everywhere:

  B batch   T tokens   P predicted positions   D model width   F MLP width
  H heads   K head width   V vocabulary   L layers   k kept layers
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeAlias

import flax.struct
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Params: TypeAlias = Any  # A pytree of parameters.
Batch: TypeAlias = Mapping[str, np.ndarray]
Metrics: TypeAlias = dict[str, Array]  # Sums and weights: they add up.


@flax.struct.dataclass
class LayerDraw:
  """Which layers run in a step, and how strongly: what a policy draws.

  Attributes:
    mask: true for a layer that runs; a layer that does not is the identity.
    scale: factor on the residual branch of a kept layer; 1 for no scaling.
  """

  mask: Bool[Array | np.ndarray, "L"]
  scale: Float[Array | np.ndarray, "L"]


@flax.struct.dataclass
class LayerPath:
  """The same draw by the indices of its kept layers.

  The number of kept layers is part of the type: a program that takes a path
  of k layers holds k layers' work, and each k is a program of its own.

  Attributes:
    indices: kept layers, ascending.
    scale: factor on the residual branch of each of them.
  """

  indices: Int[Array | np.ndarray, "k"]
  scale: Float[Array | np.ndarray, "k"]


def in_layer_stack(path: tuple[Any, ...]) -> bool:
  """Whether the leaf at this path of a tree has a row for each layer.

  Parameters of a stack are under `layers`, and so is their optimizer state.
  """
  return "layers" in key_names(path)


def key_names(path: tuple[Any, ...]) -> set[str]:
  """Names on the path of a tree's leaf."""
  return {str(getattr(key, "key", getattr(key, "name", key))) for key in path}


class Policy(Protocol):
  """A layer-dropping method, as a pure function of the step.

  Attributes:
    num_layers: L.
    boundaries: steps at which a new stage begins, ascending, without 0.
    solved: numbers that were solved for to meet a FLOP factor, by name.
  """

  @property
  def num_layers(self) -> int: ...

  @property
  def boundaries(self) -> tuple[int, ...]: ...

  @property
  def solved(self) -> Mapping[str, float]: ...

  def __call__(self, key: jax.Array, step: Int[Array, ""]) -> LayerDraw:
    """Draws the layers of `step`; the same key and step give the same draw."""

  def inclusion(self, step: Int[Array, ""]) -> Float[Array, "L"]:
    """Probability of each layer to run in `step`."""


class Model(Protocol):
  """A model that can train any path of its layers.

  Attributes:
    num_layers: L.
  """

  @property
  def num_layers(self) -> int: ...

  def init(self, key: jax.Array) -> Params:
    """Fresh parameters, boxed with their logical axis names."""

  def loss_fn(
    self,
    params: Params,
    batch: Mapping[str, Array],
    dropout_key: jax.Array | None,
    draw: LayerDraw | LayerPath,
  ) -> tuple[Float[Array, ""], Metrics]:
    """Sum of the loss over targets, and metrics as sums and weights.

    Args:
      params: parameters without boxes.
      batch: a batch of this model's task.
      dropout_key: None switches dropout off.
      draw: the layers that run.

    Returns:
      The summed loss, and at least `loss` (the same sum), `accuracy` (a sum)
      and `weight` (number of targets), all float32 scalars.
    """

  def score_batch(
    self,
    params: Params,
    batch: Mapping[str, Array],
    draw: LayerDraw | LayerPath,
  ) -> Float[Array, "B"]:
    """Log-likelihood of the targets of each example."""

  def step_flops(self, batch: Mapping[str, Any]) -> Any:
    """`flops.StepFlops` of a batch, of which only shapes are read."""


class Dataset(Protocol):
  """Batches as a pure function of the position in the data.

  Attributes:
    batch_size: examples in a batch, over all hosts.
    num_examples: examples in an epoch; None if the stream does not tell.
    unigram_counts: how often each token occurs in the training text; None if
      not known.
  """

  batch_size: int
  num_examples: int | None
  unigram_counts: np.ndarray | None

  def open(self) -> None:
    """Opens the data, which the constructor does not; raises if it is amiss."""

  def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a batch over all hosts; reads no data."""

  def batches(self, start: int) -> Iterator[Batch]:
    """This host's part of batch `start`, `start + 1`, ... without end."""
