"""Whether metrics.jsonl has the rows that a run wrote, in their order.

A row is due after a step according to the periods and stages of the run. Rows
after the checkpoint that it resumes from may be there or not: the run writes
them again.
"""

import collections
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from raptr_jax.methods.growth import row_moves
from raptr_jax.reports.run_files import METRICS_FILE, read_metrics
from raptr_jax.tasks import files
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.findings import Findings
from raptr_jax.training.held_out import evaluation_due
from raptr_jax.training.history import History
from raptr_jax.training.recorder import entry_due

# What a row is of: split, step, and the evaluated layers.
Name: TypeAlias = tuple[str, int, int | str | None]
SHOWN = 5  # Steps that a message names.
TRAIN = "experiment.Experiment.report_period"
EVAL = "experiment.Experiment.eval_period"


def verify_rows(
  experiment: Experiment,
  history: History | None,
  start: int,
  findings: Findings,
  *,
  complete: bool,
) -> None:
  """Checks the rows of a run.

  Args:
    experiment: the run.
    history: of its steps; None if its configuration is not that of the steps
      done, and so does not tell which rows are due.
    start: step of the checkpoint that it resumes from; 0 for none.
    findings: gets the result.
    complete: whether the run has written all that it writes.
  """
  try:
    rows = read_metrics(experiment.model_dir)
  except OSError as error:
    findings.fault(METRICS_FILE, str(error), blocks=True)
    return
  names = [_name(row) for row in rows]
  if None in names:
    line = names.index(None) + 1
    text = f"line {line} is no row of training or of an evaluation"
    findings.fault(METRICS_FILE, text, blocks=True)
    return
  known = [name for name in names if name is not None]
  faults = list(_out_of_place(known))
  if history is not None:
    due = _due(history, start, complete=complete)
    faults += _missing(experiment, set(known), due)
  if not faults:
    findings.tell(METRICS_FILE, f"ok, {len(rows):,} rows")
    return
  path = files.path("MODEL_DIR", experiment.model_dir) / METRICS_FILE
  absent = "" if path.is_file() else "does not exist; "
  findings.fault(METRICS_FILE, absent + "; ".join(faults))


def _name(row: Any) -> Name | None:
  """What a row is of; None if it is not a row."""
  match row:
    case {"split": "train", "step": int(step)}:
      return "train", step, None
    case {"split": "eval", "step": int(step), "layers": int() | str() as n}:
      return "eval", step, n
  return None


def _out_of_place(names: Sequence[Name]) -> Iterator[str]:
  """Rows that are there twice, or come too late."""
  lines: dict[Name, int] = {}
  latest = 0
  for line, name in enumerate(names, start=1):
    step = name[1]
    if name in lines:
      yield f"line {line} repeats {_in_words(name)} of line {lines[name]}"
    elif step < latest:
      yield f"line {line} is {_in_words(name)}, but comes after step {latest}"
    lines.setdefault(name, line)
    latest = max(latest, step)


def _in_words(name: Name) -> str:
  split, step, layers = name
  if split == "train":
    return f"the training row of step {step}"
  return f"the evaluation of step {step} (layers: {layers})"


def _due(history: History, start: int, *, complete: bool) -> Iterator[Name]:
  """The rows that a run has written up to a checkpoint, at least."""
  experiment, plan = history.experiment, history.plan
  for part in history.parts(start):
    boundaries = frozenset(part["boundaries"])
    first = part["first_step"]
    for step in range(first + 1, first + part["steps"] + 1):
      if entry_due(
        step,
        period=experiment.report_period,
        boundaries=boundaries,
        total_steps=plan.total_steps,
      ):
        yield "train", step, None
      if step < plan.total_steps and evaluation_due(
        step, period=experiment.eval_period, boundaries=boundaries
      ):
        yield "eval", step, "full"
  for step in plan.boundaries:
    # A checkpoint comes before the growth of its step.
    grows = bool(row_moves(experiment.growths, step)[0])
    if grows and history.first_step <= step < start:
      yield "eval", step, "grown"
  if complete:
    yield "eval", plan.total_steps, "full"
    for lengths in plan.evaluated_lengths():
      yield "eval", plan.total_steps, sum(lengths.values())


def _missing(
  experiment: Experiment, names: set[Name], due: Iterator[Name]
) -> list[str]:
  """Rows that are due, but not there."""
  steps = collections.defaultdict(list)
  for name in due:
    if name not in names:
      split, step, layers = name
      steps[split, layers].append(step)
  found = []
  for (split, layers), missing in steps.items():
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    shown = ", ".join(map(str, missing[:SHOWN])) + more
    if split == "train":
      found.append(f"it lacks the training row of step {shown}")
    else:
      found.append(
        f"it lacks the evaluation of step {shown} (layers: {layers})"
      )
  if found:
    found.append(
      f"rows are due by {TRAIN} = {experiment.report_period}, {EVAL} ="
      f" {experiment.eval_period}, and around stage boundaries"
    )
  return found
