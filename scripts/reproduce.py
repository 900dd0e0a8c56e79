r"""Reproduces a table of results: trains its rows and writes its page.

  python scripts/reproduce.py --table bert_methods --scale tiny
  python scripts/reproduce.py --table bert_methods --scale small --seeds 5 \
    --gin.TEXT_DIR="'books'"

Runs are in runs/reproduce/<scale>/<row>/lr_<rate>/seed_<n>. Finished runs are
not repeated, and tables that have a row in common share its runs. Ctrl-C stops;
the same command resumes. After each run the page results/<table>_<scale>.md and
its picture are updated. `--gin.NAME=VALUE` and `--gin_search_paths=FOLDERS` are
passed to all runs.

A page is only replaced by one with as many steps and seeds of each row. Other
pages go to results/trials/, and so do trials: commands with a `--gin.NAME=VALUE`
that changes more than where the inputs are. Their runs are in
runs/reproduce/trials/.

The learning rate is the best of a small grid for dense training of the model
family, which the dense row trains first. `--only` trains the rows that it names
and nothing else. With `--tune` each row is tuned on this grid, and the page's
name ends in _tuned.md.

Exit codes: 0 done; 1 a run failed; 2 something to mend, said in one line; 130
or 143 stopped by Ctrl-C or SIGTERM.

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
from types import FrameType

# This checkout's package, not another one that is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from raptr_jax.configuration.errors import ConfigurationError
from tables import bert_rows, pages
from tables.evidence import place_of
from tables.results import read_grid
from tables.runs import Setting, finished_seeds, shell
from tables.table import SCALES, Row, Table
from tables.training import check_unchanged, train_rows
from tables.ul2_rows import UL2_METHODS
from tables.wanted import wanted_runs

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
FINE_TUNING = "bert_finetune"
# Flags of the training program that are passed on to all runs.
PASSED_ON = ("--gin.", "--gin_search_paths=")
DEFAULT_SEEDS, FINE_TUNING_SEEDS = 3, 5


def main(argv: Sequence[str] | None = None) -> None:
  """Trains, plans or reports the table that the flags name."""
  argv = sys.argv[1:] if argv is None else argv
  overrides = tuple(a for a in argv if a.startswith(PASSED_ON))
  args = _parser().parse_args([a for a in argv if a not in overrides])
  try:
    with _stopping():
      if args.table in THEORY:
        _reproduce_theory(args, overrides)
      elif args.table == FINE_TUNING:
        _reproduce_fine_tuning(args, overrides, argv)
      else:
        _reproduce_table(args, overrides)
  except (ConfigurationError, OSError, ValueError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument(
    "--table",
    required=True,
    help=f"{', '.join((*TABLES, FINE_TUNING, *THEORY))},\nor MODULE.NAME",
  )
  parser.add_argument("--scale", choices=SCALES)
  parser.add_argument(
    "--seeds",
    type=int,
    help=f"seeds of each row; default: {DEFAULT_SEEDS}, or"
    f" {FINE_TUNING_SEEDS} of fine-tuning",
  )
  parser.add_argument(
    "--only",
    nargs="+",
    metavar="ROW",
    help="train these rows and nothing else; default: all",
  )
  parser.add_argument(
    "--tune", action="store_true", help="tune each row's learning rate"
  )
  parser.add_argument(
    "--report_only", action="store_true", help="write the page, train nothing"
  )
  parser.add_argument(
    "--dry_run", action="store_true", help="print runs, costs and commands"
  )
  parser.add_argument("--runs", type=_folder, default=Path("runs/reproduce"))
  parser.add_argument("--results", type=_folder, default=Path("results"))
  return parser


def _folder(value: str) -> Path:
  """A folder of this machine, in which runs are locked and keep their logs."""
  if "://" in value:
    raise argparse.ArgumentTypeError(
      f"{value!r} is an address, expected a folder of this machine"
    )
  return Path(value)


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
      f" {', '.join((*TABLES, FINE_TUNING, *THEORY))}, or MODULE.NAME."
    )
  try:
    table = getattr(importlib.import_module(module), name)
  except (AttributeError, ImportError) as error:
    raise ValueError(f"--table {flag}: {error}") from error
  if not isinstance(table, Table):
    raise ValueError(f"--table {flag} is a {type(table).__name__}, not a Table")
  return dataclasses.replace(table, flag=flag)


def _reproduce_table(
  args: argparse.Namespace, overrides: tuple[str, ...]
) -> None:
  table = find_table(args.table)
  if args.scale is None:
    raise ValueError(f"--table {args.table} needs --scale {'|'.join(SCALES)}")
  seeds = DEFAULT_SEEDS if args.seeds is None else args.seeds
  if seeds < 1:
    raise ValueError(f"--seeds {seeds}, expected at least 1")
  setting = Setting(args.scale, args.runs, overrides)
  # Twice the same name is the same row.
  names = dict.fromkeys(args.only or ())
  rows = [table.row(name) for name in names] or list(table.rows)
  if args.dry_run:
    _plan(args, setting, table, rows=rows, seeds=seeds)
    return
  failed = []
  if not args.report_only:
    failed = train_rows(
      setting,
      table,
      rows=rows,
      seeds=seeds,
      tune=args.tune,
      results=args.results,
    )
  print(pages.write_report(args.results, setting, table, tune=args.tune))
  if failed:
    print(f"failed: {'; '.join(run.name for run in failed)}", file=sys.stderr)
    sys.exit(1)


def _plan(
  args: argparse.Namespace,
  setting: Setting,
  table: Table,
  *,
  rows: Sequence[Row],
  seeds: int,
) -> None:
  """Prints what will run; at scale paper it is also a page."""
  from tables.plans import CLUSTER_SCALE, plan_page  # Imports jax.

  wanted = {"rows": rows, "seeds": seeds, "tune": args.tune}
  check_unchanged(wanted_runs(setting, table, **wanted))
  page, evidence = plan_page(setting, table, **wanted)
  print("\n\n".join(page))
  if setting.scale == CLUSTER_SCALE:
    name = f"{table.name}_paper_plan"
    place = place_of(args.results, name, evidence, trial=setting.trial)
    pages.write_page(place.page, [*page, evidence.comment()])
    print(f"\n{place}")


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
  """Turns Ctrl-C and SIGTERM into their exit codes, and says how to go on."""
  received = [signal.SIGINT]

  def stop(number: int, frame: FrameType | None) -> None:
    received.append(signal.Signals(number))
    raise KeyboardInterrupt

  before = {
    number: signal.signal(number, stop)
    for number in (signal.SIGINT, signal.SIGTERM)
  }
  try:
    yield
  except KeyboardInterrupt:
    print("stopped: run the same command again to resume", file=sys.stderr)
    sys.exit(128 + received[-1])
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _reproduce_theory(
  args: argparse.Namespace, overrides: tuple[str, ...]
) -> None:
  # They import jax.
  from theory import lemma_pages, lemma_runs, polynomial_pages, polynomial_runs

  is_lemma = args.table == "theory_lemma"
  refused = [overrides, args.only, args.tune, args.dry_run, args.seeds]
  flags = "--seeds, --only, --tune, --dry_run and --gin.NAME=VALUE"
  if not is_lemma:
    refused.append(args.scale)
    flags = f"--scale, {flags}"
  if any(refused):
    raise ValueError(f"--table {args.table} takes none of {flags}.")
  # The lemma is also measured on the trained models of a scale.
  scale = args.scale or "tiny"
  folder = args.runs / scale / args.table
  if not args.report_only:
    if is_lemma:
      lemma_runs.run(folder, _dense_models(Setting(scale, args.runs)))
    else:
      polynomial_runs.run(folder)
  command = ["python", "scripts/reproduce.py", "--table", args.table]
  command += ["--scale", args.scale] if args.scale else []
  if is_lemma:
    place = lemma_pages.report(
      folder, args.results, shell(command), scale=scale
    )
  else:
    place = polynomial_pages.report(folder, args.results, shell(command))
  print(place)


def _reproduce_fine_tuning(
  args: argparse.Namespace, overrides: tuple[str, ...], argv: Sequence[str]
) -> None:
  from fine_tuning import finetune_pages
  from fine_tuning.finetune_runs import FineTuningTable

  if args.only or args.tune or args.dry_run:
    raise ValueError(
      f"--table {FINE_TUNING} takes none of --only, --tune and --dry_run."
    )
  if args.scale is None:
    raise ValueError(f"--table {FINE_TUNING} needs --scale {'|'.join(SCALES)}")
  seeds = FINE_TUNING_SEEDS if args.seeds is None else args.seeds
  table = FineTuningTable.of(args.scale, args.runs, overrides, seeds)
  if not args.report_only:
    table.run()
  words = [a for a in argv if a != "--report_only"]
  command = shell(["python", "scripts/reproduce.py", *words])
  print(finetune_pages.report(table, args.results, command))


def _dense_models(setting: Setting) -> dict[int, Path]:
  """Finished dense runs of table `transitions`, seed 0, by number of layers."""
  rate = read_grid(setting, bert_rows.DENSE).rate
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
