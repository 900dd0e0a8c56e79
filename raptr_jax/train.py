"""The training loop: a fixed order of things, with its reasons."""

import contextlib
import dataclasses
import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from raptr_jax import execution, flops
from raptr_jax import plan as plans
from raptr_jax.checkpoint import CheckpointFolder
from raptr_jax.contracts import Generator
from raptr_jax.evaluate import Evaluator
from raptr_jax.experiment import Experiment
from raptr_jax.growth import row_moves
from raptr_jax.infill import Infilling, infills_page
from raptr_jax.metrics import IntervalMeter, Stopwatch
from raptr_jax.models.masked_stack import full_path
from raptr_jax.plots import INFILLS_FILE, SUMMARY_FILE
from raptr_jax.provenance import provenance
from raptr_jax.report import RunReport, SilentReport
from raptr_jax.state import TrainState


def train(experiment: Experiment, config: str = "") -> dict[str, Any] | None:
  """Trains to the end, from wherever the run's folder has got to.

  A run that is started again in its folder goes on from its latest checkpoint
  and, on a CPU, ends in the same bits as if it had never stopped.

  Args:
    experiment: the run.
    config: text that describes it, kept in its folder.

  Returns:
    What `summary.json` holds; None if SIGTERM or SIGINT stopped the run, after
    a checkpoint.

  Raises:
    FileExistsError: if the folder has a checkpoint past the run's end.
    FileNotFoundError: if there is no initial checkpoint where one should be.
    FloatingPointError: if a loss or a gradient is not finite.
  """
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      experiment.checkpointer.open(experiment.model_dir)
    )
    start = checkpoints.latest_step() or 0
    summary = _earlier_summary(experiment, start)
    if summary is not None:
      return summary

    plan = plans.make_plan(experiment)
    abstract = plans.abstract_state(experiment)
    evaluator = make_evaluator(experiment)
    report = stack.enter_context(_report(experiment, plan, start))
    report.write_config(config)
    state, progress = _restore(experiment, checkpoints, abstract, report.note)
    programs = execution.StepPrograms(
      plans.jitted_step(experiment, abstract),
      abstract,
      plans.abstract_batch(experiment),
      plan.draws,
      start=start,
      execution=experiment.execution,
      draw_sharding=experiment.partitioner.replicated,
    )
    stack.callback(programs.close)
    loop = _Loop(
      experiment=experiment,
      plan=plan,
      checkpoints=checkpoints,
      report=report,
      programs=programs,
      grow=plans.jitted_grow(abstract),
      evaluator=evaluator,
      meter=IntervalMeter(progress["sums"]),
      watch=Stopwatch(progress["train_seconds"], progress["lap_seconds"]),
      examples=progress["examples"],
    )
    stops = stack.enter_context(_stop_signals())
    state, step = loop.run(state, start, stops)
    if step < experiment.total_steps:
      report.note(f"stopped after step {step}: run it again to go on")
      return None
    return loop.finish(state)


def _earlier_summary(
  experiment: Experiment, start: int
) -> dict[str, Any] | None:
  """The summary of a run that is complete; None if there is more to do."""
  if start > experiment.total_steps:
    raise FileExistsError(
      f"MODEL_DIR = '{experiment.model_dir}' has a checkpoint of step {start},"
      f" past TRAIN_STEPS = {experiment.total_steps}: set more steps, or"
      " another folder."
    )
  folder = Path(experiment.model_dir)
  path = folder / SUMMARY_FILE
  last = folder / INFILLS_FILE if experiment.infilling else path
  if start < experiment.total_steps or not (path.exists() and last.exists()):
    return None
  print(f"complete: {path} has all {start} steps")
  return json.loads(path.read_text(encoding="utf-8"))


def _report(
  experiment: Experiment, plan: plans.Plan, start: int
) -> RunReport | SilentReport:
  """The record of the run; the first process keeps it for all."""
  if jax.process_index() != 0:
    return SilentReport()
  return RunReport(
    experiment.model_dir,
    total_steps=experiment.total_steps,
    start_step=start,
    boundaries=experiment.boundaries,
    expected_lengths=plan.draws.path_lengths.astype(np.float64),
  )


def make_evaluator(experiment: Experiment) -> Evaluator:
  """Evaluates the models of a run, always on the same batches."""
  return Evaluator(
    model=experiment.model,
    dataset=experiment.eval_dataset,
    num_batches=experiment.num_eval_batches,
    period=experiment.eval_period,
    boundaries=experiment.boundaries,
    partitioner=experiment.partitioner,
  )


