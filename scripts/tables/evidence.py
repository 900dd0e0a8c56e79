"""What stands behind a page, so that no trial replaces a page with more.

A page ends with a comment that records its options, and the steps and seeds of
each row. A page with other options, or with fewer steps, seeds or rows than the
one in its place, goes to the folder trials/ beside it.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

BEGIN = "<!-- behind this page: "
END = " -->"
TRIALS = "trials"
PARTIAL = "partial"
LONGEST_NAME = 60


@dataclasses.dataclass(frozen=True)
class Evidence:
  """What a page was made of.

  Attributes:
    options: what users changed, as `NAME=VALUE`, sorted.
    rows: (steps, number of seeds) by name, without rows that have no run.
  """

  options: tuple[str, ...]
  rows: Mapping[str, tuple[int, int]]

  def comment(self) -> str:
    """The last line of the page."""
    rows = {
      name: {"steps": steps, "seeds": seeds}
      for name, (steps, seeds) in self.rows.items()
    }
    text = json.dumps({"options": self.options, "rows": rows})
    # A comment ends at the first "-->".
    return BEGIN + text.replace(">", r"\u003e") + END

  @classmethod
  def read(cls, page: Path) -> "Evidence | None":
    """That of a page; None if the page does not record it."""
    for line in page.read_text(encoding="utf-8").splitlines():
      if line.startswith(BEGIN):
        found = json.loads(line.removeprefix(BEGIN).removesuffix(END))
        rows = {
          name: (row["steps"], row["seeds"])
          for name, row in found["rows"].items()
        }
        return cls(tuple(found["options"]), rows)
    return None

  def lacks(self, other: "Evidence") -> str:
    """Why a page of this must not replace one of `other`; "" if it may."""
    if self.options != other.options:
      return f"made with {', '.join(other.options) or 'no overrides'}"
    for name, (steps, seeds) in other.rows.items():
      own_steps, own_seeds = self.rows.get(name, (0, 0))
      if own_seeds < seeds:
        return (
          f"which has more seeds of row {name}: {seeds} against {own_seeds}"
        )
      if own_steps < steps:
        return (
          f"which has more steps of row {name}: {steps:,} against {own_steps:,}"
        )
    return ""


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a page is.

  Attributes:
    page: its path; the picture beside it has the suffix .png.
    reason: why it is a trial; "" if it is not.
  """

  page: Path
  reason: str = ""

  def __str__(self) -> str:
    return f"{self.page}: {self.reason}" if self.reason else str(self.page)


def place_of(
  results: Path, name: str, evidence: Evidence, *, trial: str = ""
) -> Place:
  """Where to write a page.

  Args:
    results: folder of all pages.
    name: of the page, without suffix.
    evidence: what stands behind it.
    trial: name of what departs from the table's own settings, if anything.
  """
  page = results / f"{name}.md"
  reason = ""
  if trial:
    reason = f"a trial with {', '.join(evidence.options)}"
  elif page.exists():
    old = Evidence.read(page)
    lack = evidence.lacks(old) if old else "which does not record its runs"
    reason = f"this does not replace {page}, {lack}" if lack else ""
  if not reason:
    return Place(page)
  folder = trial or folder_name(evidence.options) or PARTIAL
  return Place(results / TRIALS / folder / page.name, reason)


def folder_name(options: Iterable[str]) -> str:
  """Options as the name of a folder, the same in every order."""
  text = ",".join(sorted(options))
  name = re.sub(r"[^\w.,=-]+", "_", text)
  if len(name) <= LONGEST_NAME:
    return name
  digest = hashlib.sha256(text.encode()).hexdigest()[:8]
  return f"{name[:LONGEST_NAME]}_{digest}"
