"""Pieces of Markdown, and how a page comes into being as a whole."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks import records

MISSING = "–"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A Markdown table; all columns but the first are aligned to the right."""
  rules = ["---", *["---:"] * (len(head) - 1)]
  return "\n".join(f"| {' | '.join(line)} |" for line in (head, rules, *rows))


def number(value: float | None, form: str) -> str:
  """A number, or a dash where there is none."""
  return MISSING if value is None else format(value, form)


def provenance(
  sources: Sequence[Mapping[str, Any]], seeds: Iterable[int], *notes: str
) -> str:
  """A list of where and when something was made.

  Args:
    sources: of its parts, at least one, as `raptr_jax.provenance` gives them.
    seeds: in the order to show them.
    *notes: further lines.
  """
  dates = sorted(source["date"] for source in sources)
  hardware = sorted({source["hardware"] for source in sources})
  versions = {
    ", ".join(f"{name} {value}" for name, value in source["versions"].items())
    for source in sources
  }
  lines = [
    f"date: {' to '.join(dict.fromkeys((dates[0], dates[-1])))}",
    f"hardware: {'; '.join(hardware)}",
    f"versions: {'; '.join(sorted(versions))}",
    f"seeds: {', '.join(map(str, seeds))}",
    *notes,
  ]
  return "\n".join(f"- {line}" for line in lines)


def write(path: Path, sections: Iterable[str]) -> None:
  """Writes a page; a killed process leaves the old or the new one."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with records.replacing(path) as partial:
    text = "\n\n".join(section for section in sections if section)
    partial.write_text(text + "\n", encoding="utf-8")
