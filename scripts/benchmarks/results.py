"""What a benchmark found, as tables for people and as JSON for programs."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax

Value: TypeAlias = str | int | float | bool | None
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")
# What changes the speed of the same code on the same machine.
VARIABLES = ("XLA_FLAGS", "LD_PRELOAD", "OMP_NUM_THREADS", "JAX_PLATFORMS")


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows with the same columns.

  Attributes:
    name: of the table, which a suite keeps from version to version.
    rows: from the name of a column to its value; None where there is none.
    note: what a reader has to know.
  """

  name: str
  rows: Sequence[Mapping[str, Value]]
  note: str = ""

  @property
  def holds(self) -> bool:
    """Whether all checks among the rows hold."""
    return all(row.get("holds", True) for row in self.rows)

  def markdown(self) -> str:
    """The table with a heading; without columns that have no value."""
    columns = [
      name
      for name in self.rows[0]
      if any(row[name] is not None for row in self.rows)
    ]
    rows = ([shown(row[name]) for name in columns] for row in self.rows)
    cells = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [_line(row, widths) for row in cells]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    note = [self.note, ""] if self.note else []
    return "\n".join([f"## {self.name}", "", *note, *lines, ""])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
  padded = (cell.ljust(width) for cell, width in zip(cells, widths))
  return f"| {' | '.join(padded)} |"


def shown(value: Value) -> str:
  """A value in a cell: numbers with three to four digits."""
  if value is None:
    return "–"
  if isinstance(value, bool):
    return "yes" if value else "no"
  if not isinstance(value, float):
    return str(value)
  if value == 0 or 1e-3 <= abs(value) < 1e15:
    return (
      f"{value:,.{3 if abs(value) < 10 else 1 if abs(value) < 1e3 else 0}f}"
    )
  return f"{value:.1e}"


def header() -> dict[str, Any]:
  """Versions, device and settings that a figure depends on."""
  devices = jax.devices()
  return {
    "versions": {"python": platform.python_version(), **_versions()},
    "devices": f"{len(devices)} x {devices[0].device_kind}",
    "processor": _processor(),
    "cores": len(os.sched_getaffinity(0)),
    "load when it began": os.getloadavg()[0],
    "variables": {n: os.environ[n] for n in VARIABLES if n in os.environ},
  }


def _versions() -> dict[str, str]:
  absent = missing(PACKAGES)
  return {
    name: importlib.metadata.version(name)
    for name in PACKAGES
    if name not in absent
  }


def missing(packages: Iterable[str]) -> list[str]:
  """Those of these packages that are not installed."""
  names = []
  for package in packages:
    try:
      importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      names.append(package)
  return names


def _processor() -> str:
  """The name of the CPU, where Linux tells it."""
  path = Path("/proc/cpuinfo")
  text = path.read_text(encoding="utf-8") if path.exists() else ""
  found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
  return found.group(1) if found else platform.processor()


def header_markdown(head: Mapping[str, Any]) -> str:
  """The header as a list."""

  def text(value: Any) -> str:
    if isinstance(value, Mapping):
      return ", ".join(f"{name} {item}" for name, item in value.items())
    return shown(value)

  return "\n".join(f"- {n}: {text(v) or '–'}" for n, v in head.items()) + "\n"


def write_json(
  path: Path, head: Mapping[str, Any], suites: Mapping[str, Sequence[Table]]
) -> None:
  """Writes the header and, by suite, its tables."""
  content = {
    "header": head,
    "suites": {
      name: {table.name: list(table.rows) for table in tables}
      for name, tables in suites.items()
    },
  }
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
