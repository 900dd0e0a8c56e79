"""Which checkpoints of a run are whole: each of them is read.

Their arrays are read one after the other, without the model or its mesh; so
memory holds one array, and any machine can check the checkpoints of any other.
"""

import dataclasses
import functools
from collections.abc import Mapping

from raptr_jax.tasks.files import AnyPath
from raptr_jax.training.checkpoint_reading import (
  DamagedCheckpoint,
  Shapes,
  arrays_of,
  attempt,
  check_digests,
  record_of,
)
from raptr_jax.training.checkpoint_record import NewerFormatError, Record
from raptr_jax.training.checkpoint_storage import (
  COMPLETE,
  readable,
  saved_steps,
)
from raptr_jax.training.findings import Findings, one_by_one

TEMPORARY = ".orbax-checkpoint-tmp"  # In the names of what Orbax writes to.


@dataclasses.dataclass(frozen=True)
class WholeCheckpoint:
  """What is known of a checkpoint that has been read.

  Attributes:
    step: of the checkpoint.
    record: its record.
    shapes: of its arrays, by their path.
    size: of its arrays, in bytes.
  """

  step: int
  record: Record
  shapes: Shapes
  size: int


def verified_checkpoints(
  folder: AnyPath, findings: Findings
) -> dict[int, WholeCheckpoint | OSError]:
  """Each checkpoint of a folder by its step, or what is wrong with it."""
  found: dict[int, WholeCheckpoint | OSError] = {}
  steps = saved_steps(folder)
  for step in one_by_one(steps, "checkpoint"):
    thing = f"{folder.name}/{step}"
    try:
      found[step] = whole = _read(folder, step)
    except (OSError, ValueError) as error:  # Of addresses, too.
      found[step] = error if isinstance(error, OSError) else OSError(str(error))
      text = str(error)
      if isinstance(error, DamagedCheckpoint):
        text = f"damaged ({error.reason})"
      findings.fault(thing, text)
      continue
    text = f"ok, {len(whole.shapes)} arrays, {whole.size / 1e6:,.1f} MB"
    if whole.record.digests is None:
      text += "; an older version wrote it, without digests to compare with"
    findings.tell(thing, text)
  for name in _leftovers(folder, steps):
    text = "no checkpoint, and not read"
    if TEMPORARY in name:
      text = "left over from a save that was cut off; not read, and of no use"
    findings.tell(f"{folder.name}/{name}", text)
  if not found:
    findings.fault(folder.name, "there are none")
  return found


def newest(
  found: Mapping[int, WholeCheckpoint | OSError],
) -> WholeCheckpoint | None:
  """The checkpoint that a run would resume from.

  Damaged ones are passed over. One of a newer version is not: the run would end
  with an error.
  """
  for step in sorted(found, reverse=True):
    checkpoint = found[step]
    if isinstance(checkpoint, NewerFormatError):
      return None
    if isinstance(checkpoint, WholeCheckpoint):
      return checkpoint
  return None


def _read(folder: AnyPath, step: int) -> WholeCheckpoint:
  """Reads a checkpoint.

  Raises:
    DamagedCheckpoint: if it is not what was saved.
    NewerFormatError: if a later version has written it.
  """
  place = f"MODEL_DIR = '{folder.parent}'"
  with readable(folder, step) as path:
    checkpoint = path / str(step)
    record = attempt(functools.partial(record_of, checkpoint), place, step)
    read = functools.partial(next, arrays_of(checkpoint), None)
    found: Shapes = {}
    size = 0
    while (pair := attempt(read, place, step)) is not None:
      name, array = pair
      check_digests({name: array}, record, place, step)
      found[name] = array.shape
      size += array.nbytes
  for name in record.digests or ():
    if name not in found:
      raise DamagedCheckpoint(place, step, f"{name} is missing")
  return WholeCheckpoint(step, record, found, size)


def _leftovers(folder: AnyPath, steps: list[int]) -> list[str]:
  """Names in a folder of checkpoints that belong to none of them."""
  if not folder.is_dir():
    return []
  known = {f"{step}{ending}" for step in steps for ending in ("", COMPLETE)}
  return sorted({path.name for path in folder.iterdir()} - known)
