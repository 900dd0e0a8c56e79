"""The training loop: what happens in which order, and why."""

import contextlib
import dataclasses
import time

from jax.stages import Wrapped

from raptr_jax.methods.growth import row_moves
from raptr_jax.training import data_places, setup
from raptr_jax.training.ahead import compile_ahead
from raptr_jax.training.alignment import continued
from raptr_jax.training.checkpoint import CheckpointFolder
from raptr_jax.training.checkpoint_reading import DamagedCheckpoint
from raptr_jax.training.compiled_steps import CompiledSteps
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.held_out import HeldOutEvaluator, held_out_evaluator
from raptr_jax.training.history import History
from raptr_jax.training.metrics import STEPS
from raptr_jax.training.plan import make_plan
from raptr_jax.training.profiling import traced
from raptr_jax.training.recorder import Recorder, Report, open_report
from raptr_jax.training.run_lock import alone_in
from raptr_jax.training.signals import Stopped, StopRequest, stop_signals
from raptr_jax.training.state import Progress, TrainState
from raptr_jax.training.summary import Summary, finish, finished_summary


def train(
  experiment: Experiment,
  config: str = "",
  *,
  accept_changes: bool = False,
  since: float | None = None,
) -> Summary:
  """Trains to the end, from the latest checkpoint, and returns the summary.

  On a CPU, a run that was stopped and started again ends bit-identically to one
  that never stopped.

  Args:
    experiment: the run.
    config: text that describes it, kept in its folder.
    accept_changes: whether to go on where `experiment` or `config` has changed,
      see `alignment.py`.
    since: when the program began to start up, as `time.monotonic()` tells it;
      None for now.

  Raises:
    BlockingIOError: if another run is writing to the folder.
    FileExistsError: if the folder has another run, or a longer one.
    FileNotFoundError: if the configured initial checkpoint does not exist.
    FloatingPointError: if too many steps in a row are not finite, or a loss is
      a spike that is to end the run.
    OSError: if all checkpoints are damaged, or one cannot be saved.
    Stopped: after SIGTERM or SIGINT, with a checkpoint saved.
  """
  since = time.monotonic() if since is None else since
  experiment.open()
  with (
    alone_in(experiment.model_dir),
    experiment.checkpointer.open(experiment.model_dir) as checkpoints,
  ):
    while True:
      start, progress = checkpoints.newest()
      plan = make_plan(experiment)
      history = continued(
        experiment,
        plan,
        config,
        start=start,
        progress=progress,
        accept_changes=accept_changes,
      )
      summary = finished_summary(experiment, config, start)
      if summary is not None:
        return summary
      try:
        return _train(
          experiment, config, checkpoints, history, start=start, since=since
        )
      except DamagedCheckpoint as damaged:
        checkpoints.pass_over(damaged)


def _train(
  experiment: Experiment,
  config: str,
  checkpoints: CheckpointFolder,
  history: History,
  *,
  start: int,
  since: float,
) -> Summary:
  """Trains to the end from step `start`."""
  with contextlib.ExitStack() as stack:
    report = stack.enter_context(open_report(experiment, history.plan, start))
    loop, state = _assemble(
      experiment,
      history,
      report,
      start=start,
      since=since,
      checkpoints=checkpoints,
      stack=stack,
    )
    # Only now is it clear that the state fits.
    report.begin(experiment.trackers, config)
    with stop_signals(report.announce) as stop:
      state, step = loop.run(state, start, stop)
    if stop.signal_number is not None:
      raise Stopped(step, stop.signal_number)
    return finish(experiment, loop.evaluator, loop.recorder, state)


def _assemble(
  experiment: Experiment,
  history: History,
  report: Report,
  *,
  start: int,
  since: float,
  checkpoints: CheckpointFolder,
  stack: contextlib.ExitStack,
) -> tuple["_Loop", TrainState]:
  """The loop of a run, and the state that it starts from."""
  evaluator = held_out_evaluator(experiment)
  abstract = setup.abstract_state(experiment)
  grow = setup.jitted_grow(abstract)
  compiled = compile_ahead(
    experiment,
    history.plan,
    abstract=abstract,
    evaluator=evaluator,
    grow=grow,
    start=start,
  )
  stack.enter_context(compiled)
  # While the first step is compiled, the state is made or read.
  state, progress = setup.initial_state(
    experiment, checkpoints, abstract, report.note
  )
  recorder = Recorder.resume(
    history,
    report,
    start=start,
    progress=progress,
    since=since,
  )
  loop = _Loop(
    experiment=experiment,
    checkpoints=checkpoints,
    evaluator=evaluator,
    recorder=recorder,
    compiled=compiled,
    grow=grow,
    progress=progress,
  )
  return loop, state


