"""Checkpoints of a run: its state, and its progress through the data.

A run starts from the first of these that exists:
  1. the latest checkpoint in its own folder that is not damaged;
  2. the parameters of an initial checkpoint, with a fresh optimizer at step 0;
  3. fresh parameters.

A checkpoint is damaged if it cannot be read, or if its arrays or its record are
not what was saved. It stays until the run saves its next one.
"""

import contextlib
import dataclasses
import functools
import os

import jax
import orbax.checkpoint as ocp

from raptr_jax.contracts import Params
from raptr_jax.tasks import files
from raptr_jax.tasks.files import AnyPath
from raptr_jax.training.checkpoint_reading import (
  RECORD,
  STATE,
  DamagedCheckpoint,
  attempt,
  check_digests,
  check_shapes,
  record_of,
)
from raptr_jax.training.checkpoint_record import Record
from raptr_jax.training.checkpoint_storage import (
  readable,
  saved_steps,
  storage,
)
from raptr_jax.training.checkpoint_writing import (
  LOG,
  SaveError,
  check_room,
  drop_errors_of_orbax,
  saving,
  writer,
)
from raptr_jax.training.digests import digests
from raptr_jax.training.state import Progress, TrainState

FOLDER = "checkpoints"
MODEL_DIR = "MODEL_DIR"
INITIAL = "checkpoint.Checkpointer.initial_checkpoint"


