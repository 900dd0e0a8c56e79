"""Whether what a run has left is sound, and where the run would resume.

Reads the run's checkpoints, rows and summary, its configuration and all records
of its data. Writes nothing, and needs neither the devices nor the mesh of the
run: `runs/verify.gin` configures one device of the host.
"""

import collections
from collections.abc import Mapping

import jax

from raptr_jax.contracts import StoredDataset
from raptr_jax.reports.run_files import SUMMARY_FILE, read_summary
from raptr_jax.tasks import files
from raptr_jax.tasks.files import AnyPath
from raptr_jax.training import setup
from raptr_jax.training.alignment import continued
from raptr_jax.training.checkpoint import FOLDER
from raptr_jax.training.checkpoint_reading import compare_shapes, shapes
from raptr_jax.training.checkpoint_record import NewerFormatError
from raptr_jax.training.experiment import Experiment
from raptr_jax.training.findings import Findings, one_by_one
from raptr_jax.training.history import History
from raptr_jax.training.plan import make_plan
from raptr_jax.training.run_lock import check_unlocked
from raptr_jax.training.summary import complete_summary
from raptr_jax.training.verified_checkpoints import (
  WholeCheckpoint,
  newest,
  verified_checkpoints,
)
from raptr_jax.training.verified_rows import verify_rows

CONFIGURATION = "configuration"
# What reading a summary raises that is not one.
MALFORMED = (KeyError, TypeError, ValueError)


class VerificationError(OSError):
  """Something in a run's folder, or in its data, is not as it should be."""


def one_device() -> tuple[jax.Device, ...]:
  """A device of this host, on which a run that is not trained has its mesh."""
  return tuple(jax.local_devices(backend="cpu")[:1])


def verify(experiment: Experiment, config: str = "") -> None:
  """Prints a line for each thing that it checks, and one for the run.

  Args:
    experiment: the run.
    config: text that describes it, as for `loop.train`.

  Raises:
    BlockingIOError: if a run is writing to the folder.
    FileNotFoundError: if there is no such folder.
    VerificationError: if something is wrong, after all has been checked.
  """
  folder = files.path("MODEL_DIR", experiment.model_dir)
  if not folder.is_dir():
    raise FileNotFoundError(
      f"MODEL_DIR = '{experiment.model_dir}' does not exist, expected the"
      " folder of a run: set --gin.MODEL_DIR."
    )
  check_unlocked(experiment.model_dir)
  findings = Findings()
  found = verified_checkpoints(files.absolute(folder) / FOLDER, findings)
  checkpoint = newest(found)
  start = checkpoint.step if checkpoint else 0
  is_open = _opens(experiment, findings)
  history = None
  if is_open:
    history = _history(experiment, config, checkpoint, findings)
  complete = complete_summary(experiment, start) is not None
  verify_rows(experiment, history, start, findings, complete=complete)
  _verify_summary(experiment, folder / SUMMARY_FILE, start, findings)
  if is_open:
    _verify_data(experiment, findings)
  verdict = _verdict(experiment, found, findings, complete=complete)
  print(f"MODEL_DIR = '{experiment.model_dir}' {verdict}", flush=True)
  if findings.faulty:
    raise VerificationError(
      f"MODEL_DIR = '{experiment.model_dir}' has something wrong with"
      f" {', '.join(findings.faulty)}: each has a line above that says what."
    )


def _opens(experiment: Experiment, findings: Findings) -> bool:
  """Whether data and configuration belong together."""
  try:
    experiment.open()
  except (OSError, ValueError) as error:
    findings.fault("data", str(error), blocks=True)
    return False
  return True


def _history(
  experiment: Experiment,
  config: str,
  checkpoint: WholeCheckpoint | None,
  findings: Findings,
) -> History | None:
  """The history of a run; None if its configuration is of another run."""
  try:
    found = continued(
      experiment,
      make_plan(experiment),
      config,
      start=checkpoint.step if checkpoint else 0,
      progress=checkpoint.record.progress if checkpoint else {},
      accept_changes=False,
    )
    if checkpoint is not None:
      wanted = shapes(setup.abstract_state(experiment))
      place = f"MODEL_DIR = '{experiment.model_dir}'"
      compare_shapes(checkpoint.shapes, wanted, place)
  except FileExistsError as error:
    findings.fault(CONFIGURATION, str(error), blocks=True)
    return None
  if checkpoint is not None:
    text = f"ok, it is that of the {checkpoint.step:,} steps done"
    findings.tell(CONFIGURATION, text)
  return found


def _verify_summary(
  experiment: Experiment, path: AnyPath, start: int, findings: Findings
) -> None:
  """Checks that a summary can be read, and is of steps that were done."""
  if not path.is_file():
    findings.tell(path.name, "none, since the run has not ended")
    return
  try:
    steps = int(read_summary(experiment.model_dir)["steps"])
  except (OSError, *MALFORMED):
    findings.fault(path.name, "damaged; the command of the run writes it again")
    return
  if steps == start:
    findings.tell(path.name, f"ok, of {steps:,} steps")
  elif steps < start < experiment.total_steps:
    findings.tell(
      path.name, f"ok, of {steps:,} steps; the run has gone on since"
    )
  else:
    findings.fault(
      path.name,
      f"it is of {steps} steps, but the latest whole checkpoint is of {start};"
      " the command of the run writes it again",
    )


def _verify_data(experiment: Experiment, findings: Findings) -> None:
  """Reads all files of the data once."""
  checked: dict[AnyPath, StoredDataset] = {}
  for name in ("train_dataset", "eval_dataset"):
    dataset = getattr(experiment, name)
    if isinstance(dataset, StoredDataset):
      checked |= dict.fromkeys(dataset.files(), dataset)
    else:
      kind = type(dataset).__name__
      text = f"not checked: a {kind} has no prepared records"
      findings.tell(f"data ({name})", text)
  whole: collections.Counter[AnyPath] = collections.Counter()
  for path in one_by_one(list(checked), "file"):
    try:
      checked[path].check_file(path)
    except OSError as error:
      thing = f"{path.parent.name}/{path.name}"
      findings.fault(thing, str(error), blocks=True)
    else:
      whole[path.parent] += 1
  for folder, count in whole.items():
    findings.tell(str(folder), f"ok, files of records: {count:,}")


def _verdict(
  experiment: Experiment,
  found: Mapping[int, WholeCheckpoint | OSError],
  findings: Findings,
  *,
  complete: bool,
) -> str:
  """What the run can do next."""
  checkpoint = newest(found)
  if checkpoint is None:
    text = "nothing to resume from: "
    if not found:
      return text + "it has no checkpoint"
    if isinstance(found[max(found)], NewerFormatError):
      return text + f"a newer version has written that of step {max(found)}"
    return text + f"the checkpoints of steps {sorted(found)} are damaged"
  if findings.blocking:
    mended = ", ".join(findings.blocking)
    return f"can be resumed from step {checkpoint.step} once mended: {mended}"
  if complete:
    return f"is complete, with all {checkpoint.step} steps"
  return (
    f"can be resumed from step {checkpoint.step} of {experiment.total_steps}"
  )
