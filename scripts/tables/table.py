"""What a table is: rows, the comparisons between them, and what a page shows.

A table needs no more than a `Table` in a module of its own, such as

  MINE = Table(
    name="mine",
    title="BERT: my method",
    comparisons=(Comparison(rows=(DENSE, MY_ROW), references=("dense",)),),
    view=LOSSES,
  )

in my_tables.py, which `--table my_tables.MINE` then trains.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from tables.results import Result

SCALES = ("tiny", "small", "paper")

BERT_RATES = {
  "tiny": (1e-3, 2e-3, 4e-3, 8e-3),
  "small": (5e-4, 1e-3, 2e-3),
  "paper": (5e-5, 1e-4, 2e-4),
}
# At scale paper the optimizer is T5's Adafactor, whose rates are relative.
UL2_RATES = {
  "tiny": (2e-3, 4e-3, 8e-3, 1.6e-2),
  "small": (1e-3, 2e-3, 4e-3),
  "paper": (5e-3, 1e-2, 2e-2),
}


@dataclasses.dataclass(frozen=True)
class Family:
  """A kind of model; gin/tables/<name>_<scale>.gin configures it.

  Attributes:
    title: on pages.
    learning_rates: the grid to tune on, ascending, by scale.
  """

  title: str
  learning_rates: Mapping[str, tuple[float, ...]]


FAMILIES = {
  "bert": Family("BERT", BERT_RATES),
  "bert_finetune": Family("BERT, to be fine-tuned", {"tiny": (2e-3,)}),
  "ul2_decoder": Family("Decoder-only", UL2_RATES),
  "ul2_encdec": Family("Encoder-decoder", UL2_RATES),
}


@dataclasses.dataclass(frozen=True)
class Row:
  """A training method and its settings.

  Attributes:
    name: folder of its runs. Tables that have rows of the same name share
      their runs.
    label: on pages and in pictures.
    gin_files: included after the scale's.
    overrides: gin bindings, name -> value.
    by_scale: further bindings, by scale.
    family: key in `FAMILIES`.
    paper: the number in the paper, if confirmed.
    series: label of its line in pictures with one line for several rows, such
      as a method at several depths; by default each row has its own.
    color: of its line; by default one that no other line in the picture has.
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
  series: str | None = dataclasses.field(default=None, compare=False)
  color: str | None = dataclasses.field(default=None, compare=False)

  @property
  def line(self) -> str:
    """Label of the line that shows this row."""
    return self.series or self.label


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Rows of one model family that are compared with each other.

  Attributes:
    rows: in page order.
    references: names of the rows that all others are compared with. The first
      is dense training at full FLOPs.
    curves: names of the rows whose loss is plotted over FLOPs.
    verdicts: names of the rows whose differences are spelled out in words.
  """

  rows: tuple[Row, ...]
  references: tuple[str, ...]
  curves: tuple[str, ...] = ()
  verdicts: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    names = [row.name for row in self.rows]
    if len(set(names)) < len(names):
      raise ValueError(f"The rows {names} share a name, and so their runs.")
    if not self.references:
      raise ValueError(
        "references is empty, expected the names of rows, the first of which is"
        " dense training at full FLOPs."
      )
    for name in (*self.references, *self.curves, *self.verdicts):
      if name not in names:
        raise ValueError(
          f"A comparison names {name!r}, which is none of its rows {names}."
        )

  @property
  def dense(self) -> Row:
    """The baseline of FLOP factors, speed-ups and learning rates."""
    return next(row for row in self.rows if row.name == self.references[0])

  @property
  def title(self) -> str:
    return FAMILIES[self.dense.family].title


@dataclasses.dataclass(frozen=True)
class View:
  """How a page shows the results of a table's rows, which come by row name.

  Attributes:
    draw: writes the picture to a path.
    sections: returns the body of the page in Markdown.
  """

  draw: Callable[[Path, "Table", Mapping[str, "Result"]], None]
  sections: Callable[["Table", Mapping[str, "Result"]], list[str]]


@dataclasses.dataclass(frozen=True)
class Table:
  """Comparisons on one page.

  Attributes:
    name: of its files.
    title: of its page.
    comparisons: in page order, one per model family.
    view: what the page and its picture show.
    notes: what readers must know about the rows, one paragraph each.
    flag: value of `--table`; by default the name.
  """

  name: str
  title: str
  comparisons: tuple[Comparison, ...]
  view: View
  notes: tuple[str, ...] = ()
  flag: str | None = None

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
    """The dense row of this row's comparison."""
    return next(c.dense for c in self.comparisons if row in c.rows)

  def label(self, row: Row) -> str:
    """The row's label, with its family if the table has several."""
    if len(self.comparisons) == 1:
      return row.label
    return f"{FAMILIES[row.family].title}: {row.label}"
