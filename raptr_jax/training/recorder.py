"""What a run measures of itself: metrics of its steps, and time."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import TypeAlias

import jax

from raptr_jax.contracts import Metrics
from raptr_jax.models import flops
from raptr_jax.reports.report import RunReport
from raptr_jax.reports.silent_report import SilentReport
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.history import History
from raptr_jax.training.loss_watch import LossLimits
from raptr_jax.training.metrics import STEPS, IntervalMeter, Stopwatch
from raptr_jax.training.plan import Plan
from raptr_jax.training.state import Progress
from raptr_jax.training.token_counts import padding

Report: TypeAlias = RunReport | SilentReport
# Steps after the last checkpoint of a process that died.
REPEATED = "repeated steps"


def entry_due(
  step: int, *, period: int, boundaries: Collection[int], total_steps: int
) -> bool:
  """Whether a run writes an entry of training after `step` steps.

  Args:
    step: steps done.
    period: `Experiment.report_period`.
    boundaries: first steps of all stages but the first.
    total_steps: of the run.
  """
  return step % period == 0 or step in boundaries or step == total_steps


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
    history: of the run.
    report: receives the entries.
    last_entry: step of the last entry.
    meter: sums since then.
    stopwatch: seconds of the run, by what it does.
    limits: of the loss.
    last_added: steps that the device has been given.
    tokens: read up to the last entry, without padding.
    skipped: steps up to there that changed nothing.
  """

  history: History
  report: Report
  last_entry: int
  meter: IntervalMeter
  stopwatch: Stopwatch
  limits: LossLimits
  last_added: int
  tokens: float
  skipped: int

  @classmethod
  def resume(
    cls,
    history: History,
    report: Report,
    *,
    start: int,
    progress: Progress,
    since: float,
  ) -> "Recorder":
    """A recorder that continues at step `start` from `progress`.

    Args:
      history: of the run.
      report: receives the entries.
      start: step of the checkpoint.
      progress: of that checkpoint.
      since: when this process began to start up, by `time.monotonic()`.
    """
    watch = history.experiment.loss_watch
    recorder = cls(
      history=history,
      report=report,
      last_entry=start,
      meter=IntervalMeter(
        progress.get("sums", {}), progress.get("skipped_in_a_row", 0)
      ),
      stopwatch=Stopwatch(
        _seconds(report.seconds, progress.get("train_seconds", 0.0)),
        progress.get("lap_seconds", 0.0),
        activity="starting up",
        since=since,
      ),
      limits=LossLimits(watch, start, progress.get("losses", [])),
      last_added=start,
      tokens=progress.get("tokens", 0.0),
      skipped=progress.get("skipped", 0),
    )
    report.follow(recorder.steps_done)
    return recorder

  @property
  def plan(self) -> Plan:
    """The run's plan."""
    return self.history.plan

  def steps_done(self) -> int:
    """Steps that the device has finished; asks without waiting."""
    return self.last_added - self.meter.unfinished()

  def progress(self, step: int) -> Progress:
    """What a run needs to go on at a step; waits for the device.

    Raises:
      FloatingPointError: see `check_skipped`.
    """
    self.check_skipped(step)
    seconds = self.stopwatch.read()
    self.report.write_seconds(seconds)
    return {
      "facts": self.history.facts(step),
      "parts": list(self.history.parts(step)),
      "sums": self.meter.sums(),
      "skipped": self.skipped,
      "skipped_in_a_row": self.meter.skipped_in_a_row,
      "losses": self.limits.losses(step),
      "tokens": self.tokens,
      "train_seconds": seconds[STEPS],
      "lap_seconds": self.stopwatch.lap_seconds,
    }

  def add(self, step: int, metrics: Metrics) -> None:
    """Takes the metrics of a step without waiting for them."""
    self.meter.add(metrics, int(self.plan.draws.path_lengths[step]))
    self.limits.add(step, metrics)
    self.last_added = step + 1

  def loss_limit(self, step: int) -> float:
    """The loss above which a step changes nothing."""
    begins = (0, *self.plan.boundaries)
    begin = begins[self.plan.stage_index(step)]
    return self.limits.of(step, max(begin, self.history.first_step))

  @contextlib.contextmanager
  def paused(
    self, activity: str, what: str = "", *, in_log: bool = False
  ) -> Iterator[None]:
    """Excludes this context from the training time.

    Args:
      activity: what the run does instead of training, shown meanwhile.
      what: with what it does so.
      in_log: whether a log gets a line about it, too.
    """
    self.meter.sums()  # The clock stops when the device is idle.
    with (
      self.stopwatch.paused(activity),
      self.report.activity(f"{activity} {what}".strip(), in_log=in_log),
    ):
      yield

  def write_steps(self, step: int) -> None:
    """Writes an entry for the steps up to `step`, if it is due and missing.

    Raises:
      FloatingPointError: see `check_skipped`.
    """
    due = entry_due(
      step,
      period=self.history.experiment.report_period,
      boundaries=self.plan.boundaries,
      total_steps=self.plan.total_steps,
    )
    if step == self.last_entry or not due:
      return
    self.check_skipped(step)
    means = self.meter.close()
    steps, seconds = means.pop("steps"), self.stopwatch.lap()
    tokens, spiked = means.pop("tokens"), means.pop("spiked")
    skipped = means.pop("skipped")
    self.tokens += tokens
    self.skipped += int(skipped)
    for count, reason in (
      (skipped - spiked, "loss or gradient was not finite"),
      (spiked, "loss was a spike"),
    ):
      if count:
        self.report.note(
          f"warning: {count:.0f} of the {steps:.0f} steps up to {step} changed"
          f" nothing, since their {reason}"
        )
    begun = self.history.flops_spent(int(step - steps))
    spent = self.history.flops_spent(step)
    entry = {
      "learning_rate": float(self.plan.learning_rates.at(step - 1)),
      "stage": self.plan.stage_index(step - 1) + 1,
      "flops": spent,
      "tokens": self.tokens,
      "skipped_steps": self.skipped,
      "tokens_per_second": tokens / seconds,
      "padding": padding(tokens, steps * self.plan.batch_positions),
      "step_seconds": seconds / steps,
      "mfu": flops.utilisation((spent - begun) / seconds),
    }
    self.report.write_seconds(self.stopwatch.seconds)
    self.report.train(step, means | entry)
    self.last_entry = step

  def write_evaluation(
    self, step: int, layers: int | str, losses: Mapping[str, float]
  ) -> None:
    """Writes an evaluation after `step` steps, unless the report has it."""
    if not self.report.has_eval(step, layers):
      self.report.evaluation(step, layers, losses)

  def check_skipped(self, step: int) -> None:
    """Prevents checkpoints and entries of a run that has diverged.

    Raises:
      FloatingPointError: if too many steps in a row changed nothing, or the
        loss of one was a spike that is to end the run.
    """
    self.meter.sums()
    watch = self.history.experiment.loss_watch
    most = self.history.experiment.max_skipped_steps
    if self.meter.has_spiked and watch is not None and watch.stop:
      raise FloatingPointError(
        f"the loss of a step up to {step} was a spike, and changed nothing. Set"
        " loss_watch.LossWatch.stop = False, and the run leaves such steps out;"
        " the checkpoints are unaffected, and it resumes from the latest."
      )
    if self.meter.most_in_a_row < most:
      return
    what = "a loss or a gradient that was not finite"
    if self.meter.has_spiked:
      what += ", or a loss that was a spike (loss_watch.LossWatch)"
    raise FloatingPointError(
      f"{self.meter.most_in_a_row} steps in a row, up to step {step}, had"
      f" {what}, and changed nothing"
      f" (experiment.Experiment.max_skipped_steps = {most}). Try a lower"
      " --gin.LEARNING_RATE or more --gin.WARMUP_STEPS with --accept_changes;"
      " the checkpoints are unaffected, and the run resumes from the latest."
    )


def _seconds(earlier: Mapping[str, float], steps: float) -> dict[str, float]:
  """What a run has spent its seconds on, for one that goes on.

  Args:
    earlier: seconds of earlier processes by activity, as far as they told.
    steps: those spent on the steps up to the checkpoint.

  Returns:
    The same, with those of later steps, which will be repeated, by themselves.
  """
  lost = max(earlier.get(STEPS, 0.0) - steps, 0.0)
  repeated = earlier.get(REPEATED, 0.0) + lost
  more = {REPEATED: repeated} if repeated else {}
  return {**earlier, STEPS: steps, **more}
