"""Checkpoints of a run: its state, and its progress through the data.

A run starts from the first of these that exists:
  1. the latest checkpoint in its own folder;
  2. the parameters of an initial checkpoint, with a fresh optimizer at step 0;
  3. fresh parameters.
"""

import dataclasses
import logging
import os

import jax
import orbax.checkpoint as ocp

from raptr_jax.contracts import Params
from raptr_jax.tasks import files
from raptr_jax.tasks.files import AnyPath
from raptr_jax.training.checkpoint_storage import (
  readable,
  reader,
  saved_steps,
  storage,
)
from raptr_jax.training.state import Progress, TrainState

FOLDER = "checkpoints"
INITIAL = "checkpoint.Checkpointer.initial_checkpoint"


@dataclasses.dataclass(frozen=True)
class Checkpointer:
  """When to save checkpoints, how many to keep, and what to start from.

  Attributes:
    period: steps between two saves; the last step is always saved.
    keep: number of latest checkpoints to keep.
    initial_checkpoint: model directory of another run to take parameters from.
  """

  period: int = 1000
  keep: int = 3
  initial_checkpoint: str | None = None

  def __post_init__(self) -> None:
    if self.period < 1 or self.keep < 1:
      raise ValueError(
        f"checkpoint.Checkpointer.period = {self.period} (CHECKPOINT_PERIOD)"
        f" and checkpoint.Checkpointer.keep = {self.keep}, expected at least 1."
      )

  def open(self, model_dir: str | os.PathLike[str]) -> "CheckpointFolder":
    """The checkpoints of the run in this folder."""
    return CheckpointFolder(self, model_dir)


class CheckpointFolder:
  """The checkpoints of one run; a context manager that waits for saves."""

  def __init__(self, config: Checkpointer, model_dir: str | os.PathLike[str]):
    self._config, self._folder = config, _folder("MODEL_DIR", model_dir)
    self._storage = storage(self._folder, config.keep)
    self._manager = _writer(self._storage.path, config.keep)

  def __enter__(self) -> "CheckpointFolder":
    return self

  def __exit__(self, *exception: object) -> None:
    with self._storage:
      self._manager.close()

  def due(self, step: int) -> bool:
    """Whether to save after `step` steps."""
    return step > 0 and step % self._config.period == 0

  def latest_step(self) -> int | None:
    """Step of the latest checkpoint; None if there is none.

    Reads the folder: after a failed save, a cached list would be wrong.
    """
    self._manager.wait_until_finished()
    self._manager.reload()
    return max(self._manager.all_steps(), default=None)

  def save(self, state: TrainState, step: int, progress: Progress) -> None:
    """Begins to save; does nothing if this step is saved already."""
    self._storage.wait()
    if step == self.latest_step():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        progress=ocp.args.JsonSave(progress),
      ),
      force=True,
    )
    self._storage.keep(self._manager, step)

  def restore(self, abstract_state: TrainState) -> tuple[TrainState, Progress]:
    """The latest state, placed like `abstract_state`, and its progress.

    Raises:
      FileExistsError: if it is the state of another model.
    """
    args = ocp.args.Composite(
      state=ocp.args.StandardRestore(abstract_state),
      progress=ocp.args.JsonRestore(),
    )
    step = self.latest_step()
    _check_shapes(
      self._storage.path / str(step),
      abstract_state.params,
      self._folder.parent,
    )
    restored = self._manager.restore(step, args=args)
    return restored["state"], restored["progress"]

  def restore_initial(self, abstract_params: Params) -> Params | None:
    """Parameters of the initial checkpoint; None if none is configured.

    Raises:
      FileNotFoundError: if there is no checkpoint in that folder.
    """
    folder = self._config.initial_checkpoint
    if folder is None:
      return None
    found = _restored(_folder(INITIAL, folder), abstract_params)
    if found is None:
      raise FileNotFoundError(
        f"{INITIAL} = '{folder}' has no"
        " checkpoints: expected the MODEL_DIR of another run."
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
  return _restored(_folder("MODEL_DIR", model_dir), abstract_params, step)


def _restored(
  folder: AnyPath, abstract_params: Params, step: int | None = None
) -> tuple[Params, int] | None:
  """`restore_params` from a folder of checkpoints."""
  steps = saved_steps(folder)
  if not steps:
    return None
  step = steps[-1] if step is None else step
  if step not in steps:
    raise FileNotFoundError(
      f"'{folder.parent}' has no checkpoint of step {step}, expected one of"
      f" {steps}: checkpoint.Checkpointer.keep says how many a run keeps."
    )
  with readable(folder, step) as path, reader(path) as manager:
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract_params)
    args = ocp.args.PyTreeRestore(
      {"params": abstract_params},
      restore_args={"params": restore_args},
      partial_restore=True,
    )
    _check_shapes(path / str(step), abstract_params, folder.parent)
    restored = manager.restore(step, args=ocp.args.Composite(state=args))
    return restored["state"]["params"], step


def has_checkpoint(model_dir: str | os.PathLike[str]) -> bool:
  """Whether a run has saved a checkpoint in its folder."""
  return bool(saved_steps(_folder("MODEL_DIR", model_dir)))


def _folder(macro: str, model_dir: str | os.PathLike[str]) -> AnyPath:
  """The folder of a run's checkpoints."""
  return files.absolute(files.path(macro, model_dir)) / FOLDER


def _check_shapes(
  checkpoint: AnyPath, params: Params, model_dir: AnyPath
) -> None:
  """Raises FileExistsError unless a checkpoint has parameters of these shapes.

  Orbax would say so, too, but in words of its own.
  """
  path = checkpoint / "state"
  found = _shapes(ocp.PyTreeCheckpointHandler().metadata(path).tree["params"])
  wanted = _shapes(params)
  for name in sorted(found.keys() | wanted.keys()):
    if found.get(name) != wanted.get(name):
      raise FileExistsError(
        f"MODEL_DIR = '{model_dir}' has a checkpoint of another model:"
        f" {name} has the shape {found.get(name)} there, but"
        f" {wanted.get(name)} here. Set another MODEL_DIR, or undo the change."
      )


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
    for path, leaf in leaves
  }


def _writer(folder: AnyPath, max_to_keep: int) -> ocp.CheckpointManager:
  options = ocp.CheckpointManagerOptions(
    max_to_keep=max_to_keep, enable_async_checkpointing=True
  )
  return ocp.CheckpointManager(folder, options=options)


def _drop_read_only_warning(record: logging.LogRecord) -> bool:
  """False for Orbax's warning that a folder is read only, as it should be."""
  return "directory is read only" not in str(record.msg)


logging.getLogger("absl").addFilter(_drop_read_only_warning)
