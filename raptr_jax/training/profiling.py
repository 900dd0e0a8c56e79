"""A trace of a few steps: where their time goes, for XProf to show."""

import contextlib
from collections.abc import Iterator

import jax

from raptr_jax.tasks import files
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.recorder import Recorder

FOLDER = "profile"  # In the folder of the run.


def traced(
  start: int, experiment: Experiment, recorder: Recorder
) -> Iterator[int]:
  """Yields the steps of a run; traces those of `experiment.profile_steps`.

  In the trace a step has a name such as "stage 2, 8 layers", and its number.
  The device has finished all earlier steps when the trace begins, and those of
  the trace when it ends.

  Args:
    start: first step that this process runs.
    experiment: the run.
    recorder: says what a step trains, and does not time the trace's own work.
  """
  chosen = range(*experiment.profile_steps or (0, 0))
  if chosen and chosen.stop <= start:
    recorder.report.note(
      f"no trace: the run resumes at step {start}, after"
      f" --profile_steps={chosen.start}:{chosen.stop}"
    )
  plan = recorder.plan
  with contextlib.ExitStack() as trace:
    for step in range(start, experiment.total_steps):
      if step in chosen and step == max(chosen.start, start):
        folder = files.path("MODEL_DIR", experiment.model_dir) / FOLDER
        trace.enter_context(_trace(folder, recorder))
      if step == chosen.stop:
        trace.close()
      if step not in chosen:
        yield step
        continue
      stage, length = plan.stage_index(step), plan.draws.path_lengths[step]
      name = f"stage {stage + 1}, {length} layers"
      with jax.profiler.StepTraceAnnotation(name, step_num=step):
        yield step


@contextlib.contextmanager
def _trace(folder: files.AnyPath, recorder: Recorder) -> Iterator[None]:
  """Records what happens inside of this context."""
  with contextlib.ExitStack() as stack:
    with recorder.paused("tracing"):
      growing = stack.enter_context(files.growing(folder))
      jax.profiler.start_trace(growing.path)
    try:
      yield
    finally:
      with recorder.paused("tracing"):
        jax.profiler.stop_trace()
        growing.publish()
      recorder.report.note(f"wrote a trace to {folder}")
