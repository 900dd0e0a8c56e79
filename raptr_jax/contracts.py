"""What the parts of the codebase hand to each other.

A training method is two pure functions of the step: a *policy*, which draws
the layers that run, and, for stacking, a *growth plan*. All methods share the
rest of the code, which knows them only by their draws.

Shape letters, here and everywhere:

  B batch   T tokens   S tokens or cache slots that are attended to
  P predicted positions   D model width   F MLP width   H heads   K head width
  G heads of keys and values   V vocabulary   L layers of a stack
  k kept layers   N steps of a run

A model has one or more stacks of layers, each named after its parameters.
Whatever differs between stacks is a mapping by stack name.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from raptr_jax.tasks.files import AnyPath

Params: TypeAlias = PyTree  # Model parameters, or a tree of their structure.
Cache: TypeAlias = PyTree  # What layers remember of the tokens they have read.
Batch: TypeAlias = Mapping[str, np.ndarray]  # Features [B, ...], on the host.
DeviceBatch: TypeAlias = Mapping[str, Array]  # The same, on the devices.
BatchSpec: TypeAlias = dict[str, jax.ShapeDtypeStruct]  # The same, as shapes.
AnyBatch: TypeAlias = Batch | DeviceBatch | BatchSpec
Metrics: TypeAlias = dict[str, Array]  # Sums and weights, so that they add up.
Step: TypeAlias = int | Int[Array, ""]
DropoutKey: TypeAlias = Key[Array, ""] | None  # None switches dropout off.


@flax.struct.dataclass
class LayerPath:
  """A draw given by the indices of its kept layers.

  The number of kept layers k is part of the type: each k compiles to its own
  program, which does the work of k layers. Shorter paths can share it.

  Attributes:
    indices: kept layers, ascending.
    scale: factor on the residual branch of each kept layer.
    used: false for entries after the last kept layer, which a conditional
      skips; None if there are none, and no conditionals.
  """

  indices: Int[Array | np.ndarray, "k"]
  scale: Float[Array | np.ndarray, "k"]
  used: Bool[Array | np.ndarray, "k"] | None = None

  def kept_mask(self, num_layers: int) -> Bool[Array, "L"]:
    """True for each of the L layers that is on the path."""
    kept = jnp.zeros(num_layers, bool).at[self.indices]
    return kept.set(True) if self.used is None else kept.max(self.used)


@flax.struct.dataclass
class LayerDraw:
  """What a policy draws: the layers that run in a step, and their scales.

  Those of several steps are one `LayerDraw` whose arrays have a leading axis.

  Attributes:
    mask: true for a layer that runs; any other layer is the identity.
    scale: factor on the residual branch of a kept layer; 1 for no scaling.
  """

  mask: Bool[Array | np.ndarray, "*steps L"]
  scale: Float[Array | np.ndarray, "*steps L"]

  def kept_mask(self, num_layers: int) -> Bool[Array, "L"]:
    """The mask itself, like `LayerPath.kept_mask`."""
    return jnp.asarray(self.mask)

  def path(self) -> LayerPath:
    """The same draw by its kept layers; on the host, since k varies."""
    indices = np.flatnonzero(self.mask).astype(np.int32)
    return LayerPath(indices, np.asarray(self.scale)[indices])


# The layers that run in a step, by stack.
Draws: TypeAlias = Mapping[str, LayerDraw | LayerPath]


@dataclasses.dataclass(frozen=True)
class StepFlops:
  """FLOPs of a training step as a function of its kept layers.

  Attributes:
    blocks: forward FLOPs of one layer on a batch, by stack.
    other: forward FLOPs of everything outside the stacks.
  """

  blocks: Mapping[str, float]
  other: float

  def layers(self, kept: Mapping[str, float]) -> float:
    """The part of `step` that is spent in layers."""
    return 3 * sum(self.blocks[name] * count for name, count in kept.items())

  def step(self, kept: Mapping[str, float]) -> float:
    """FLOPs of a forward and backward pass through paths of these lengths."""
    return self.layers(kept) + 3 * self.other


class Policy(Protocol):
  """A layer-dropping method for one stack, as a pure function of the step.

  Attributes:
    num_layers: L.
    boundaries: first step of each stage but the first, ascending.
    solved_for: numbers that a FLOP factor determined, by name.
  """

  @property
  def num_layers(self) -> int: ...

  @property
  def boundaries(self) -> tuple[int, ...]: ...

  @property
  def solved_for(self) -> Mapping[str, float]: ...

  def __call__(self, key: Key[Array, ""], step: Step) -> LayerDraw:
    """Draws the layers of `step`; the same key and step give the same draw."""

  def keep_probabilities(self, step: Step) -> Float[Array, "L"]:
    """The probability of each layer to run in `step`."""


class Model(Protocol):
  """A model that can train any path of its layers."""

  @property
  def stacks(self) -> Mapping[str, int]:
    """L of each stack."""

  def init(self, key: Key[Array, ""]) -> Params:
    """Fresh parameters, boxed with their logical axis names."""

  def loss_fn(
    self,
    params: Params,
    batch: DeviceBatch,
    draws: Draws,
    dropout_key: DropoutKey,
  ) -> tuple[Float[Array, ""], Metrics]:
    """Computes the loss, summed over targets, and metrics.

    Args:
      params: parameters without boxes.
      batch: a batch of this model's task.
      draws: the layers that run.
      dropout_key: None switches dropout off.

    Returns:
      What is minimised, and the metrics, float32 scalars: at least `loss`
      (cross entropy in nats), `accuracy` and `weight` (number of targets).
    """

  def score_batch(
    self, params: Params, batch: DeviceBatch, draws: Draws
  ) -> Float[Array, "B"]:
    """Log-likelihood of each example's targets, in nats."""

  def step_flops(self, batch: AnyBatch) -> StepFlops:
    """FLOPs of a training step on a batch, of which it reads only shapes."""


