"""Few programs for many path lengths.

A program of `gather` has a slot for each layer that runs, so that each path
length has its own, or each combination of lengths of several stacks. A run can
meet many: 22 if 24 layers are drawn independently, more than 300 with two such
stacks, most of them within its first steps. Programs for all of them would make
each start wait for compilations.

So a run has at most `MOST_PROGRAMS`. Each serves a bucket of paths: it has
slots for the longest of them, and a conditional skips those that a path does
not use, at little cost in time and in the memory of the slots. A path that has
a bucket for itself needs no conditionals.

Buckets depend on the draws of a whole run, and on nothing else. Two programs
may round differently, but a step always runs in the same one, so that a resumed
run gives the same bits.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Int, UInt, UInt8

from raptr_jax.methods.by_step import PIECE

# Each takes seconds to minutes to compile, and memory on the devices. With
# eight, independent draws of 24 layers (12-16-20-24) leave one slot unused on
# average, and those of two such stacks four of 36.
MOST_PROGRAMS = 8

Paths: TypeAlias = Int[np.ndarray, "paths stacks"]  # Their lengths.
Counts: TypeAlias = Int[np.ndarray, "paths"]
Group: TypeAlias = Int[np.ndarray, "group"]  # Rows of `Paths`.


@dataclasses.dataclass(frozen=True)
class Bucket:
  """The paths that share a program.

  Attributes:
    slots: of each stack, the layers that the program has room for.
    filled: for each stack, whether all of the paths use all of its slots.
  """

  slots: tuple[int, ...]
  filled: tuple[bool, ...]


def buckets_of_run(
  lengths: Sequence[UInt[np.ndarray, "N"]],
) -> tuple[list[Bucket], UInt8[np.ndarray, "N"]]:
  """The buckets of a run, and the number of each step's bucket.

  Args:
    lengths: numbers of layers that run in each step, by stack.
  """
  sizes = [int(stack.max()) + 1 for stack in lengths]

  def codes() -> Iterator[Int[np.ndarray, "piece"]]:
    """A number for the path of each step, a piece at a time."""
    for start in range(0, len(lengths[0]), PIECE):
      piece = tuple(stack[start : start + PIECE] for stack in lengths)
      yield np.ravel_multi_index(piece, sizes)

  steps: Counter[int] = Counter()
  for piece in codes():
    found, counts = np.unique(piece, return_counts=True)
    steps.update(dict(zip(found.tolist(), counts.tolist())))
  known = np.sort(np.fromiter(steps, np.int64))
  buckets, chosen = cover(
    np.stack(np.unravel_index(known, sizes), axis=1),
    np.asarray([steps[code] for code in known.tolist()]),
  )
  chosen = chosen.astype(np.uint8)
  by_step = [chosen[np.searchsorted(known, piece)] for piece in codes()]
  return buckets, np.concatenate(by_step)


def cover(paths: Paths, steps: Counts) -> tuple[list[Bucket], Counts]:
  """At most `MOST_PROGRAMS` buckets, and the number of each path's bucket.

  All paths begin in one bucket. Of all ways to split a bucket in two, by the
  length of the path in one stack, the one that leaves the fewest slots unused
  over the run is taken, until there are enough. For one stack that came within
  2 % of the best buckets there are, with every method here. Finally each path
  moves to the smallest bucket that has room for it.

  Args:
    paths: distinct.
    steps: how many steps run each of them.
  """
  groups = [np.arange(len(paths))]
  while len(groups) < min(MOST_PROGRAMS, len(paths)):
    splits = [
      (_unused(paths[group], steps[group]) - left, number, parts)
      for number, group in enumerate(groups)
      for left, parts in _splits(group, paths, steps)
    ]
    _, number, parts = max(splits, key=lambda split: split[0])
    groups[number : number + 1] = parts
  return _smallest([paths[group].max(axis=0) for group in groups], paths)


def _unused(paths: Paths, steps: Counts) -> int:
  """Slots of a bucket that its paths leave unused over a run.

  Conditionals count as one more: frequent paths are to have programs without
  any.
  """
  slots = paths.max(axis=0).sum() + (len(paths) > 1)
  return int(steps @ (slots - paths.sum(axis=1)))


def _splits(
  group: Group, paths: Paths, steps: Counts
) -> Iterator[tuple[int, tuple[Group, Group]]]:
  """The ways to split a bucket, each after the slots that it leaves unused."""
  for lengths in paths[group].T:
    for longest in np.unique(lengths)[:-1]:
      parts = group[lengths <= longest], group[lengths > longest]
      yield sum(_unused(paths[part], steps[part]) for part in parts), parts


def _smallest(
  slots: Sequence[Int[np.ndarray, "stacks"]], paths: Paths
) -> tuple[list[Bucket], Counts]:
  """Buckets of these slots, less those that no path needs.

  A bucket that loses its longest path shrinks, and may become the smallest one
  with room for another path.
  """
  while True:
    known = np.unique(slots, axis=0)
    has_room = (paths[:, None] <= known).all(axis=-1)
    sizes = np.where(has_room, known.sum(axis=-1), known.sum() + 1)
    chosen, bucket = np.unique(sizes.argmin(axis=1), return_inverse=True)
    members = [paths[bucket == number] for number in range(len(chosen))]
    slots = [lengths.max(axis=0) for lengths in members]
    if np.array_equal(known, slots):
      return [_bucket(lengths) for lengths in members], bucket


def _bucket(paths: Paths) -> Bucket:
  slots = paths.max(axis=0)
  filled = (paths == slots).all(axis=0)
  return Bucket(tuple(slots.tolist()), tuple(filled.tolist()))
