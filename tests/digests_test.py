"""Digests notice a change of any bit, and not where arrays lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from raptr_jax.training.digests import digests


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool"])
def test_any_change_of_one_element_is_noticed(dtype):
  x = np.arange(24).reshape(2, 3, 4) % 2
  x = np.asarray(jnp.asarray(x, dtype))
  found = {digests({"x": jnp.asarray(x)})["x"]}
  for index in np.ndindex(x.shape):
    changed = x.copy()
    changed[index] = 1 - changed[index]
    found.add(digests({"x": jnp.asarray(changed)})["x"])
  assert len(found) == 25


def test_the_last_bit_and_the_sign_of_zero_are_noticed():
  one = jnp.ones(3)
  assert digests(one) != digests(jnp.nextafter(one, 2 * one))
  assert digests(jnp.zeros(3)) != digests(-jnp.zeros(3))


def test_exchanged_elements_are_noticed():
  x = jnp.arange(6.0).reshape(2, 3)
  assert digests({"x": x}) != digests({"x": x[::-1]})
  assert digests({"x": x}) != digests({"x": x[:, ::-1]})


def test_placement_makes_no_difference():
  x = jax.random.normal(jax.random.key(0), (8, 4, 2))
  mesh = jax.make_mesh((4, 2), ("a", "b"))
  for spec in ((), ("a",), (None, "b"), (("a", "b"),), ("b", "a")):
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    assert digests({"x": placed}) == digests({"x": x})
