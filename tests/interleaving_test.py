"""Mixtures: which task an example comes from."""

import collections

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from raptr_jax.data.interleaving import (
  MOST_WEIGHT,
  Interleaving,
  whole_weights,
)

PAPER = (57, 17, 17, 9)


def test_weights_by_hand():
  assert whole_weights(PAPER) == PAPER
  assert whole_weights((0.57, 0.17, 0.17, 0.09)) == PAPER
  assert whole_weights((1.0, 1.0, 1.0)) == (1, 1, 1)
  assert whole_weights((20, 10)) == (2, 1)
  assert whole_weights((2**0.5, 1)) == (5858, 4142)  # 0.58579, 0.41421.
  assert whole_weights((1e9, 1)) == (10_000, 1)  # At least one of each.


def test_two_batches_by_hand():
  # 3 examples a batch, half of them each: 2 and 1, then 1 and 2.
  mixed = Interleaving((1, 1), 3)
  located = [mixed.locate(number) for number in range(6)]
  tasks = [task for task, _ in located]
  assert sorted(tasks[:3]) in ([0, 0, 1], [0, 1, 1])
  assert sorted(tasks) == [0, 0, 0, 1, 1, 1]
  # Spread over the batch: the middle of one example is at 1/2, of two at 1/4
  # and 3/4.
  assert tasks[0] == tasks[2] != tasks[1]


def _tasks(mixed, count, start=0):
  return np.array([mixed.locate(start + i)[0] for i in range(count)])


@pytest.mark.parametrize("batch_size", [1, 8, 48, 512])
def test_rates_are_exact_over_any_10_000_examples(batch_size):
  mixed = Interleaving(PAPER, batch_size)
  shares = np.array(PAPER) / 100
  for start in (0, 123_456_789):
    tasks = _tasks(mixed, 30_000, start)
    sums = np.cumsum(tasks[:, None] == np.arange(4), axis=0)
    windows = sums[10_000:] - sums[:-10_000]
    assert np.abs(windows - 10_000 * shares).max() <= 10


@hypothesis.settings(deadline=None, derandomize=True, max_examples=50)
@hypothesis.given(
  rates=st.lists(st.floats(0.01, 100), min_size=1, max_size=6),
  batch_size=st.integers(1, 300),
  batch=st.integers(0, 10**9),
)
def test_every_batch_is_within_one_example_of_the_rates(
  rates, batch_size, batch
):
  mixed = Interleaving(rates, batch_size)
  shares = np.array(rates) / sum(rates)
  before = mixed.before(batch)
  counts = mixed.before(batch + 1) - before
  assert counts.sum() == batch_size
  exact = batch_size * mixed.shares
  assert (np.floor(exact - 1e-9) <= counts).all()
  assert (counts <= np.ceil(exact + 1e-9)).all()
  assert np.abs(mixed.shares - shares).max() <= 6 / MOST_WEIGHT
  # The rounding evens out, wherever one looks.
  assert np.abs(before - batch * batch_size * mixed.shares).max() < 8
  # Examples of a task are numbered without gaps.
  numbers = collections.defaultdict(list)
  for place in range(batch_size):
    task, number = mixed.locate(batch * batch_size + place)
    numbers[task].append(number)
  for task, count in enumerate(counts):
    assert numbers[task] == list(range(before[task], before[task] + count))


def test_hosts_read_alike():
  # 64 examples on 16 hosts: each has two or three of 36.48 * 4 / 64.
  mixed = Interleaving(PAPER, 64)
  by_host = _tasks(mixed, 64).reshape(16, 4)
  first = (by_host == 0).sum(1)
  assert first.min() >= 2 and first.max() <= 3
