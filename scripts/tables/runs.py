"""A training run of a row: its arguments, its folder and its files."""

import dataclasses
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raptr_jax import main
from raptr_jax.configuration.configure import config_text
from raptr_jax.reports import run_files
from tables.evidence import TRIALS, folder_name
from tables.table import Row

# Macros that rows and runs set themselves, and users may not.
OWN_MACROS = (
  "MODEL_DIR", "RANDOM_SEED", "LEARNING_RATE", "TRAIN_STEPS", "NUM_LAYERS",
  "FLOP_FACTOR", "PATH_LENGTHS", "STACKING_LENGTHS", "DOUBLING_LENGTHS",
  "SHALLOW_LAYERS",
)  # fmt: skip
# Macros that say where the inputs of a scale are.
INPUT_MACROS = ("TEXT_DIR", "VOCABULARY_PATH", "GITHUB_DIR", "DATA_DIR")
LOG_FILE = "log.txt"
SHOWN_LOG_LINES = 12
STEP_LINE = re.compile(r"^step +(\d+)/(\d+) ", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Setting:
  """What all runs of a table share.

  Attributes:
    scale: one of `table.SCALES`.
    root: folder of the runs of all scales.
    overrides: the user's arguments, as `--gin.NAME=VALUE` or
      `--gin_search_paths=FOLDERS`.

  Raises:
    ValueError: if an override sets one of `OWN_MACROS`.
  """

  scale: str
  root: Path
  overrides: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    for override in self.overrides:
      name = _bound(override)
      if name in OWN_MACROS:
        raise ValueError(
          f"{override}: rows and runs differ in {name}. Set FULL_TRAIN_STEPS to"
          " change the length of all runs; for anything else edit"
          f" gin/tables/*_{self.scale}.gin."
        )

  @property
  def options(self) -> tuple[str, ...]:
    """The overrides that may change results, as `NAME=VALUE`, sorted."""
    return tuple(
      sorted(
        override.removeprefix("--gin.")
        for override in self.overrides
        if override.startswith("--gin.") and _bound(override) != "DATA_DIR"
      )
    )

  @property
  def trial(self) -> str:
    """A name for what departs from the scale; "" if nothing does."""
    return folder_name(
      option
      for option in self.options
      if option.partition("=")[0] not in INPUT_MACROS
    )

  @property
  def folder(self) -> Path:
    """Folder of the runs; trials do not meet the scale's own."""
    if self.trial:
      return self.root / TRIALS / self.trial / self.scale
    return self.root / self.scale


@dataclasses.dataclass(frozen=True)
class Run:
  """A training run of a row at one learning rate, with one seed."""

  setting: Setting
  row: Row
  learning_rate: float
  seed: int

  @property
  def folder(self) -> Path:
    name = f"lr_{self.learning_rate:g}"
    return self.setting.folder / self.row.name / name / f"seed_{self.seed}"

  @property
  def name(self) -> str:
    """Row, learning rate and seed, for display."""
    return f"{self.row.name}, lr {self.learning_rate:g}, seed {self.seed}"

  def arguments(self) -> list[str]:
    """Arguments of `python -m raptr_jax.main`; the row's override the user's."""
    scale = self.setting.scale
    files = (f"tables/{self.row.family}_{scale}.gin", *self.row.gin_files)
    bindings = {
      **self.row.overrides,
      **self.row.by_scale.get(scale, {}),
      "MODEL_DIR": repr(str(self.folder)),
      "RANDOM_SEED": str(self.seed),
      "LEARNING_RATE": f"{self.learning_rate:g}",
    }
    return [
      *(f"--gin_file={file}" for file in files),
      *self.setting.overrides,
      *(f"--gin.{name}={value}" for name, value in bindings.items()),
    ]

  def command(self, *flags: str) -> str:
    """The shell command that trains it, with further flags."""
    return shell(["python", "-m", "raptr_jax.main", *self.arguments(), *flags])

  @property
  def is_finished(self) -> bool:
    return (self.folder / run_files.SUMMARY_FILE).exists()

  def summary(self) -> dict[str, Any] | None:
    """Its summary.json; None while it is unfinished."""
    path = self.folder / run_files.SUMMARY_FILE
    return (
      json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    )

  def series(self) -> run_files.RunSeries:
    """The series of a finished run."""
    return run_files.read_run(self.folder)

  def configure(self) -> str:
    """Loads its configuration into gin and returns it as text.

    Raises:
      ConfigurationError: if the configuration is invalid.
    """
    main.configure(self.arguments())
    return config_text()

  def changes(self) -> list[str]:
    """Diff lines from the configuration in its folder to the present one."""
    path = self.folder / run_files.CONFIG_FILE
    if not path.exists():
      return []
    old = path.read_text(encoding="utf-8")
    return run_files.config_changes(
      _without_folder(old), _without_folder(self.configure())
    )


def finished_seeds(
  setting: Setting, row: Row, learning_rate: float
) -> dict[int, Run]:
  """A row's finished runs at a learning rate, by seed."""
  folder = Run(setting, row, learning_rate, 0).folder.parent
  seeds = sorted(int(p.name.split("_")[1]) for p in folder.glob("seed_*"))
  runs = (Run(setting, row, learning_rate, seed) for seed in seeds)
  return {run.seed: run for run in runs if run.is_finished}


def log_tail(run: Run) -> str:
  """The last lines of its log."""
  text = (run.folder / LOG_FILE).read_text(encoding="utf-8", errors="replace")
  return "\n".join(text.splitlines()[-SHOWN_LOG_LINES:])


def steps_done(run: Run) -> tuple[int, int] | None:
  """(steps done, total steps) by its log; None before the first report."""
  path = run.folder / LOG_FILE
  lines = STEP_LINE.findall(log_tail(run)) if path.exists() else []
  return (int(lines[-1][0]), int(lines[-1][1])) if lines else None


def shell(argv: Sequence[str]) -> str:
  """A command line for bash. Gin strings keep their single quotes."""
  return " ".join(map(_quoted, argv))


def _quoted(word: str) -> str:
  name, equals, value = word.partition("=")
  # What bash changes even in double quotes.
  special = re.search(r'[$`"\\!]', value)
  if special or not equals or shlex.quote(name) != name:
    return shlex.quote(word)
  plain = shlex.quote(value) == value or not value
  return word if plain else f'{name}="{value}"'


def _bound(override: str) -> str:
  """The name that `--gin.NAME=VALUE` binds."""
  return override.removeprefix("--gin.").partition("=")[0]


def _without_folder(config: str) -> str:
  """Drops MODEL_DIR, since runs may be moved. Gin wraps long lines."""
  pattern = r"^MODEL_DIR = (\\\n\s+)?.*\n"
  return re.sub(pattern, "", config, flags=re.MULTILINE)
