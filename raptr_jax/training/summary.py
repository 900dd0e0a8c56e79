"""The end of a run: its last evaluations, and `summary.json`."""

from typing import Any, TypeAlias

from raptr_jax.reports.provenance import provenance
from raptr_jax.reports.run_files import (
  CONFIG_FILE,
  CURVES_FILE,
  PAGE_FILE,
  SUMMARY_FILE,
  config_changes,
  read_summary,
)
from raptr_jax.tasks import files
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.held_out import HeldOutEvaluator
from raptr_jax.training.history import factors
from raptr_jax.training.metrics import STEPS
from raptr_jax.training.recorder import Recorder
from raptr_jax.training.setup import parameter_count
from raptr_jax.training.state import TrainState
from raptr_jax.training.token_counts import padding

Summary: TypeAlias = dict[str, Any]  # What `summary.json` holds.


def finished_summary(
  experiment: Experiment, config: str, start: int
) -> Summary | None:
  """The summary of a complete run; None if there is more to do.

  Args:
    experiment: the run.
    config: text that describes it.
    start: step of its latest checkpoint.
  """
  summary = complete_summary(experiment, start)
  if summary is None:
    return None
  folder = files.path("MODEL_DIR", experiment.model_dir)
  print(f"complete: {folder / SUMMARY_FILE} has all {start} steps")
  old = folder / CONFIG_FILE
  changes = old.exists() and config_changes(old.read_text("utf-8"), config)
  if changes:
    print("  what has changed since has no effect; set another MODEL_DIR:")
    print("\n".join(f"  {change}" for change in changes))
  return summary


def complete_summary(experiment: Experiment, start: int) -> Summary | None:
  """The summary of a run that has written all that it writes, else None.

  Args:
    experiment: the run.
    start: step of its latest checkpoint.
  """
  folder = files.path("MODEL_DIR", experiment.model_dir)
  ends = (end.file_name for end in experiment.at_end)
  names = (SUMMARY_FILE, PAGE_FILE, CURVES_FILE, *ends)
  if not all((folder / name).exists() for name in names):
    return None
  try:
    summary: Summary = read_summary(experiment.model_dir)
  except OSError:  # It is damaged, and the run writes it again.
    return None
  # Of a run that has been extended, it may tell of fewer steps.
  is_complete = start >= experiment.total_steps == summary.get("steps")
  return summary if is_complete else None


def finish(
  experiment: Experiment,
  evaluator: HeldOutEvaluator,
  recorder: Recorder,
  state: TrainState,
) -> Summary:
  """Evaluates the full model and shorter paths, and writes the summary."""
  report = recorder.report
  with recorder.paused("evaluating"):
    losses = _last_evaluations(experiment, evaluator, recorder, state)
  seconds = recorder.stopwatch.read()
  report.write_seconds(seconds)
  summary = _summary(experiment, recorder, losses) | {
    "train_seconds": seconds[STEPS],
    "goodput": seconds[STEPS] / sum(seconds.values()),
    "seconds": seconds,
    "parameters": parameter_count(state.params),
  }
  report.write_summary(summary)
  for end in experiment.at_end:
    page = end(experiment.model, state.params, experiment.partitioner)
    report.write_page(end.file_name, page)
  report.note(f"finished: see summary.md in {experiment.model_dir}")
  return summary


def _last_evaluations(
  experiment: Experiment,
  evaluator: HeldOutEvaluator,
  recorder: Recorder,
  state: TrainState,
) -> Summary:
  """Evaluates and records the full model and shorter paths; their losses."""
  plan, key = recorder.plan, experiment.keys()["eval"]
  full = evaluator.full(state.params)
  full |= experiment.scores(plan.total_steps, state.params)
  recorder.write_evaluation(plan.total_steps, "full", full)
  by_length = evaluator.by_path_lengths(state.params, plan, key)
  for length, losses in by_length.items():
    recorder.write_evaluation(plan.total_steps, length, losses)
  # Denoisers' targets contain sentinels, which are not counted in the text.
  dataset = experiment.train_dataset
  counts = None if dataset.example_kinds else dataset.unigram_counts
  return {
    "final_eval_loss": full["loss"],
    "loss_by_example_kind": evaluator.by_example_kind(state.params),
    "unigram_loss": None if counts is None else evaluator.unigram_loss(counts),
  }


def _summary(
  experiment: Experiment, recorder: Recorder, losses: Summary
) -> Summary:
  """Everything in the summary but what the run measured of itself."""
  plan, tokens = recorder.plan, recorder.tokens
  steps = plan.total_steps
  parts = recorder.history.parts(steps)
  return {
    "steps": steps,
    **losses,
    "flop_factor_nominal": plan.flop_factor_nominal,
    "flop_factor_spent": plan.flop_factor_spent,
    "num_layers": plan.num_layers,
    "boundaries": list(plan.boundaries),
    "stage_path_lengths": [
      sum(stage.path_lengths.values()) for stage in plan.stages
    ],
    "flop_factor_whole_step": plan.flop_factor_whole_step,
    "flops_spent": plan.flops_spent(steps),
    "tokens": int(tokens),
    "skipped_steps": recorder.skipped,
    "padding": padding(tokens, steps * plan.batch_positions),
    "random_seed": experiment.random_seed,
    "execution": experiment.execution,
    "solved_for": experiment.solved_for,
    **provenance(),
    **({"parts": parts, **factors(parts)} if len(parts) > 1 else {}),
  }