class Dataset(Protocol):
  """Batches as a pure function of their number, unless it is a stream.

  Attributes:
    batch_size: examples in a batch, over all hosts.
    num_examples: examples in an epoch; None if unknown, as for streams.
    unigram_counts: of tokens in the training text; None if unknown.
    example_kinds: names of the kinds of examples, such as denoisers, which the
      feature `example_kind` of a batch indexes: [B, 1], or one for each target.
      Empty if there is one.

  It may have a `vocabulary_fingerprint`, a text that differs between
  vocabularies: then a run does not go on with other tokens behind its ids.
  """

  @property
  def batch_size(self) -> int: ...

  @property
  def num_examples(self) -> int | None: ...

  @property
  def unigram_counts(self) -> np.ndarray | None: ...

  @property
  def example_kinds(self) -> tuple[str, ...]: ...

  def open(self) -> None:
    """Opens the data; constructing a dataset does not.

    Raises an `OSError` or a `ValueError` if the data is missing or invalid.
    """

  def batch_spec(self) -> BatchSpec:
    """Shapes and types of a batch over all hosts; reads no data."""

  def batches(self, start: int) -> Iterator[Batch]:
    """Yields this host's part of batches `start`, `start + 1`, ... forever."""


@runtime_checkable
class StoredDataset(Dataset, Protocol):
  """Batches from files that can be checked; other datasets are not checked."""

  def files(self) -> Sequence[AnyPath]:
    """The files that an opened dataset reads."""

  def check_file(self, path: AnyPath) -> None:
    """Reads one of them whole.

    Raises an `OSError` that says what to do if it is damaged.
    """


@runtime_checkable
class StreamedDataset(Dataset, Protocol):
  """Batches whose number does not say where in the data they come from.

  Every host has a place of its own, an integer array whose shape is the same on
  all of them. Checkpoints hold the places of all hosts.
  """

  def batches(self, start: int) -> "StreamedBatches":
    """As for `Dataset`; it may have to read all that comes before."""

  def resume(
    self, start: int, places: Int[np.ndarray, "hosts ..."]
  ) -> "StreamedBatches":
    """Batches `start`, `start + 1`, ... of a run that has read to `places`.

    The number of hosts may have changed.
    """


class StreamedBatches(Protocol):
  """This host's part of batches, and its place."""

  def __iter__(self) -> Iterator[Batch]: ...

  def __next__(self) -> Batch: ...

  def get_state(self) -> Int[np.ndarray, "..."]:
    """This host's place after the last batch."""
