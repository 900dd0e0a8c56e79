"""What a run measures of itself: metrics of its steps, and time."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import jax
import numpy as np

from raptr_jax.contracts import Metrics
from raptr_jax.models import flops
from raptr_jax.reports.report import RunReport, SilentReport
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.metrics import IntervalMeter, Stopwatch
from raptr_jax.training.plan import Plan
from raptr_jax.training.state import Progress
from raptr_jax.training.token_counts import padding

Report: TypeAlias = RunReport | SilentReport


def open_report(experiment: Experiment, plan: Plan, start: int) -> Report:
  """The report of a run from step `start` on; the first process writes it."""
  if jax.process_index() != 0:
    return SilentReport()
  return RunReport(
    experiment.model_dir,
    total_steps=plan.total_steps,
    start_step=start,
    boundaries=plan.boundaries,
    path_lengths=plan.draws.path_lengths,
  )


@dataclasses.dataclass(kw_only=True)
class Recorder:
  """Turns the metrics of steps into entries of the report.

  Attributes:
    plan: of the run.
    report: receives the entries.
    period: steps between two entries of training metrics.
    last_entry: step of the last entry.
    meter: sums since then.
    stopwatch: seconds of training, without other work.
    last_added: steps that the device has been given.
    tokens: read up to the last entry, without padding.
  """

  plan: Plan
  report: Report
  period: int
  last_entry: int
  meter: IntervalMeter
  stopwatch: Stopwatch
  last_added: int
  tokens: float

  @classmethod
  def resume(
    cls,
    plan: Plan,
    report: Report,
    *,
    period: int,
    start: int,
    progress: Progress,
  ) -> "Recorder":
    """A recorder that continues at step `start` from `progress`."""
    recorder = cls(
      plan=plan,
      report=report,
      period=period,
      last_entry=start,
      meter=IntervalMeter(progress.get("sums", {})),
      stopwatch=Stopwatch(
        progress.get("train_seconds", 0.0), progress.get("lap_seconds", 0.0)
      ),
      last_added=start,
      tokens=progress.get("tokens", 0.0),
    )
    report.follow(recorder.steps_done)
    return recorder

  def steps_done(self) -> int:
    """Steps that the device has finished; asks without waiting."""
    return self.last_added - self.meter.unfinished()

  def progress(self) -> Progress:
    """What `resume` needs; waits for the device."""
    return {
      "sums": self.meter.sums(),
      "tokens": self.tokens,
      "train_seconds": self.stopwatch.seconds,
      "lap_seconds": self.stopwatch.lap_seconds,
    }

  def add(self, step: int, metrics: Metrics) -> None:
    """Takes the metrics of a step without waiting for them."""
    self.meter.add(metrics, int(self.plan.draws.path_lengths[step]))
    self.last_added = step + 1

  @contextlib.contextmanager
  def paused(self, activity: str, *, in_log: bool = False) -> Iterator[None]:
    """Excludes this context from the training time.

    Args:
      activity: what the run does instead of training, shown meanwhile.
      in_log: whether a log gets a line about it, too.
    """
    self.meter.sums()  # The clock stops when the device is idle.
    with (
      self.stopwatch.paused(),
      self.report.activity(activity, in_log=in_log),
    ):
      yield

  def write_steps(self, step: int) -> None:
    """Writes an entry for the steps up to `step`, if it is due and missing.

    Raises:
      FloatingPointError: if a loss or a gradient among them is not finite.
    """
    due = step % self.period == 0 or step in (
      *self.plan.boundaries,
      self.plan.total_steps,
    )
    if step == self.last_entry or not due:
      return
    self.check_finite(step)
    means = self.meter.close()
    steps, seconds = means.pop("steps"), self.stopwatch.lap()
    tokens = means.pop("tokens")
    self.tokens += tokens
    begun = self.plan.flops_spent(int(step - steps))
    spent = self.plan.flops_spent(step)
    entry = {
      "learning_rate": float(self.plan.learning_rates.at(step - 1)),
      "stage": self.plan.stage_index(step - 1) + 1,
      "flops": spent,
      "tokens": self.tokens,
      "tokens_per_second": tokens / seconds,
      "padding": padding(tokens, steps * self.plan.batch_positions),
      "step_seconds": seconds / steps,
      "mfu": flops.utilisation((spent - begun) / seconds),
    }
    self.report.train(step, means | entry)
    self.last_entry = step

  def write_evaluation(
    self, step: int, layers: int | str, losses: Mapping[str, float]
  ) -> None:
    """Writes an evaluation after `step` steps, unless the report has it."""
    if not self.report.has_eval(step, layers):
      self.report.evaluation(step, layers, losses)

  def check_finite(self, step: int) -> None:
    """Prevents a checkpoint or an entry of a run that has diverged.

    Raises:
      FloatingPointError: if a loss or a gradient since the last entry is not
        finite.
    """
    sums = self.meter.sums()
    for name in ("loss", "grad_norm"):
      if not np.isfinite(sums.get(name, 0.0)):
        raise FloatingPointError(
          f"{name} is not finite between steps {self.last_entry} and {step}."
          " Try a lower --gin.LEARNING_RATE or more --gin.WARMUP_STEPS; the"
          " earlier checkpoints are unaffected, and the run resumes from the"
          " latest."
        )