@dataclasses.dataclass(frozen=True)
class Checkpointer:
  """When to save checkpoints, how many to keep, and what to start from.

  Attributes:
    period: steps between two saves; the last step is always saved.
    keep: number of latest checkpoints to keep.
    initial_checkpoint: model directory of another run to take parameters from.
    fresh_parts: names of parts of the parameters, such as `label_head`, that
      are not taken from there. If there are any, parts of the other run that
      this model lacks are left out.
  """

  period: int = 1000
  keep: int = 3
  initial_checkpoint: str | None = None
  fresh_parts: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    if self.period < 1 or self.keep < 1:
      raise ValueError(
        f"checkpoint.Checkpointer.period = {self.period} (CHECKPOINT_PERIOD)"
        f" and checkpoint.Checkpointer.keep = {self.keep}, expected at least 1."
      )

  def next_due(self, step: int) -> int:
    """The first step after `step` at which to save, but for the last one."""
    return (step // self.period + 1) * self.period

  def open(self, model_dir: str | os.PathLike[str]) -> "CheckpointFolder":
    """The checkpoints of the run in this folder."""
    return CheckpointFolder(self, model_dir)


class CheckpointFolder:
  """The checkpoints of one run; a context manager that waits for saves."""

  def __init__(self, config: Checkpointer, model_dir: str | os.PathLike[str]):
    self._config, self._folder = config, _folder(MODEL_DIR, model_dir)
    self._place = _place(MODEL_DIR, self._folder)
    self._storage = storage(self._folder, config.keep)
    self._damaged: dict[int, str] = {}  # Steps, and what is wrong with them.
    self._manager = writer(self._storage.path, config.keep)
    self._saving: int | None = None  # Step of the last save.

  def __enter__(self) -> "CheckpointFolder":
    LOG.addFilter(drop_errors_of_orbax)
    return self

  def __exit__(
    self, error_type: type[BaseException] | None, *error: object
  ) -> None:
    """Waits for the last save.

    Raises:
      SaveError: if it has failed, and nothing else has.
    """
    later = contextlib.suppress(*([SaveError] if error_type else []))
    try:
      with later, saving(self._place, self._saving), self._storage:
        self._manager.close()
    finally:
      LOG.removeFilter(drop_errors_of_orbax)

  def wait(self) -> None:
    """Waits until the last save is safe.

    Raises:
      SaveError: if it has failed.
    """
    with saving(self._place, self._saving):
      self._manager.wait_until_finished()
      self._storage.wait()

  def due(self, step: int) -> bool:
    """Whether to save after `step` steps."""
    return step > 0 and step % self._config.period == 0

  def latest_step(self) -> int | None:
    """Step of the latest checkpoint; None if there is none.

    Those that are known to be damaged do not count.
    """
    return max(self._steps() - self._damaged.keys(), default=None)

  def newest(self) -> tuple[int, Progress]:
    """Step and progress of the latest checkpoint; 0 and {} if there is none.

    Damaged ones are passed over, as far as their records show it.

    Raises:
      OSError: if there are some, and all are damaged.
    """
    found = self._newest()
    return (0, {}) if found is None else (found[0], found[1].progress)

  def pass_over(self, damaged: DamagedCheckpoint) -> None:
    """Takes a checkpoint as missing, and says so."""
    self._damaged[damaged.step] = damaged.reason
    if jax.process_index() == 0:
      print(f"warning: {damaged}; trying an earlier one", flush=True)

  def save(self, state: TrainState, step: int, progress: Progress) -> None:
    """Begins to save; does nothing if this step is saved already.

    Those that were passed over make way for it.

    Raises:
      SaveError: this save cannot begin, or the one before has failed.
    """
    self.wait()
    self._saving = step
    if step == self.latest_step():
      return
    record = Record(step, progress, digests(state))
    with saving(self._place, step):
      for damaged in self._steps() & self._damaged.keys():
        self._storage.delete(self._manager, damaged)
      self._damaged.clear()
      check_room(self._folder, state)
      self._begin(state, record)
      self._storage.keep(self._manager, step)

  def _begin(self, state: TrainState, record: Record) -> None:
    """Lets Orbax save in the background."""
    parts = {
      STATE: ocp.args.StandardSave(state),
      RECORD: ocp.args.JsonSave(record.to_json()),
    }
    args = ocp.args.Composite(**parts)
    self._manager.save(record.step, args=args, force=True)

  def restore(self, abstract_state: TrainState) -> tuple[TrainState, Progress]:
    """The latest state, placed like `abstract_state`, and its progress.

    Raises:
      DamagedCheckpoint: if it is not what was saved.
      FileExistsError: if it is the state of another model.
    """
    found = self._newest()
    assert found is not None
    step, record = found
    path = self._storage.path / str(step)

    def read_state() -> TrainState:
      check_shapes(path, abstract_state.params, self._place)
      state: TrainState = ocp.StandardCheckpointHandler().restore(
        path / STATE, args=ocp.args.StandardRestore(abstract_state)
      )
      return state

    state = attempt(read_state, self._place, step)
    check_digests(state, record, self._place, step)
    return state, record.progress

  def _newest(self) -> tuple[int, Record] | None:
    """Step and record of the latest checkpoint; None if there is none."""
    while (step := self.latest_step()) is not None:
      self._storage.fetch(step)
      path = self._storage.path / str(step)
      try:
        reading = functools.partial(record_of, path)
        return step, attempt(reading, self._place, step)
      except DamagedCheckpoint as damaged:
        self.pass_over(damaged)
    if self._damaged:
      raise OSError(
        f"{self._place} has no checkpoint that is whole: those of steps"
        f" {sorted(self._damaged)} are damaged. Put back a copy of one, or set"
        " another --gin.MODEL_DIR."
      )
    return None

  def _steps(self) -> set[int]:
    """Steps of all checkpoints.

    Reads the folder: after a failed save, a cached list would be wrong.
    """
    self._manager.wait_until_finished()
    self._manager.reload()
    return self._storage.steps(self._manager)

  def restore_initial(self, abstract_params: Params) -> Params | None:
    """Parameters of the initial checkpoint; None if none is configured.

    Fresh parts are missing from them.

    Raises:
      FileExistsError: if it is of another model.
      FileNotFoundError: if there is no checkpoint in that folder.
      OSError: if it is damaged.
    """
    folder = self._config.initial_checkpoint
    if folder is None:
      return None
    try:
      fresh = self._config.fresh_parts
      wanted = {k: v for k, v in abstract_params.items() if k not in fresh}
      found = _restored(INITIAL, folder, wanted, only_parts=bool(fresh))
    except DamagedCheckpoint as damaged:  # But none of this run's own.
      raise OSError(str(damaged)) from damaged
    if found is None:
      raise FileNotFoundError(
        f"{INITIAL} = '{folder}' has no checkpoints: expected the MODEL_DIR of"
        " another run."
      )
    return found[0]


def restore_params(
  model_dir: str | os.PathLike[str],
  abstract_params: Params,
  step: int | None = None,
) -> tuple[Params, int] | None:
  """Parameters of a run, without its optimizer state.

  Args:
    model_dir: folder of the run.
    abstract_params: shapes, types and placement of its parameters.
    step: of the checkpoint; None for the latest.

  Returns:
    Parameters, and their step; None if there is no checkpoint.

  Raises:
    FileNotFoundError: if there are checkpoints, but none of this step.
    FileExistsError: if they are of another model.
  """
  return _restored(MODEL_DIR, model_dir, abstract_params, step)


def _restored(
  setting: str,
  model_dir: str | os.PathLike[str],
  abstract_params: Params,
  step: int | None = None,
  *,
  only_parts: bool = False,
) -> tuple[Params, int] | None:
  """`restore_params` from the folder that a setting names.

  With `only_parts`, the checkpoint may have other parts, too.
  """
  folder = _folder(setting, model_dir)
  place = _place(setting, folder)
  steps = saved_steps(folder)
  if not steps:
    return None
  step = steps[-1] if step is None else step
  if step not in steps:
    raise FileNotFoundError(
      f"'{folder.parent}' has no checkpoint of step {step}, expected one of"
      f" {steps}: checkpoint.Checkpointer.keep says how many a run keeps."
    )
  with readable(folder, step) as path:
    checkpoint = path / str(step)
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract_params)
    args = ocp.args.PyTreeRestore(
      {"params": abstract_params},
      restore_args={"params": restore_args},
      partial_restore=True,
    )

    def read_params() -> tuple[Record, dict[str, Params]]:
      check_shapes(checkpoint, abstract_params, place, only_parts=only_parts)
      found: dict[str, Params] = ocp.PyTreeCheckpointHandler().restore(
        checkpoint / STATE, args=args
      )
      return record_of(checkpoint), found

    record, restored = attempt(read_params, place, step)
    check_digests(restored, record, place, step)
    return restored["params"], step


def has_checkpoint(model_dir: str | os.PathLike[str]) -> bool:
  """Whether a run has saved a checkpoint in its folder."""
  return bool(saved_steps(_folder(MODEL_DIR, model_dir)))


def _place(setting: str, folder: AnyPath) -> str:
  """A setting and its value, which has this folder of checkpoints."""
  return f"{setting} = '{folder.parent}'"


def _folder(macro: str, model_dir: str | os.PathLike[str]) -> AnyPath:
  """The folder of a run's checkpoints."""
  return files.absolute(files.path(macro, model_dir)) / FOLDER
