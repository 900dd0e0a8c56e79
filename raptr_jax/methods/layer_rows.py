"""Which leaves of a parameter tree have a row for each layer of a stack."""

from collections.abc import Hashable, Mapping
from typing import TypeAlias, TypeVar

# The path to a leaf of a tree, as `jax.tree_util` gives it.
TreePath: TypeAlias = tuple[Hashable, ...]
Value = TypeVar("Value")


def in_layer_stack(path: TreePath) -> bool:
  """Whether the leaf at this path of a tree has a row for each layer.

  Parameters of a stack are under `layers`, and so is their optimizer state.
  """
  return "layers" in key_names(path)


def of_stack(path: TreePath, by_stack: Mapping[str, Value]) -> Value | None:
  """Looks up the stack that holds the leaf at this path of a tree.

  Returns:
    The value of the stack whose name is on the path; None outside of stacks.
  """
  if not in_layer_stack(path):
    return None
  names = key_names(path)
  return next(value for name, value in by_stack.items() if name in names)


def key_names(path: TreePath) -> set[str]:
  """Names on the path to a leaf of a tree."""
  return {str(getattr(key, "key", getattr(key, "name", key))) for key in path}
