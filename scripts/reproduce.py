r"""Reproduces a table of results: trains its rows and writes its page.

  python scripts/reproduce.py --table bert_methods --scale tiny
  python scripts/reproduce.py --table bert_methods --scale small --seeds 5 \
    --gin.TEXT_DIR="'books'"

Runs are in runs/reproduce/<scale>/<row>/lr_<rate>/seed_<n>. Finished runs are
not repeated, and tables that have a row in common share its runs. Ctrl-C stops;
the same command resumes. After each run the page results/<table>_<scale>.md and
its picture are updated. `--gin.NAME=VALUE` and
`--gin_search_paths=FOLDERS` are passed to all runs.

The learning rate is the best of a small grid for dense training of the model
family. With `--tune` each row is tuned on this grid, and the page's name ends
in _tuned.md.

`--table MODULE.NAME` names a `Table` of your own, in a Python module in the
current folder or on the Python path; see tables/table.py.
"""

import argparse
import contextlib
import dataclasses
import importlib
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from raptr_jax.main import ConfigurationError
from tables import bert_rows, pages
from tables.results import read_grid
from tables.runs import Setting, finished_seeds, shell
from tables.table import SCALES, Table
from tables.training import train_rows
from tables.ul2_rows import UL2_METHODS

TABLES = {
  table.name: table
  for table in (
    bert_rows.METHODS,
    bert_rows.ABLATION,
    bert_rows.FLOP_SWEEP,
    bert_rows.DEPTH_TRANSITIONS,
    UL2_METHODS,
  )
}
THEORY = ("theory_lemma", "theory_polynomial")
# Flags of the training program that are passed on to all runs.
PASSED_ON = ("--gin.", "--gin_search_paths=")


def main(argv: Sequence[str] | None = None) -> None:
  """Trains, plans or reports the table that the flags name."""
  argv = sys.argv[1:] if argv is None else argv
  overrides = tuple(a for a in argv if a.startswith(PASSED_ON))
  args = _parser().parse_args([a for a in argv if a not in overrides])
  try:
    if args.table in THEORY:
      if overrides or args.only or args.tune or args.dry_run:
        raise ValueError(
          f"--table {args.table} takes none of --only, --tune, --dry_run and"
          " --gin.NAME=VALUE."
        )
      _reproduce_theory(args)
      return
    table = find_table(args.table)
    if args.scale is None:
      raise ValueError(f"--table {args.table} needs --scale {'|'.join(SCALES)}")
    setting = Setting(args.scale, args.runs, overrides)
    _reproduce_table(args, table, setting)
  except (ConfigurationError, OSError, RuntimeError, ValueError) as error:
    sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument(
    "--table",
    required=True,
    help=f"{', '.join((*TABLES, *THEORY))},\nor MODULE.NAME",
  )
  parser.add_argument("--scale", choices=SCALES)
  parser.add_argument("--seeds", type=int, default=3, help="seeds of each row")
  parser.add_argument(
    "--only", nargs="+", metavar="ROW", help="rows to train; default: all"
  )
  parser.add_argument(
    "--tune", action="store_true", help="tune each row's learning rate"
  )
  parser.add_argument(
    "--report_only", action="store_true", help="write the page, train nothing"
  )
  parser.add_argument(
    "--dry_run", action="store_true", help="print costs and commands"
  )
  parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"))
  parser.add_argument("--results", type=Path, default=Path("results"))
  return parser


def find_table(flag: str) -> Table:
  """One of `TABLES`, or the `Table` at a dotted path.

  Raises:
    ValueError: if there is none.
  """
  if flag in TABLES:
    return TABLES[flag]
  module, _, name = flag.rpartition(".")
  if not module:
    raise ValueError(
      f"argument --table: invalid choice: {flag!r}, expected one of"
      f" {', '.join((*TABLES, *THEORY))}, or MODULE.NAME."
    )
  try:
    table = getattr(importlib.import_module(module), name)
  except (AttributeError, ImportError) as error:
    raise ValueError(f"--table {flag}: {error}") from error
  if not isinstance(table, Table):
    raise ValueError(f"--table {flag} is a {type(table).__name__}, not a Table")
  return dataclasses.replace(table, flag=flag)


def _reproduce_table(
  args: argparse.Namespace, table: Table, setting: Setting
) -> None:
  rows = [table.row(name) for name in args.only or ()] or list(table.rows)
  if args.seeds < 1:
    raise ValueError(f"--seeds {args.seeds}, expected at least 1")
  if args.dry_run:
    from tables.plans import plan_page  # Imports jax.

    page = plan_page(
      setting, table, rows=rows, seeds=args.seeds, tune=args.tune
    )
    print("\n\n".join(page))
    if setting.scale == "paper":
      pages.write_page(args.results / f"{table.name}_paper_plan.md", page)
    return
  failed = []
  if not args.report_only:
    with _stopping():
      failed = train_rows(
        setting,
        table,
        rows=rows,
        seeds=args.seeds,
        tune=args.tune,
        results=args.results,
      )
  print(pages.write_report(args.results, setting, table, tune=args.tune))
  if failed:
    sys.exit(f"failed: {'; '.join(run.name for run in failed)}")


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
  """Exits cleanly on Ctrl-C and SIGTERM."""
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    yield
  except KeyboardInterrupt:
    sys.exit("stopped: run the same command again to resume")


def _reproduce_theory(args: argparse.Namespace) -> None:
  # They import jax.
  from theory import lemma_pages, lemma_runs, polynomial_pages, polynomial_runs

  # The lemma is also measured on the trained models of a scale.
  folder = args.runs / (args.scale or "tiny") / args.table
  is_lemma = args.table == "theory_lemma"
  if not args.report_only:
    with _stopping():
      if is_lemma:
        setting = Setting(args.scale or "tiny", args.runs)
        lemma_runs.run(folder, _dense_models(setting))
      else:
        polynomial_runs.run(folder)
  command = ["python", "scripts/reproduce.py", "--table", args.table]
  command += ["--scale", args.scale] if args.scale else []
  module = lemma_pages if is_lemma else polynomial_pages
  module.report(folder, args.results, shell(command))


def _dense_models(setting: Setting) -> dict[int, Path]:
  """Finished dense runs of table `transitions`, seed 0, by number of layers."""
  rate = read_grid(setting, bert_rows.DENSE).best
  runs = {
    depth: finished_seeds(
      setting, bert_rows.at_depth(bert_rows.DENSE, depth), rate
    )
    for depth in bert_rows.DEPTHS
  }
  return {depth: r[0].folder for depth, r in runs.items() if 0 in r}


if __name__ == "__main__":
  # Tables and gin files may be in the current folder.
  sys.path.append("")
  main()
