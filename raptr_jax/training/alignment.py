"""Whether a run may go on in its folder: it does if it is still the same run.

Nothing is written before that is clear. Periods, the mesh, the execution and
what else does not change the steps may change; so may the number of steps, if
draws and learning rates of the steps done stay what they were.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch

from raptr_jax.configuration.comparison import Change, changes
from raptr_jax.reports.run_files import CONFIG_FILE
from raptr_jax.tasks import files
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.history import History
from raptr_jax.training.plan import Plan
from raptr_jax.training.state import Progress

# Parameters that may change, as patterns. They do not change the steps, up to
# the rounding of other programs.
FREE = (
  "experiment.Experiment.model_dir",
  "experiment.Experiment.eval_period",
  "experiment.Experiment.report_period",
  "experiment.Experiment.execution",
  "experiment.Experiment.num_microbatches",
  "experiment.Experiment.at_end",
  "experiment.Experiment.trackers",
  "experiment.Experiment.profile_steps",
  "checkpoint.Checkpointer.period",
  "checkpoint.Checkpointer.keep",
  "partitioning.Partitioner.*",
  "trackers.*",
  "infill.*",
  "fine_tuning.FineTuning.model_dir",
  "fine_tuning.FineTuning.learning_rates",
  "fine_tuning.FineTuning.batch_sizes",
  "fine_tuning.FineTuning.num_seeds",
  "*.attention_kernel",
  "*.remat",
  "*.data_dir",
  "*.workers",
  "*.max_skipped_steps",
  "loss_watch.LossWatch.stop",
)
FREE_MACROS = ("COMPILATION_CACHE_DIR",)
STEPS = "experiment.Experiment.total_steps"  # Draws and rates decide.


def continued(
  experiment: Experiment,
  plan: Plan,
  config: str,
  *,
  start: int,
  progress: Progress,
  accept_changes: bool,
) -> History:
  """The history of a run that goes on at `start`, if it is the same run.

  Args:
    experiment: the run as it is configured now.
    plan: its plan.
    config: text that describes it; "" is compared with nothing.
    start: step of its checkpoint; 0 for none.
    progress: of that checkpoint.
    accept_changes: whether to begin a new part of the run if it has changed.

  Raises:
    FileExistsError: it has changed; names each setting with both values.
  """
  history = History(experiment, plan)
  if not start:
    return history
  if start > experiment.total_steps:
    raise FileExistsError(
      f"MODEL_DIR = '{experiment.model_dir}' has a checkpoint of step {start},"
      f" past TRAIN_STEPS = {experiment.total_steps}: set more steps, or"
      " another folder."
    )
  parts = progress.get("parts", [])
  if parts:
    history.earlier = tuple(parts[:-1])
    history.first_step = parts[-1]["first_step"]
    history.changes = tuple(parts[-1]["changes"])
  found = _differences(
    _configured(experiment, config),
    progress.get("facts", {}),
    history.facts(start),
  )
  if not found:
    return history
  if accept_changes:
    return History(experiment, plan, tuple(parts), start, tuple(found))
  raise FileExistsError(
    f"MODEL_DIR = '{experiment.model_dir}' is at step {start} of another run:"
    f" {'; '.join(found)}. Undo that, or set another --gin.MODEL_DIR; or add"
    " --accept_changes, and the summary will tell of a run in parts."
  )


def check_finished(experiment: Experiment, config: str) -> None:
  """Checks that what has been done in a folder is this run.

  Raises:
    FileExistsError: it is another one; names each setting with both values.
  """
  found = _configured(experiment, config)
  if found:
    told = "; ".join(f"{c.name} = {c.old} there, {c.new} here" for c in found)
    raise FileExistsError(
      f"MODEL_DIR = '{experiment.model_dir}' has another run: {told}. Undo that,"
      " or set another --gin.MODEL_DIR."
    )


def _configured(experiment: Experiment, config: str) -> list[Change]:
  """Settings that are others than in the run's folder, and may not be."""
  path = files.path("MODEL_DIR", experiment.model_dir) / CONFIG_FILE
  if not config or not path.is_file():
    return []
  found = changes(path.read_text(encoding="utf-8"), config)
  return [change for change in found if not _is_free(change)]


def _is_free(change: Change) -> bool:
  """Whether a setting may change."""
  if not change.parameters:
    return change.name in FREE_MACROS
  return all(
    any(fnmatch(name.rpartition("/")[2], pattern) for pattern in FREE)
    for name in change.parameters
  )


def _differences(
  changes: Sequence[Change],
  before: Mapping[str, str],
  now: Mapping[str, str],
) -> list[str]:
  """What has changed, in words; empty if it is nothing that matters."""
  facts = [
    name for name, value in before.items() if now.get(name, value) != value
  ]
  lengths = [change for change in changes if STEPS in change.parameters]
  others = [change for change in changes if change not in lengths]
  if not facts and before and not others:
    return []  # More steps, which leave those done as they were.
  found = [
    f"{change.name} = {change.old} there, {change.new} here"
    for change in (*lengths, *others)
  ]
  names = {change.name for change in changes}
  for name in facts:
    if name.startswith("the "):
      found.append(f"{name} would not be the same")
    elif name not in names:
      found.append(f"{name} = {before[name]} there, {now[name]} here")
  return found
