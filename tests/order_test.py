"""The order of examples: a permutation of every epoch, and a good one."""

import numpy as np
import pytest

from raptr_jax.data.order import Order


def _epoch(order, epoch, num_rows):
  return [
    order.locate(position, num_rows)
    for position in range(epoch * num_rows, (epoch + 1) * num_rows)
  ]


@pytest.mark.parametrize("num_rows", [1, 2, 7, 64, 1000])
def test_every_epoch_has_every_row_once(num_rows):
  order = Order(seed=0, shuffle=True)
  for epoch in range(3):
    located = _epoch(order, epoch, num_rows)
    assert {e for e, _ in located} == {epoch}
    assert sorted(i for _, i in located) == list(range(num_rows))
    assert all(type(i) is int for _, i in located)


def test_unshuffled_rows_keep_their_order():
  order = Order(seed=0, shuffle=False)
  assert _epoch(order, 2, 5) == [(2, i) for i in range(5)]


def test_seed_and_epoch_decide_the_order():
  orders = {
    (seed, epoch): tuple(_epoch(Order(seed=seed, shuffle=True), epoch, 100))
    for seed in range(3)
    for epoch in range(3)
  }
  places = {tuple(i for _, i in order) for order in orders.values()}
  assert len(places) == 9


def test_rows_are_moved_across_the_whole_epoch():
  # Of a million rows in 100 sources, one after another.
  num_rows = 1_000_000
  order = Order(seed=1, shuffle=True)
  batch = [order.locate(p, num_rows)[1] for p in range(256)]
  # 100 * (1 - 0.99 ** 256) = 92.4 are expected at random.
  assert len({index // 10_000 for index in batch}) > 85
  places = np.arange(0, num_rows, 100)
  rows = [order.locate(int(p), num_rows)[1] for p in places]
  # Its standard deviation is 0.01 at random.
  assert abs(np.corrcoef(places, rows)[0, 1]) < 0.04


def test_far_positions_are_found_at_once():
  epoch, index = Order(seed=0, shuffle=True).locate(10**15 + 7, 10**9)
  assert epoch == 10**6
  assert 0 <= index < 10**9


def test_negative_seeds_are_refused():
  with pytest.raises(ValueError, match=r"seed=-1 .* --gin.RANDOM_SEED"):
    Order(seed=-1, shuffle=True)
