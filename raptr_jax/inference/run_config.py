"""What the config.gin of a run describes, built."""

import ast
import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raptr_jax.configuration import configure
from raptr_jax.configuration.bindings import macros, resolved
from raptr_jax.reports.run_files import CONFIG_FILE
from raptr_jax.tasks import files
from raptr_jax.tasks.files import AnyPath
from raptr_jax.tasks.mixture import Mixture
from raptr_jax.tasks.task import TextTask
from raptr_jax.training.experiment import Experiment

# Macros of the parts of a run, and what they are called here.
PARTS = {
  "RUN": "experiment",
  "TASK": "task",
  "TASK_FEATURE_LENGTHS": "feature_lengths",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfiguredRun:
  """The parts of a run, as its config.gin has them.

  Attributes:
    experiment: the run.
    task: what it was trained on.
    feature_lengths: lengths of the features of a batch.
    data_dir: folder of all prepared tasks.
    macros: values by name; text for what is no literal.
  """

  experiment: Experiment
  task: TextTask | Mixture
  feature_lengths: Mapping[str, int]
  data_dir: AnyPath
  macros: Mapping[str, Any]


def configured_run(
  folder: str | os.PathLike[str],
  data_dir: str | os.PathLike[str] | None = None,
) -> ConfiguredRun:
  """Builds what is in a run's folder, with paths that hold from anywhere.

  Args:
    folder: of the run.
    data_dir: folder of all prepared tasks; None looks for it.

  Raises:
    ConfigurationError: config.gin cannot be built.
    FileNotFoundError: the folder is no run's, or the vocabulary is missing.
    ValueError: the run was not started with gin files.
  """
  folder = files.absolute(files.path("MODEL_DIR", folder))
  config = folder / CONFIG_FILE
  if not config.is_file():
    found = "does not exist"
    if folder.exists():
      found = f"has no {CONFIG_FILE}" if folder.is_dir() else "is a file"
    raise FileNotFoundError(
      f"'{folder}' {found}, expected the MODEL_DIR of a trained run."
    )
  copy = str(files.local_copy(config))
  configure.parse([copy])
  values = {name: _shown(resolved(value)) for name, value in macros().items()}
  missing = [name for name in PARTS if name not in values]
  if missing:
    raise ValueError(
      f"'{config}' does not set {', '.join(missing)}, expected a run that was"
      " started with gin files: call raptr_jax.Run.restore for one that was"
      " built in Python."
    )
  own_dir = values.get("DATA_DIR", "data")
  if data_dir is None:
    folders = list(_places(folder, values.get("MODEL_DIR", ""), own_dir))
  else:
    folders = [files.absolute(files.path("DATA_DIR", data_dir))]
  for place in dict.fromkeys(folders):
    # Configured for each place, since sizes may depend on what lies there.
    paths = {"MODEL_DIR": folder, "DATA_DIR": place}
    configure.parse(
      [copy],
      [f"--gin.{name}={str(path)!r}" for name, path in paths.items()],
    )
    parts = {field: configure.build(name) for name, field in PARTS.items()}
    try:
      parts["task"].vocabulary(str(place))
    except FileNotFoundError:
      continue
    return ConfiguredRun(**parts, data_dir=place, macros=values)
  places = " or ".join(f"'{place}'" for place in dict.fromkeys(folders))
  raise FileNotFoundError(
    f"The vocabulary of {configure.build('TASK').name} is not in {places}: pass"
    f" data_dir=, the folder of prepared data, which the run had as DATA_DIR ="
    f" '{own_dir}'."
  )


def _shown(value: Any) -> Any:
  """A literal as it is; text for what a file builds."""
  try:
    ast.literal_eval(repr(value))
  except (SyntaxError, ValueError):
    return repr(value)
  return value


def _places(
  folder: AnyPath, model_dir: str, data_dir: str
) -> Iterator[AnyPath]:
  """Folders that a run's DATA_DIR may be.

  A run in a/b/runs/x whose MODEL_DIR is runs/x was started in a/b.
  """
  given = files.path("DATA_DIR", data_dir)
  tail = Path(model_dir).parts
  is_relative = not (given.is_absolute() or Path(model_dir).is_absolute())
  if is_relative and folder.parts[-len(tail) :] == tail:
    yield folder.parents[len(tail) - 1] / given
  yield files.absolute(given)
  yield folder / "data"  # An imported model has its own.
