"""Batches of examples that memory holds, such as those of a labelled task."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from raptr_jax.contracts import Batch, BatchSpec
from raptr_jax.data.order import Order
from raptr_jax.data.text_dataset import HostPart

# The features of an example, each without the axis of the batch.
Features = Callable[[Any], Mapping[str, np.ndarray]]


@dataclasses.dataclass(kw_only=True, eq=False)
class ExampleDataset:
  """A `contracts.Dataset`: each epoch has every example once.

  Epochs follow one another without a gap, so that a batch may have the end of
  one and the beginning of the next.

  Attributes:
    examples: at least one.
    features: of an example, of the same shapes for all.
    batch_size: examples in a batch, over all hosts.
    seed: of the order of an epoch.
    shuffle: whether there is one.
  """

  examples: Sequence[Any]
  features: Features
  batch_size: int
  seed: int = 0
  shuffle: bool = True
  unigram_counts: None = None
  example_kinds: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    if not self.examples:
      raise ValueError("ExampleDataset.examples is empty, expected some.")
    self._host = HostPart.of(self.batch_size)
    self._order = Order(seed=self.seed, shuffle=self.shuffle)

  @property
  def num_examples(self) -> int:
    return len(self.examples)

  def open(self) -> None:
    """Does nothing: memory has the examples."""

  def batch_spec(self) -> BatchSpec:
    """Shapes and types of a batch over all hosts."""
    return {
      name: jax.ShapeDtypeStruct((self.batch_size, *x.shape), x.dtype)
      for name, x in self.features(self.examples[0]).items()
    }

  def batches(self, start: int) -> Iterator[Batch]:
    """Yields this host's part of batches `start`, `start + 1`, ... forever."""
    while True:
      first = start * self.batch_size + self._host.begin
      places = range(first, first + self._host.size)
      yield stacked([self._example(place) for place in places])
      start += 1

  def _example(self, position: int) -> Mapping[str, np.ndarray]:
    _, index = self._order.locate(position, len(self.examples))
    return self.features(self.examples[index])


def stacked(rows: Sequence[Mapping[str, np.ndarray]]) -> Batch:
  """The features of several examples as those of a batch."""
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def in_batches(
  examples: Sequence[Any], features: Features, batch_size: int
) -> Iterator[tuple[Batch, int]]:
  """Yields batches in order, and how many of their rows count.

  The last example fills the last batch.
  """
  for begin in range(0, len(examples), batch_size):
    rows = [features(x) for x in examples[begin : begin + batch_size]]
    count = len(rows)
    rows += [rows[-1]] * (batch_size - count)
    yield stacked(rows), count
