r"""Reproduces a table of results: trains its rows and writes its page.

  python scripts/reproduce.py --table bert_methods --scale tiny
  python scripts/reproduce.py --table bert_methods --scale small --seeds 5 \
    --gin.TEXT_DIR="'books'"

Runs lie in runs/reproduce/<scale>/<row>/lr_<rate>/seed_<n>. What has finished
is not done again, and rows that several tables have are trained once; stopped
with Ctrl-C, the same command goes on. After every run the page
results/<table>_<scale>.md and its picture are written anew. `--gin.NAME=VALUE`
is passed on to all runs.

The learning rate is the best of a small grid for dense training of the model
family; with `--tune` each row has that grid for itself, and the page ends in
_tuned.md.
"""

import argparse
import contextlib
import importlib
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from raptr_jax.main import ConfigurationError
from tables import pages
from tables.learning_rate import read_grid
from tables.report import write_report
from tables.rows import DENSE, DEPTHS, TABLES, at_depth
from tables.runs import Setting, finished_seeds, shell
from tables.table import SCALES, Table
from tables.training import train_rows

THEORY = ("theory_lemma", "theory_polynomial")


def main(argv: Sequence[str] | None = None) -> None:
  """Trains, plans or reports the table that the flags name."""
  argv = sys.argv[1:] if argv is None else argv
  overrides = tuple(a for a in argv if a.startswith("--gin."))
  args = _parser().parse_args([a for a in argv if a not in overrides])
  try:
    if args.table in THEORY:
      if overrides or args.only or args.tune or args.dry_run:
        raise ValueError(
          f"--table {args.table} takes none of --only, --tune, --dry_run and"
          " --gin.NAME=VALUE."
        )
      _reproduce_theory(args)
    elif args.scale is None:
      raise ValueError(f"--table {args.table} needs --scale {'|'.join(SCALES)}")
    else:
      setting = Setting(args.scale, args.runs, overrides)
      _reproduce_table(args, TABLES[args.table], setting)
  except (ConfigurationError, OSError, RuntimeError, ValueError) as error:
    sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--table", choices=(*TABLES, *THEORY), required=True)
  parser.add_argument("--scale", choices=SCALES)
  parser.add_argument("--seeds", type=int, default=3, help="seeds of each row")
  parser.add_argument(
    "--only", nargs="+", metavar="ROW", help="rows to train; default: all"
  )
  parser.add_argument("--tune", action="store_true")
  parser.add_argument(
    "--report_only", action="store_true", help="write the page, train nothing"
  )
  parser.add_argument(
    "--dry_run", action="store_true", help="print costs and commands"
  )
  parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"))
  parser.add_argument("--results", type=Path, default=Path("results"))
  return parser


def _reproduce_table(
  args: argparse.Namespace, table: Table, setting: Setting
) -> None:
  rows = [table.row(name) for name in args.only or ()] or list(table.rows)
  if args.seeds < 1:
    raise ValueError(f"--seeds {args.seeds}, expected at least 1")
  if args.dry_run:
    from tables.plans import plan_page

    page = plan_page(
      setting, table, rows=rows, seeds=args.seeds, tune=args.tune
    )
    print("\n\n".join(page))
    if setting.scale == "paper":
      pages.write(args.results / f"{table.name}_paper_plan.md", page)
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
  print(write_report(args.results, setting, table, tune=args.tune))
  if failed:
    sys.exit(f"failed: {'; '.join(run.name for run in failed)}")


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
  """Ends the program in good order on Ctrl-C, and on SIGTERM as well."""
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    yield
  except KeyboardInterrupt:
    sys.exit("stopped: the same command goes on")


def _reproduce_theory(args: argparse.Namespace) -> None:
  module = importlib.import_module(f"tables.{args.table}")
  # The lemma's trained models are those of a scale.
  folder = args.runs / (args.scale or "tiny") / args.table
  if not args.report_only:
    inputs = {}
    if args.table == "theory_lemma":
      inputs["model_dirs"] = _dense_models(
        Setting(args.scale or "tiny", args.runs)
      )
    with _stopping():
      module.run(folder, **inputs)
  command = ["python", "scripts/reproduce.py", "--table", args.table]
  command += ["--scale", args.scale] if args.scale else []
  module.report(folder, args.results, shell(command))


def _dense_models(setting: Setting) -> dict[int, Path]:
  """Folders of the finished dense runs of table `transitions`, by depth."""
  rate = read_grid(setting, DENSE).best
  runs = {
    depth: finished_seeds(setting, at_depth(DENSE, depth), rate)
    for depth in DEPTHS
  }
  return {depth: r[0].folder for depth, r in runs.items() if 0 in r}


if __name__ == "__main__":
  main()
