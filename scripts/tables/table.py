"""What a table is made of: rows, compared within each model family."""

import dataclasses
from collections.abc import Mapping
from pathlib import PurePath

SCALES = ("tiny", "small", "paper")
# Model families, each with a gin file scales/<family>_<scale>.gin.
FAMILIES = {
  "bert": "BERT",
  "ul2_decoder": "Decoder-only",
  "ul2_encdec": "Encoder-decoder",
}


@dataclasses.dataclass(frozen=True)
class Row:
  """A method as it is trained.

  Attributes:
    name: of its folder of runs; unique over all tables.
    label: how pages and pictures call it, among the rows of its family.
    gin_files: included after the scale's.
    overrides: gin bindings, name -> value.
    by_scale: further bindings of a single scale.
    family: of its model, in `FAMILIES`.
    paper: the paper's number for it, if it is confirmed.
  """

  name: str
  label: str = dataclasses.field(compare=False)
  gin_files: tuple[str, ...]
  overrides: Mapping[str, str] = dataclasses.field(
    default_factory=dict, hash=False
  )
  by_scale: Mapping[str, Mapping[str, str]] = dataclasses.field(
    default_factory=dict, hash=False
  )
  family: str = "bert"
  paper: str | None = dataclasses.field(default=None, compare=False)

  @property
  def method(self) -> str:
    """Name of its gin file in `methods/`."""
    return PurePath(self.gin_files[-1]).stem


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Rows of one model family, which are compared with each other.

  Attributes:
    rows: in the order of the page.
    references: names of the rows that all others are compared with; the first
      is dense training at full FLOPs.
    curves: names of the rows whose losses are drawn over FLOPs.
    verdicts: names of the rows whose differences are put into words.
  """

  rows: tuple[Row, ...]
  references: tuple[str, ...]
  curves: tuple[str, ...] = ()
  verdicts: tuple[str, ...] = ()

  @property
  def dense(self) -> Row:
    """What FLOP factors, speed-ups and learning rates go by."""
    return next(row for row in self.rows if row.name == self.references[0])

  @property
  def title(self) -> str:
    return FAMILIES[self.dense.family]


@dataclasses.dataclass(frozen=True)
class Table:
  """Comparisons that are shown on one page.

  Attributes:
    name: for `--table`, and of its files.
    title: of its page.
    comparisons: in the order of the page, each of another family.
    notes: what a reader has to know about the rows, a paragraph each.
  """

  name: str
  title: str
  comparisons: tuple[Comparison, ...]
  notes: tuple[str, ...] = ()

  @property
  def rows(self) -> tuple[Row, ...]:
    return tuple(row for part in self.comparisons for row in part.rows)

  def row(self, name: str) -> Row:
    """The row of this name.

    Raises:
      ValueError: if there is none.
    """
    for row in self.rows:
      if row.name == name:
        return row
    raise ValueError(
      f"{self.name} has no row {name!r}, expected one of"
      f" {', '.join(row.name for row in self.rows)}."
    )

  def dense(self, row: Row) -> Row:
    """The dense row that this one is compared with, and tuned by."""
    return next(c.dense for c in self.comparisons if row in c.rows)

  def label(self, row: Row) -> str:
    """The row's label where rows of all families stand together."""
    if len(self.comparisons) == 1:
      return row.label
    return f"{FAMILIES[row.family]}: {row.label}"
