"""Reads checkpoints, and notices damage."""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from raptr_jax.contracts import Params
from raptr_jax.tasks.files import AnyPath
from raptr_jax.training.checkpoint_record import NewerFormatError, Record
from raptr_jax.training.digests import digests

STATE, RECORD = "state", "progress"  # The parts of a checkpoint.
Read = TypeVar("Read")
Shapes: TypeAlias = dict[str, tuple[int, ...]]
# What does not speak of damage.
OTHER_ERRORS = (
  FileExistsError,
  MemoryError,
  NewerFormatError,
  jax.errors.JaxRuntimeError,
)


class DamagedCheckpoint(OSError):
  """A checkpoint cannot be read, or is not what was saved.

  Attributes:
    step: of the checkpoint.
    reason: what is wrong with it.
  """

  def __init__(self, place: str, step: int, reason: str):
    super().__init__(
      f"{place} has a damaged checkpoint of step {step} ({reason})"
    )
    self.step, self.reason = step, reason


def attempt(read: Callable[[], Read], place: str, step: int) -> Read:
  """What `read` returns; every host takes part.

  Args:
    read: reads a checkpoint.
    place: the setting that says where it is, like "MODEL_DIR = 'runs/x'".
    step: of the checkpoint.

  Raises:
    DamagedCheckpoint: if it fails on any host, in a way that speaks of damage.
  """
  failure = ""
  found: Read | None = None
  try:
    found = read()
  except OTHER_ERRORS:
    raise
  except Exception as error:  # Readers of damaged files raise all kinds.
    failure = f"{type(error).__name__}: {error}".splitlines()[0][:200]
  if jax.process_count() > 1:
    failed = multihost_utils.process_allgather(np.asarray(bool(failure)))
    if failed.any():
      hosts = ", ".join(map(str, np.flatnonzero(failed)))
      failure = failure or f"process {hosts} cannot read it"
  if failure:
    raise DamagedCheckpoint(place, step, failure)
  return cast(Read, found)


def record_of(checkpoint: AnyPath) -> Record:
  """The record in the folder of a checkpoint.

  Raises:
    ValueError: if it is damaged, or of another step.
  """
  found = ocp.JsonCheckpointHandler().restore(checkpoint / RECORD)
  record = Record.from_json(found)
  if record.step is not None and str(record.step) != checkpoint.name:
    raise ValueError(f"it is of step {record.step}")
  return record


def arrays_of(checkpoint: AnyPath) -> Iterator[tuple[str, np.ndarray]]:
  """The arrays of a checkpoint by their path, without model and devices.

  They are read one at a time: memory holds one, and where one cannot be read,
  no others are still on their way.
  """
  handler = ocp.PyTreeCheckpointHandler()
  tree = handler.metadata(checkpoint / STATE).tree
  as_numpy = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
  )
  leaves, structure = jax.tree.flatten(tree)
  for number, name in enumerate(shapes(tree)):
    only: list[Any] = [ocp.PLACEHOLDER] * len(leaves)
    only[number] = leaves[number]
    args = ocp.args.PyTreeRestore(
      jax.tree.unflatten(structure, only), restore_args=as_numpy
    )
    found = jax.tree.leaves(handler.restore(checkpoint / STATE, args=args))
    yield name, np.asarray(found[number])


def check_digests(tree: PyTree, record: Record, place: str, step: int) -> None:
  """Raises DamagedCheckpoint unless arrays have the digests of a record."""
  if record.digests is None:
    return
  for name, digest in digests(tree).items():
    if record.digests.get(name) != digest:
      raise DamagedCheckpoint(place, step, f"{name} is not what was saved")


def check_shapes(
  checkpoint: AnyPath, params: Params, place: str, *, only_parts: bool = False
) -> None:
  """Raises FileExistsError unless a checkpoint has parameters of these shapes.

  Orbax would say so, too, but in words of its own. With `only_parts`, the
  checkpoint may have other parts, too.
  """
  path = checkpoint / STATE
  tree = ocp.PyTreeCheckpointHandler().metadata(path).tree["params"]
  if only_parts:
    tree = {name: part for name, part in tree.items() if name in params}
  compare_shapes(shapes(tree), shapes(params), place)


def compare_shapes(found: Shapes, wanted: Shapes, place: str) -> None:
  """Raises FileExistsError, which names an array, unless both are the same."""
  for name in sorted(found.keys() | wanted.keys()):
    if found.get(name) != wanted.get(name):
      raise FileExistsError(
        f"{place} has a checkpoint of another model or optimizer: {name} has"
        f" the shape {found.get(name)} there, but {wanted.get(name)} here. Set"
        " another folder, or undo the change."
      )


def shapes(tree: PyTree) -> Shapes:
  """Shapes of all arrays of a tree, by their path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
    for path, leaf in leaves
  }
