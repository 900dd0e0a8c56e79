"""The page and the picture of a table, made from its runs' own files.

Both can be made at any time: rows without a finished run are dashes.
"""

from collections.abc import Mapping
from pathlib import Path

from . import figures, losses, pages, transitions
from .learning_rate import Grid, read_grids
from .results import Result, read_results
from .runs import Setting, shell
from .table import Row, Table


def write_report(
  results: Path, setting: Setting, table: Table, *, tune: bool
) -> Path:
  """Writes `<table>_<scale>[_tuned].md` and `.png` in the folder `results`.

  Returns:
    The page.
  """
  grids = read_grids(setting, table, tune=tune)
  found = read_results(setting, table, grids)
  name = f"{table.name}_{setting.scale}{'_tuned' if tune else ''}"
  picture = results / f"{name}.png"
  if table.name == "transitions":
    transitions.draw(picture, found)
    body = [transitions.transition_table(found), transitions.EXPLANATION]
  else:
    if table.name == "flop_sweep":
      figures.draw_sweep(picture, found)
    else:
      figures.draw_losses(picture, table, found)
    body = losses.loss_sections(table, found)
  page = results / f"{name}.md"
  pages.write(
    page,
    [
      f"# {table.title}",
      _made_by(setting, table, found, tune=tune),
      f"![{table.title}]({picture.name})",
      *body,
      *table.notes,
      _missing(table, found),
      "## Learning rates",
      _learning_rates(table, grids, tune=tune),
      "## Where and when",
      _provenance(found),
      "## Commands",
      _commands(table, found),
    ],
  )
  return page


def reproduce_command(
  setting: Setting, table: Table, *, seeds: int, tune: bool
) -> str:
  """The command that makes a table."""
  flags = ["--table", table.name, "--scale", setting.scale]
  flags += ["--seeds", str(seeds), *(["--tune"] if tune else [])]
  return shell(["python", "scripts/reproduce.py", *flags, *setting.overrides])


def _made_by(
  setting: Setting, table: Table, found: Mapping[str, Result], *, tune: bool
) -> str:
  seeds = max(len(result.runs) for result in found.values())
  command = reproduce_command(setting, table, seeds=max(seeds, 1), tune=tune)
  return f"Scale `{setting.scale}`, made by\n\n```bash\n{command}\n```"


def _missing(table: Table, found: Mapping[str, Result]) -> str:
  """What a reader may not overlook: rows that lack runs."""
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
      "Each row was tuned by itself, with seed 0, which is also its first seed"
      " above, and uses its own best."
    )
  else:
    rows = (
      "all rows" if len(table.comparisons) == 1 else "all rows of its model"
    )
    note = (
      f"Tuned for dense training and used for {rows}. It is the best of seed 0,"
      " which is also the first seed of the dense row: a small advantage of it."
    )
  shown = {grid.row: grid for grid in grids.values()}
  rates = sorted({rate for grid in shown.values() for rate in grid.losses})
  lines = [
    [table.label(row), *(_grid_cell(grid, rate) for rate in rates)]
    for row, grid in shown.items()
  ]
  head = ["evaluation loss at", *(f"{rate:g}" for rate in rates)]
  return "\n\n".join([note, pages.table(head, lines), *_warnings(table, shown)])


def _grid_cell(grid: Grid, rate: float) -> str:
  text = pages.number(grid.losses.get(rate), ".4f")
  return f"**{text}**" if rate == grid.best else text


def _warnings(table: Table, grids: Mapping[Row, Grid]) -> list[str]:
  warnings = []
  for row, grid in grids.items():
    label = table.label(row)
    if not grid.is_complete:
      warnings.append(f"**{label}: not all runs of the grid are there.**")
    if grid.best_is_at_edge:
      warnings.append(
        f"**{label}: the best learning rate is at the edge of the grid, a"
        " better one may lie outside.**"
      )
  return warnings


def _provenance(found: Mapping[str, Result]) -> str:
  summaries = [s for r in found.values() for s in r.summaries.values()]
  if not summaries:
    return "No run has finished."
  seeds = sorted({seed for r in found.values() for seed in r.runs})
  return pages.provenance(summaries, seeds)


def _commands(table: Table, found: Mapping[str, Result]) -> str:
  blocks = [
    f"<details><summary>{table.label(result.row)}</summary>\n\n"
    f"```bash\n{result.command_run.command()}\n```\n\n</details>"
    for result in found.values()
    if result.command_run
  ]
  if not blocks:
    return "They need a learning rate first."
  head = (
    "Prepare the data with the same flags and `scripts/prepare.py`; other seeds"
    " have another `RANDOM_SEED`."
  )
  return "\n\n".join([head, *blocks])