def _restore(
  experiment: Experiment,
  checkpoints: CheckpointFolder,
  abstract: TrainState,
  note: Callable[[str], None],
) -> tuple[TrainState, dict[str, Any]]:
  """Own checkpoint, else initial checkpoint, else scratch."""
  step = checkpoints.latest_step()
  if step is not None:
    note(f"going on from the checkpoint of step {step}")
    return checkpoints.restore(abstract)
  state = plans.fresh_state(experiment, abstract)
  params = checkpoints.restore_initial(abstract.params)
  if params is not None:
    note("starting from the parameters of the initial checkpoint")
    state = dataclasses.replace(state, params=params)
  return state, {
    "examples": 0,
    "sums": {},
    "train_seconds": 0.0,
    "lap_seconds": 0.0,
  }


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[int], bool]]:
  """Yields a function that tells whether to stop before a step.

  SIGTERM and SIGINT ask for it; a second signal does what it always does. With
  several processes they agree on the step, by the preemption notice that
  `jax.distributed` watches for.
  """
  if jax.process_count() > 1:
    yield multihost_utils.reached_preemption_sync_point
    return
  names = (signal.SIGTERM, signal.SIGINT)
  before = {name: signal.getsignal(name) for name in names}
  received = threading.Event()

  def restore():
    for name in names:
      signal.signal(name, before[name])

  def handle(number, frame):
    received.set()
    restore()

  for name in names:
    signal.signal(name, handle)
  try:
    yield lambda step: received.is_set()
  finally:
    restore()


