"""The page and the picture of a table, and the Markdown that pages share.

A page can be written at any time. Rows without a finished run show dashes.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raptr_jax.tasks import files
from tables.evidence import Evidence, Place, place_of
from tables.results import Grid, Result, read_grids, read_results
from tables.runs import Setting, shell
from tables.table import Row, Table

MISSING = "–"


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
  """A Markdown table; all columns but the first are right-aligned."""
  rules = ["---", *["---:"] * (len(head) - 1)]
  return "\n".join(f"| {' | '.join(line)} |" for line in (head, rules, *lines))


def number(value: float | None, form: str) -> str:
  """A formatted number, or a dash."""
  return MISSING if value is None else format(value, form)


def provenance(
  sources: Sequence[Mapping[str, Any]], seeds: Iterable[int], *notes: str
) -> str:
  """A list of where and when results were made.

  Args:
    sources: provenance of each part, at least one; see
      `raptr_jax/reports/provenance.py`.
    seeds: in the order shown.
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


def write_page(path: Path, sections: Iterable[str]) -> None:
  """Writes a page whole or not at all, skipping empty sections."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as partial:
    text = "\n\n".join(section for section in sections if section)
    partial.write_text(text + "\n", encoding="utf-8")


def write_report(
  results: Path, setting: Setting, table: Table, *, tune: bool
) -> Place:
  """Writes `<table>_<scale>[_tuned].md` and `.png`.

  Returns:
    Where the page is: in the folder `results`, or in one for trials.
  """
  grids = read_grids(setting, table, tune=tune)
  found = read_results(setting, table, grids)
  evidence = Evidence(
    setting.options,
    {
      name: (result.summary["steps"], len(result.runs))
      for name, result in found.items()
      if result.summary
    },
  )
  name = f"{table.name}_{setting.scale}{'_tuned' if tune else ''}"
  place = place_of(results, name, evidence, trial=setting.trial)
  picture = place.page.with_suffix(".png")
  table.view.draw(picture, table, found)
  write_page(
    place.page,
    [
      f"# {table.title}",
      _made_by(setting, table, found, tune=tune),
      f"![{table.title}]({picture.name})",
      *table.view.sections(table, found),
      *table.notes,
      _missing(table, found),
      "## Learning rates",
      _learning_rates(table, grids, tune=tune),
      "## Where and when",
      _provenance(found),
      "## Commands",
      _commands(table, found),
      evidence.comment(),
    ],
  )
  return place


def _made_by(
  setting: Setting, table: Table, found: Mapping[str, Result], *, tune: bool
) -> str:
  """The command that makes the table."""
  seeds = max(1, *(len(result.runs) for result in found.values()))
  flags = ["--table", table.flag or table.name, "--scale", setting.scale]
  flags += ["--seeds", str(seeds), *(["--tune"] if tune else [])]
  if len(found) < len(table.rows):
    flags += ["--only", *found]
  command = ["python", "scripts/reproduce.py", *flags, *setting.overrides]
  return f"Scale `{setting.scale}`, made by\n\n```bash\n{shell(command)}\n```"


def _missing(table: Table, found: Mapping[str, Result]) -> str:
  """A warning about rows with fewer runs than others."""
  most = max(len(result.runs) for result in found.values())
  fewer = [
    f"{table.label(result.row)} ({len(result.runs)} of {most})"
    for result in found.values()
    if len(result.runs) < most
  ]
  return f"Finished with fewer seeds: {'; '.join(fewer)}." if fewer else ""


def _learning_rates(
  table: Table, grids: Mapping[str, Grid], *, tune: bool
) -> str:
  if tune:
    note = (
      "Each row was tuned separately with seed 0, which is also its first seed"
      " above, and uses its own best rate."
    )
  else:
    rows = (
      "all rows" if len(table.comparisons) == 1 else "all rows of its model"
    )
    note = (
      f"Tuned for dense training and used for {rows}. The rate is the best with"
      " seed 0, which is also the dense row's first seed: a small advantage for"
      " that row."
    )
  shown = {grid.row: grid for grid in grids.values()}
  rates = sorted({rate for grid in shown.values() for rate in grid.losses})
  lines = [
    [table.label(row), *(_grid_cell(grid, rate) for rate in rates)]
    for row, grid in shown.items()
  ]
  head = ["evaluation loss at", *(f"{rate:g}" for rate in rates)]
  return "\n\n".join(
    [note, markdown_table(head, lines), *_warnings(table, shown)]
  )


def _grid_cell(grid: Grid, rate: float) -> str:
  text = number(grid.losses.get(rate), ".4f")
  return f"**{text}**" if rate == grid.best else text


def _warnings(table: Table, grids: Mapping[Row, Grid]) -> list[str]:
  warnings = []
  for row, grid in grids.items():
    label = table.label(row)
    if grid.best is None:
      warnings.append(
        f"**{label}: no run of the grid has finished, so the runs above have"
        f" the learning rate {grid.rate:g}, its middle.**"
      )
    elif not grid.is_complete:
      warnings.append(f"**{label}: not all runs of the grid have finished.**")
    if grid.best_is_at_edge:
      warnings.append(
        f"**{label}: the best learning rate is at the edge of the grid, so a"
        " better one may lie outside.**"
      )
  return warnings


def _provenance(found: Mapping[str, Result]) -> str:
  summaries = [s for r in found.values() for s in r.summaries.values()]
  if not summaries:
    return "No run has finished."
  seeds = sorted({seed for r in found.values() for seed in r.runs})
  return provenance(summaries, seeds)


def _commands(table: Table, found: Mapping[str, Result]) -> str:
  """The command of each row's first seed."""
  blocks = [
    f"<details><summary>{table.label(result.row)}</summary>\n\n"
    f"```bash\n{result.command_run.command()}\n```\n\n</details>"
    for result in found.values()
  ]
  head = (
    "Prepare the data by adding `--run_mode=prepare` to the same flags. For"
    " another seed change `RANDOM_SEED`."
  )
  return "\n\n".join([head, *blocks])
