"""What a checkpoint says besides its arrays: progress, digests, its writer.

It is JSON with a digest of its own, so that a changed digit is noticed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

from raptr_jax import __version__
from raptr_jax.training.state import Progress

FORMAT = 1


class NewerFormatError(OSError):
  """A later version of this package has written a checkpoint."""


@dataclasses.dataclass(frozen=True)
class Record:
  """The record of a checkpoint.

  Attributes:
    step: of the checkpoint; None in those of older versions.
    progress: of the run.
    digests: of the arrays of its state, see `digests.py`; None likewise.
  """

  step: int | None
  progress: Progress
  digests: Mapping[str, str] | None

  def to_json(self) -> dict[str, Any]:
    """As the checkpoint has it."""
    content = {
      "format": FORMAT,
      "written_by": f"raptr_jax {__version__}",
      "step": self.step,
      "progress": self.progress,
      "digests": self.digests,
    }
    return {**content, "sha256": _sha256(content)}

  @classmethod
  def from_json(cls, found: Mapping[str, Any]) -> "Record":
    """The record that `to_json` has written.

    Raises:
      NewerFormatError: a later version has written it.
      ValueError: it is damaged.
    """
    if (
      "format" not in found and found.keys() <= Progress.__annotations__.keys()
    ):
      return cls(
        None, cast(Progress, found), None
      )  # Of a version before digests.
    if isinstance(found.get("format"), int) and found["format"] > FORMAT:
      raise NewerFormatError(
        f"{found.get('written_by')} has written this checkpoint, in format"
        f" {found['format']}, but this is raptr_jax {__version__}, which reads"
        f" formats up to {FORMAT}: install that version."
      )
    content = {name: x for name, x in found.items() if name != "sha256"}
    if found.get("sha256") != _sha256(content):
      raise ValueError("its record is not what was saved")
    return cls(found["step"], found["progress"], found["digests"])


def _sha256(content: Mapping[str, Any]) -> str:
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()
