"""Which paths share a program."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raptr_jax.methods.path_buckets import (
  MOST_PROGRAMS,
  Bucket,
  buckets_of_run,
  cover,
)


def unused(paths, steps, buckets, chosen) -> int:
  """Slots that a run leaves unused, conditionals counted as one."""
  slots = np.asarray([bucket.slots for bucket in buckets])[chosen]
  shared = [not all(buckets[n].filled) for n in chosen]
  return int(steps @ ((slots - paths).sum(axis=1) + shared))


@st.composite
def paths_and_steps(draw):
  stacks = draw(st.integers(1, 3))
  lengths = st.tuples(*[st.integers(0, 12)] * stacks)
  paths = sorted(draw(st.sets(lengths, min_size=1, max_size=40)))
  steps = [draw(st.integers(1, 1000)) for _ in paths]
  return np.asarray(paths), np.asarray(steps)


@given(paths_and_steps())
def test_each_path_is_in_the_smallest_bucket_with_room_for_it(case):
  paths, steps = case
  buckets, chosen = cover(paths, steps)
  assert len(buckets) == len(set(chosen.tolist()))
  assert len(buckets) == min(len(paths), MOST_PROGRAMS) or len(paths) > 8
  assert len(buckets) <= MOST_PROGRAMS
  slots = np.asarray([bucket.slots for bucket in buckets])
  for path, number in zip(paths, chosen):
    rooms = slots[(path <= slots).all(axis=1)]
    assert slots[number].sum() == rooms.sum(axis=1).min()
    assert (path <= slots[number]).all()
  for number, bucket in enumerate(buckets):
    members = paths[chosen == number]
    assert bucket.slots == tuple(members.max(axis=0))
    filled = (members == members.max(axis=0)).all(axis=0)
    assert bucket.filled == tuple(filled)


@given(st.integers(1, 8), st.integers(1, 3))
def test_few_paths_have_programs_of_their_own(count, stacks):
  paths = np.repeat(np.arange(count)[:, None], stacks, axis=1)
  buckets, chosen = cover(paths, np.ones(count, int))
  assert len(buckets) == count
  assert all(all(bucket.filled) for bucket in buckets)
  assert [buckets[n].slots for n in chosen] == [tuple(p) for p in paths]


def best(paths, steps) -> int:
  """Unused slots of the best buckets for one stack, by trying all."""
  lengths, found = paths[:, 0], []
  for cuts in itertools.combinations(range(1, len(paths)), MOST_PROGRAMS - 1):
    parts = np.split(np.arange(len(paths)), cuts)
    found.append(
      sum(
        steps[part] @ (lengths[part].max() - lengths[part] + (len(part) > 1))
        for part in parts
      )
    )
  return min(found)


@pytest.mark.parametrize("seed", range(3))
def test_one_stack_wastes_little_more_than_it_must(seed):
  rng = np.random.default_rng(seed)
  stages = [2 + rng.binomial(14, n / 16, 1000) for n in (6, 9, 12, 16)]
  paths, steps = np.unique(np.concatenate(stages), return_counts=True)
  paths = paths[:, None]
  buckets, chosen = cover(paths, steps)
  assert unused(paths, steps, buckets, chosen) <= 1.1 * best(paths, steps)


def test_a_frequent_path_has_a_program_without_conditionals():
  paths = np.arange(1, 21)[:, None]
  steps = np.where(paths[:, 0] == 20, 1000, 10)
  buckets, chosen = cover(paths, steps)
  assert buckets[chosen[19]] == Bucket((20,), (True,))
  assert np.count_nonzero(chosen == chosen[19]) == 1


def test_a_stack_of_one_length_needs_no_conditional_of_its_own():
  lengths = [np.full(20, 3, np.uint8), np.arange(20, dtype=np.uint8)]
  buckets, chosen = buckets_of_run(lengths)
  assert all(bucket.filled[0] for bucket in buckets)
  assert not all(bucket.filled[1] for bucket in buckets)
  assert [buckets[n].slots[0] for n in chosen] == [3] * 20