@dataclasses.dataclass(kw_only=True)
class _Loop:
  """The parts of a running loop.

  Attributes:
    experiment: the run.
    checkpoints: where its state is saved.
    evaluator: of the model on held-out batches.
    recorder: of metrics and seconds.
    compiled: the programs of its steps.
    grow: see `setup.jitted_grow`.
    progress: of the checkpoint that the run starts from.
  """

  experiment: Experiment
  checkpoints: CheckpointFolder
  evaluator: HeldOutEvaluator
  recorder: Recorder
  compiled: CompiledSteps
  grow: Wrapped
  progress: Progress

  def run(
    self, state: TrainState, start: int, stop: StopRequest
  ) -> tuple[TrainState, int]:
    """Runs from step `start` to the end or a stop; returns state and step."""
    total_steps = self.experiment.total_steps
    dataset = self.experiment.train_dataset
    batches = data_places.begin(dataset, self.progress)
    examples = self.progress.get("examples", 0)
    self.recorder.stopwatch.turn_to(STEPS)
    for step in traced(start, self.experiment, self.recorder):
      # The entry of the steps so far comes first, since evaluation and
      # checkpoint wait for the device anyway. Evaluation comes before the
      # checkpoint, so that a run that resumes from it need not repeat it.
      stopping = stop.before(step)
      saving = self.checkpoints.due(step) or stopping
      if step > start and (saving or self.evaluator.due(step)):
        self.recorder.write_steps(step)
        if self.evaluator.due(step):
          self._evaluate(state, step, "full", depth_of_step=step - 1)
        if saving:
          self._save(
            state, step, data_places.reached(dataset, batches, examples)
          )
        if stopping:
          self.checkpoints.wait()
          return state, step
      state = self._grown(state, step)
      batch = self.experiment.partitioner.put_batch(next(batches))
      if not self.compiled.ready(step):
        length = self.recorder.plan.draws.path_lengths[step]
        what = f"a step of {length} layers"
        with self.recorder.paused("compiling", what, in_log=True):
          self.compiled.program(step)
      limit = self.recorder.loss_limit(step)
      state, metrics = self.compiled(step, state, batch, limit)
      # The host waits for earlier metrics only now that the device is busy, so
      # that the device never waits for the host.
      self.recorder.write_steps(step)
      self.recorder.add(step, metrics)
      examples += dataset.batch_size
    self.recorder.write_steps(total_steps)
    if start < total_steps:
      place = data_places.reached(dataset, batches, examples)
      self._save(state, total_steps, place)
    return state, total_steps

  def _grown(self, state: TrainState, step: int) -> TrainState:
    """The state with which `step` begins; a stacked model may grow.

    Checkpoints of `step` hold the state before it: a resumed run grows again.
    """
    sources, resets = row_moves(self.experiment.growths, step)
    if not sources:
      return state
    put = self.experiment.partitioner.put_replicated
    with self.recorder.paused("growing"):
      state = self.grow(state, put(sources), put(resets))
    self._evaluate(state, step, "grown", depth_of_step=step)
    return state

  def _evaluate(
    self, state: TrainState, step: int, layers: str, *, depth_of_step: int
  ) -> None:
    """Evaluates all layers that the model has in step `depth_of_step`."""
    with self.recorder.paused("evaluating"):
      depths = self.experiment.depths(depth_of_step)
      losses = self.evaluator.full(state.params, depths)
      if layers == "full":
        losses |= self.experiment.scores(step, state.params)
      self.recorder.write_evaluation(step, layers, losses)

  def _save(self, state: TrainState, step: int, data: Progress) -> None:
    """Begins to save a checkpoint, with the place in the data."""
    with self.recorder.paused("saving"):
      progress = self.recorder.progress(step) | data
      self.recorder.report.publish()
      self.checkpoints.save(state, step, progress)
