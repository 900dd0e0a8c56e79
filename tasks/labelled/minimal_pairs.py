"""Minimal pairs, as BLiMP has them (arXiv 1912.00582): a sentence, and a worse one.

A file has a pair a line, as JSON with the fields `good`, `bad`, `phenomenon`
and `paradigm`, or those of BLiMP's own files: `sentence_good`, `sentence_bad`,
`linguistics_term` and `UID`.
"""

import dataclasses
import json
import lzma
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raptr_jax.tasks.labelled import tables

FIELDS = {
  "good": "sentence_good",
  "bad": "sentence_bad",
  "phenomenon": "linguistics_term",
  "paradigm": "UID",
}


@dataclasses.dataclass(frozen=True)
class MinimalPair:
  """Two sentences that differ in one thing.

  Attributes:
    good: the acceptable one.
    bad: the other.
    phenomenon: what they are about, such as "island_effects".
    paradigm: the kind of pair, of which a phenomenon has several.
  """

  good: str
  bad: str
  phenomenon: str
  paradigm: str


def read_pairs(
  place: str, per_paradigm: int | None = None
) -> list[MinimalPair]:
  """The pairs of a file (.jsonl, packed or not), or of a folder of such files.

  Args:
    place: file or folder.
    per_paradigm: takes the first so many of each paradigm; None for all.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line is no pair, or there is none.
  """
  path = Path(place).expanduser()
  files = sorted(path.glob("*.jsonl*")) if path.is_dir() else [path]
  pairs, counts = [], dict[str, int]()
  for file in files:
    for pair in _pairs(file):
      count = counts.get(pair.paradigm, 0)
      if per_paradigm is None or count < per_paradigm:
        pairs.append(pair)
      counts[pair.paradigm] = count + 1
  if not pairs:
    raise ValueError(
      f"MINIMAL_PAIRS = '{place}' has no pairs, expected a .jsonl file, or a"
      " folder of them"
    )
  return pairs


def _pairs(path: Path) -> Iterator[MinimalPair]:
  """The pairs of a file."""
  if not path.is_file():
    raise FileNotFoundError(f"MINIMAL_PAIRS = '{path}' does not exist")
  opened = tables.PACKED.get(path.suffix, open)
  try:
    with opened(path, "rt", encoding="utf-8") as file:
      lines = file.readlines()
  except (EOFError, OSError, UnicodeDecodeError, lzma.LZMAError) as error:
    raise ValueError(f"{path} cannot be read ({error})") from error
  for number, line in enumerate(lines, 1):
    try:
      yield _pair(json.loads(line))
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(
        f"{path}, line {number} is no minimal pair ({error!r}): expected"
        f" {', '.join(FIELDS)} as JSON"
      ) from error


def _pair(found: Mapping[str, Any]) -> MinimalPair:
  fields = {
    name: str(found[name] if name in found else found[other])
    for name, other in FIELDS.items()
  }
  return MinimalPair(**fields)
