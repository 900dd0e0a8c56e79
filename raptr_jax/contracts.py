"""What the parts of the codebase hand to each other.

A training method is two pure functions of the step: a *policy*, which draws
the layers that run, and (for stacking) a *growth plan*. Everything else is
shared, and knows the method only through the `LayerDraw` of a step.

Shape letters, here and everywhere:

  B batch   T tokens   S slots or source tokens that are attended to
  P predicted positions   D model width   F MLP width   H heads   K head width
  V vocabulary   L layers of a stack   k kept layers

A model has one or several stacks of layers, each with a name: that of its
parameters. What differs between stacks is a mapping by that name.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar

import flax.struct
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Params: TypeAlias = Any  # A pytree of parameters.
Batch: TypeAlias = Mapping[str, np.ndarray]
Value = TypeVar("Value")
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


# The layers that run in a step, by the name of each stack.
Draws: TypeAlias = Mapping[str, LayerDraw | LayerPath]


def in_layer_stack(path: tuple[Any, ...]) -> bool:
  """Whether the leaf at this path of a tree has a row for each layer.

  Parameters of a stack are under `layers`, and so is their optimizer state.
  """
  return "layers" in key_names(path)


def of_stack(
  path: tuple[Any, ...], by_stack: Mapping[str, Value]
) -> Value | None:
  """What belongs to the stack that holds the leaf at this path of a tree.

  Returns:
    The value of the stack whose name is on the path; None outside of stacks.
  """
  if not in_layer_stack(path):
    return None
  names = key_names(path)
  return next(value for name, value in by_stack.items() if name in names)


def key_names(path: tuple[Any, ...]) -> set[str]:
  """Names on the path of a tree's leaf."""
  return {str(getattr(key, "key", getattr(key, "name", key))) for key in path}


class Policy(Protocol):
  """A layer-dropping method for one stack, as a pure function of the step.

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
  """A model that can train any path of the layers of its stacks."""

  @property
  def stacks(self) -> Mapping[str, int]:
    """L of each stack, by the name that its parameters have."""

  def init(self, key: jax.Array) -> Params:
    """Fresh parameters, boxed with their logical axis names."""

  def loss_fn(
    self,
    params: Params,
    batch: Mapping[str, Array],
    dropout_key: jax.Array | None,
    draws: Draws,
  ) -> tuple[Float[Array, ""], Metrics]:
    """Sum of the loss over targets, and metrics as sums and weights.

    Args:
      params: parameters without boxes.
      batch: a batch of this model's task.
      dropout_key: None switches dropout off.
      draws: the layers that run, of each stack.

    Returns:
      What is minimised, and at least `loss` (summed cross entropy in nats),
      `accuracy` (a sum) and `weight` (number of targets), all float32 scalars.
    """

  def score_batch(
    self,
    params: Params,
    batch: Mapping[str, Array],
    draws: Draws,
  ) -> Float[Array, "B"]:
    """Log-likelihood of the targets of each row, in nats."""

  def step_flops(self, batch: Mapping[str, Any]) -> Any:
    """`flops.StepFlops` of a batch, of which only shapes are read."""


class Generator(Model, Protocol):
  """A model that can write, token by token, with any path of its layers.

  A cache is a pytree whose leaves have the examples on their axis 1, so that a
  search can rearrange them, or are scalars.
  """

  def start(
    self,
    params: Params,
    prompts: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    paths: Mapping[str, LayerPath],
    max_new_tokens: int,
  ) -> tuple[Float[Array, "B V"], Any]:
    """Reads prompts.

    Args:
      params: parameters without boxes.
      prompts: tokens, padded on the right.
      lengths: tokens of each prompt, at least 1.
      paths: the layers that run.
      max_new_tokens: room for so many tokens.

    Returns:
      Logits of the first new token, float32, and a cache for `extend`.
    """

  def extend(
    self,
    params: Params,
    tokens: Int[Array, "B"],
    cache: Any,
    paths: Mapping[str, LayerPath],
  ) -> tuple[Float[Array, "B V"], Any]:
    """Takes the token that was chosen last; gives the next one's logits."""


class Dataset(Protocol):
  """Batches as a pure function of the position in the data.

  Attributes:
    batch_size: examples in a batch, over all hosts.
    num_examples: examples in an epoch; None if the stream does not tell.
    unigram_counts: how often each token occurs in the training text; None if
      not known.
    kinds: names of the kinds of rows, such as denoisers, that the feature
      `kind` [B, 1] of a batch counts from 0; empty if there is but one.
  """

  batch_size: int
  num_examples: int | None
  unigram_counts: np.ndarray | None
  kinds: tuple[str, ...]

  def open(self) -> None:
    """Opens the data, which the constructor does not; raises if it is amiss."""

  def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a batch over all hosts; reads no data."""

  def batches(self, start: int) -> Iterator[Batch]:
    """This host's part of batch `start`, `start + 1`, ... without end."""
