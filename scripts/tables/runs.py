"""A training run of a row: its arguments, its folder and its files."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gin

from raptr_jax import main
from raptr_jax.reports import run_files
from tables.table import Row

# Macros that rows and runs set themselves, and users may not.
OWN_MACROS = (
  "MODEL_DIR", "RANDOM_SEED", "LEARNING_RATE", "TRAIN_STEPS", "NUM_LAYERS",
  "FLOP_FACTOR", "PATH_LENGTHS", "STACKING_LENGTHS", "DOUBLING_LENGTHS",
  "SHALLOW_LAYERS",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Setting:
  """What all runs of a table share.

  Attributes:
    scale: one of `table.SCALES`.
    root: folder of the runs of all scales.
    overrides: the user's gin arguments, as `--gin.NAME=VALUE`.

  Raises:
    ValueError: if an override sets one of `OWN_MACROS`.
  """

  scale: str
  root: Path
  overrides: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    for override in self.overrides:
      name = override.removeprefix("--gin.").partition("=")[0]
      if name in OWN_MACROS:
        raise ValueError(
          f"{override}: rows and runs differ in {name}. Set FULL_TRAIN_STEPS to"
          " change the length of all runs; for anything else edit"
          f" gin/tables/*_{self.scale}.gin."
        )

  @property
  def folder(self) -> Path:
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
      "MODEL_DIR": f"'{self.folder}'",
      "RANDOM_SEED": str(self.seed),
      "LEARNING_RATE": f"{self.learning_rate:g}",
    }
    return [
      *(f"--gin_file={file}" for file in files),
      *self.setting.overrides,
      *(f"--gin.{name}={value}" for name, value in bindings.items()),
    ]

  def command(self) -> str:
    """The shell command that trains it."""
    return shell(["python", "-m", "raptr_jax.main", *self.arguments()])

  @property
  def is_finished(self) -> bool:
    return (self.folder / run_files.SUMMARY_FILE).exists()

  def summary(self) -> dict[str, Any] | None:
    """Its summary.json; None while it is unfinished."""
    path = self.folder / run_files.SUMMARY_FILE
    return (
      json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    )

  def metrics(self) -> list[dict[str, Any]]:
    """Its entries so far; see `raptr_jax/reports/report.py`."""
    return run_files.read_metrics(self.folder)

  def configure(self) -> str:
    """Loads its configuration into gin and returns it as text.

    Raises:
      raptr_jax.main.ConfigurationError: if the configuration is invalid.
    """
    main.configure(self.arguments(), "")
    return str(gin.config_str())

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
  setting: Setting, row: Row, learning_rate: float | None
) -> dict[int, Run]:
  """A row's finished runs at a learning rate, by seed."""
  if learning_rate is None:
    return {}
  folder = Run(setting, row, learning_rate, 0).folder.parent
  seeds = sorted(int(p.name.split("_")[1]) for p in folder.glob("seed_*"))
  runs = (Run(setting, row, learning_rate, seed) for seed in seeds)
  return {run.seed: run for run in runs if run.is_finished}


def shell(argv: Sequence[str]) -> str:
  """A shell command line. Gin strings keep their single quotes."""
  words = []
  for word in argv:
    name, equals, value = word.partition("=")
    plain = re.fullmatch(r"[\w./,:@%+-]*", value)
    words.append(word if plain else f'{name}{equals}"{value}"')
  return " ".join(words)


def _without_folder(config: str) -> str:
  """Drops MODEL_DIR, since runs may be moved. Gin wraps long lines."""
  pattern = r"^MODEL_DIR = (\\\n\s+)?.*\n"
  return re.sub(pattern, "", config, flags=re.MULTILINE)
