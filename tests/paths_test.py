"""Paths that are chosen by hand."""

import numpy as np
import pytest

from raptr_jax.contracts import LayerDraw, LayerPath
from raptr_jax.inference.paths import choose_paths

ONE = {"stack": 6}
TWO = {"encoder": 3, "decoder": 5}


def chosen(stacks, layers):
  paths = choose_paths(stacks, layers)
  assert all((path.scale == 1).all() for path in paths.values())
  return {name: path.indices.tolist() for name, path in paths.items()}


def test_a_number_keeps_both_ends_and_spreads_the_rest():
  found = [chosen(ONE, count)["stack"] for count in range(1, 7)]
  assert found == [
    [0],
    [0, 5],
    [0, 3, 5],
    [0, 2, 3, 5],
    [0, 1, 3, 4, 5],
    [0, 1, 2, 3, 4, 5],
  ]


def test_distances_differ_by_at_most_one():
  for size in range(2, 25):
    for count in range(2, size + 1):
      (path,) = chosen({"stack": size}, count).values()
      steps = np.diff(path)
      assert len(path) == count and (path[0], path[-1]) == (0, size - 1)
      assert steps.min() >= 1 and steps.max() - steps.min() <= 1


def test_each_stack_may_have_its_own():
  assert chosen(TWO, 2) == {"encoder": [0, 2], "decoder": [0, 4]}
  assert chosen(TWO, None) == {"encoder": [0, 1, 2], "decoder": [*range(5)]}
  assert chosen(TWO, {"encoder": None, "decoder": (1, 3)}) == {
    "encoder": [0, 1, 2],
    "decoder": [1, 3],
  }


def test_draws_are_taken_as_they_are():
  path = LayerPath(np.array([1, 4]), np.array([0.5, 2], np.float32))
  assert choose_paths(ONE, path)["stack"] is path
  mask = np.arange(6) % 2 == 0
  draw = LayerDraw(mask, np.where(mask, 3, 0).astype(np.float32))
  found = choose_paths(ONE, {"stack": draw})["stack"]
  assert found.indices.tolist() == [0, 2, 4]
  assert found.scale.tolist() == [3, 3, 3]


@pytest.mark.parametrize(
  ("stacks", "layers", "error", "message"),
  [
    (ONE, 7, ValueError, "layers = 7, expected 1 to 6, .* 'stack'"),
    (ONE, 0, ValueError, "layers = 0, expected 1 to 6"),
    (TWO, 4, ValueError, "layers = 4, expected 1 to 3, .* 'encoder'"),
    (ONE, [0, 6], ValueError, r"layers \[0, 6\], .* 0 to 5"),
    (ONE, [3, 1], ValueError, r"layers \[3, 1\], expected ascending"),
    (ONE, [0.5], TypeError, r"layers = \[0.5\], expected a number"),
    (ONE, True, TypeError, "layers = True, expected a number"),
    (ONE, np.arange(6) > 3, TypeError, r"a mask, expected .* run: \[4, 5\]"),
    (ONE, "six", TypeError, "layers = 'six', expected a number"),
    (TWO, {"stack": 2}, ValueError, r"for the stacks \['stack'\], but"),
    (TWO, {"encoder": 2}, ValueError, r"for the stacks \['encoder'\], but"),
  ],
)
def test_errors_name_the_layers(stacks, layers, error, message):
  with pytest.raises(error, match=message):
    choose_paths(stacks, layers)
