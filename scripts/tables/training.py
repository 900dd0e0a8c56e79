"""Trains the rows of a table that have not finished, and reports after each."""

from collections.abc import Sequence
from pathlib import Path

from .launch import Progress, launch, log_tail, prepare_data
from .queue import wanted_runs
from .report import write_report
from .runs import Run, Setting
from .table import Row, Table

SHOWN_CHANGES = 8


def train_rows(
  setting: Setting,
  table: Table,
  *,
  rows: Sequence[Row],
  seeds: int,
  tune: bool,
  results: Path,
) -> list[Run]:
  """Trains what is missing of these rows.

  Args:
    setting: scale and folder.
    table: of the page that is written in the folder `results`.
    rows: of the table, those to train.
    seeds: how many of each.
    tune: whether each row's learning rate is tuned.
    results: folder of pages.

  Returns:
    The runs that failed.

  Raises:
    KeyboardInterrupt: the user stopped it.
    RuntimeError: the data could not be prepared.
    ValueError: a run in the folder is not what its row says now.
  """
  failed: list[Run] = []

  def wanted() -> list[Run]:
    return wanted_runs(
      setting, table, rows=rows, seeds=seeds, tune=tune, failed=failed
    )

  def queue() -> list[Run]:
    return [r for r in wanted() if not r.is_finished and r not in failed]

  check_unchanged(wanted())
  # What a family reads depends on no row.
  for run in {run.row.family: run for run in queue()}.values():
    prepare_data(run)
  with Progress() as progress:
    while left := queue():
      run = left[0]
      check_unchanged([run])  # Its learning rate may just have been found.
      progress.start(left)
      if launch(run, progress.watch):
        progress.finish(_outcome(run))
      else:
        failed.append(run)
        progress.finish("failed")
        progress.note(f"the end of {run.folder}/log.txt:\n{log_tail(run)}")
      write_report(results, setting, table, tune=tune)
  return failed


def check_unchanged(runs: Sequence[Run]) -> None:
  """Checks that runs in their folders are what their rows say now.

  Raises:
    ValueError: one is not; the message shows in what.
  """
  for run in runs:
    changes = run.changes()
    if changes:
      shown = "\n  ".join(changes[:SHOWN_CHANGES])
      raise ValueError(
        f"row {run.row.name}: {run.folder} was run with another configuration"
        f" (- then, + now):\n  {shown}\nDelete the folder to run it again, or"
        " give the flags that it was run with."
      )


def _outcome(run: Run) -> str:
  summary = run.summary() or {}
  loss = summary.get("final_eval_loss")
  return "loss not finite" if loss is None else f"loss {loss:.4f}"