@dataclasses.dataclass(kw_only=True)
class _Loop:
  """The parts of a running loop.

  Attributes:
    examples: training examples consumed before the loop starts.
    row_at: step of the last row of training metrics.
  """

  experiment: Experiment
  plan: plans.Plan
  checkpoints: CheckpointFolder
  report: RunReport | SilentReport
  programs: execution.StepPrograms
  grow: Callable[..., TrainState]
  evaluator: Evaluator
  meter: IntervalMeter
  watch: Stopwatch
  examples: int
  row_at: int = 0

  def run(
    self, state: TrainState, start: int, stops: Callable[[int], bool]
  ) -> tuple[TrainState, int]:
    """Runs steps `start`, `start + 1`, ... until the end or a stop.

    Returns:
      The state, and the number of steps it has done.
    """
    partitioner = self.experiment.partitioner
    dataset = self.experiment.train_dataset
    batches = dataset.batches(self.examples // dataset.batch_size)
    self.row_at = start
    for step in range(start, self.plan.total_steps):
      # Evaluation comes before the checkpoint, so that a run that goes on from
      # it need not repeat it; the row of the steps so far comes before both,
      # which wait for the device anyway.
      stopping = stops(step)
      saving = self.checkpoints.due(step) or stopping
      if step > start and (saving or self.evaluator.due(step)):
        self._report_steps(step)
        self._evaluate(state, step)
        if saving:
          self._save(state, step)
        if stopping:
          return state, step
      state = self._grown(state, step)
      batch = partitioner.put_batch(next(batches))
      draws = self.plan.draws.draws(step, self.experiment.execution)
      draws = partitioner.put_replicated(draws)
      program = self._program(step)
      with jax.transfer_guard("disallow"):
        state, metrics = program(state, batch, draws)
      # Only now, with the device busy, the host waits for earlier metrics: the
      # device never waits for the host.
      self._report_steps(step)
      self.meter.add(metrics, int(self.plan.draws.path_lengths[step]))
      self.examples += dataset.batch_size
    self._report_steps(self.plan.total_steps)
    if start < self.plan.total_steps:
      self._save(state, self.plan.total_steps)
    return state, self.plan.total_steps

  def finish(self, state: TrainState) -> dict[str, Any]:
    """Evaluates the full model and shorter paths, and sums the run up."""
    step, always_run = self.plan.total_steps, self.plan.always_run
    full = self.evaluator.full(state.params)
    self._report_evaluation(step, "full", full)
    key = self.experiment.keys()["eval"]
    for lengths in self.plan.evaluated_lengths():
      row = self.evaluator.by_path_length(
        state.params, lengths, always_run, key
      )
      self._report_evaluation(step, sum(lengths.values()), row)
    # A denoiser's targets have sentinels, which the counts of a text lack.
    dataset = self.experiment.train_dataset
    counts = None if dataset.kinds else dataset.unigram_counts
    unigram = None if counts is None else self.evaluator.unigram_loss(counts)
    stages = self.plan.stage_table()
    summary = {
      "steps": step,
      "final_eval_loss": full["loss"],
      "loss_by_kind": self.evaluator.by_kind(state.params),
      "unigram_loss": unigram,
      "flop_factor_nominal": self.plan.flop_factor_nominal,
      "flop_factor_spent": self.plan.flop_factor_spent,
      "train_seconds": self.watch.seconds,
      "parameters": plans.parameter_count(state),
      "num_layers": self.plan.num_layers,
      "boundaries": list(self.experiment.boundaries),
      "stage_path_lengths": [sum(mean.values()) for _, _, mean in stages],
      "flop_factor_whole_step": self.plan.flop_factor_whole_step,
      "flops_spent": self.plan.flops_spent(step),
      "tokens": step * self.plan.batch_tokens,
      "random_seed": self.experiment.random_seed,
      "execution": self.experiment.execution,
      "solved": self.experiment.solved,
      **provenance(),
    }
    self.report.write_summary(summary)
    if self.experiment.infilling:
      self._infill(self.experiment.infilling, state)
    self.report.note(f"finished: see summary.md in {self.experiment.model_dir}")
    return summary

  def _infill(self, infilling: Infilling, state: TrainState) -> None:
    """Shows texts with blanks that the full model has filled."""
    paths = {name: full_path(size) for name, size in self.plan.stacks.items()}
    infills = infilling.run(
      model=cast(Generator, self.experiment.model),
      params=state.params,
      paths=self.experiment.partitioner.put_replicated(paths),
      partitioner=self.experiment.partitioner,
    )
    self.report.write_infills(infills_page(infills))

  def _grown(self, state: TrainState, step: int) -> TrainState:
    """The state with which `step` begins: a stacked model may grow.

    Checkpoints of `step` are from before, so a run that goes on grows again.
    """
    sources, resets = row_moves(self.experiment.growths, step)
    if not sources:
      return state
    self.meter.sums()
    with self.watch.paused():
      put = self.experiment.partitioner.put_replicated
      state = self.grow(state, put(sources), put(resets))
      row = self.evaluator.full(state.params, self._depths(step))
      self._report_evaluation(step, "grown", row)
    return state

  def _depths(self, step: int) -> dict[str, int] | None:
    """Layers that each stack has in a step; None if it does not grow."""
    growths = self.experiment.growths.items()
    return {name: growth.num_layers(step) for name, growth in growths} or None

  def _program(self, step: int) -> Callable[..., Any]:
    if self.programs.ready(step):
      return self.programs.program(step)
    self.meter.sums()  # The clock stops when the device has nothing to do.
    with self.watch.paused():
      return self.programs.program(step)

  def _report_steps(self, step: int) -> None:
    """Writes a row for the steps up to `step`, if one is due and not there."""
    due = step % self.experiment.report_period == 0
    stage_ends = step in self.experiment.boundaries
    if step == self.row_at or not (
      due or stage_ends or step == self.plan.total_steps
    ):
      return
    self._check_finite(step)
    row = self.meter.close()
    steps, seconds = row.pop("steps"), self.watch.lap()
    begun = self.plan.flops_spent(int(step - steps))
    spent = self.plan.flops_spent(step)
    self.report.train(
      step,
      row
      | {
        "learning_rate": float(self.plan.learning_rates[step - 1]),
        "stage": int(self.plan.stages[step - 1]) + 1,
        "flops": spent,
        "tokens": step * self.plan.batch_tokens,
        "tokens_per_second": steps * self.plan.batch_tokens / seconds,
        "step_seconds": seconds / steps,
        "mfu": flops.utilisation((spent - begun) / seconds),
      },
    )
    self.row_at = step

  def _check_finite(self, step: int) -> None:
    """Raises before anything is written that a restart could not undo."""
    sums = self.meter.sums()
    for name in ("loss", "grad_norm"):
      if not np.isfinite(sums.get(name, 0.0)):
        raise FloatingPointError(
          f"{name} is not finite between steps {self.row_at} and {step}. Try a"
          " lower --gin.LEARNING_RATE or more --gin.WARMUP_STEPS; the last"
          f" checkpoint is of step {self.checkpoints.latest_step()}."
        )

  def _evaluate(self, state: TrainState, step: int) -> None:
    if self.evaluator.due(step):
      self.meter.sums()
      with self.watch.paused():
        row = self.evaluator.full(state.params, self._depths(step - 1))
        self._report_evaluation(step, "full", row)

  def _report_evaluation(
    self, step: int, layers: int | str, row: dict[str, float]
  ) -> None:
    if not self.report.has_eval(step, layers):
      self.report.evaluation(step, layers, row)

  def _save(self, state: TrainState, step: int) -> None:
    """Begins a checkpoint."""
    self._check_finite(step)
    with self.watch.paused():
      progress = {
        "examples": self.examples,
        "sums": self.meter.sums(),
        "train_seconds": self.watch.seconds,
        "lap_seconds": self.watch.lap_seconds,
      }
      self.checkpoints.save(state, step, progress)
