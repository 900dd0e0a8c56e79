"""A run of a row: its arguments, its folder, and what is in there."""

import dataclasses
import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gin

from raptr_jax import main, plots

from .table import Row

CONFIG_FILE = "config.gin"
# What the user of a table cannot set: rows and their runs differ in it.
OWN_MACROS = (
  "MODEL_DIR", "RANDOM_SEED", "LEARNING_RATE", "TRAIN_STEPS", "NUM_LAYERS",
  "FLOP_FACTOR", "PATH_LENGTHS", "STACKING_LENGTHS", "DOUBLING_LENGTHS",
  "SHALLOW_LAYERS",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Setting:
  """What all runs of a table have in common.

  Attributes:
    scale: in `table.SCALES`.
    root: folder of the runs of all scales.
    overrides: gin arguments of the user, as `--gin.NAME=VALUE`.

  Raises:
    ValueError: an override is one of `OWN_MACROS`.
  """

  scale: str
  root: Path
  overrides: tuple[str, ...] = ()

  def __post_init__(self):
    for override in self.overrides:
      name = override.removeprefix("--gin.").partition("=")[0]
      if name in OWN_MACROS:
        raise ValueError(
          f"{override}: rows and runs differ in {name}; for the length of all"
          " runs set FULL_TRAIN_STEPS, for anything else change"
          f" gin/scales/*_{self.scale}.gin."
        )

  @property
  def folder(self) -> Path:
    return self.root / self.scale


@dataclasses.dataclass(frozen=True)
class Run:
  """One training run: a row at a learning rate, with a seed."""

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
    """For people: row, learning rate and seed."""
    return f"{self.row.name}, lr {self.learning_rate:g}, seed {self.seed}"

  def arguments(self) -> list[str]:
    """Arguments of `python -m raptr_jax.main`; the row's override the user's."""
    scale = self.setting.scale
    files = (f"scales/{self.row.family}_{scale}.gin", *self.row.gin_files)
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
    """The command of this run, as a user would type it."""
    return shell(["python", "-m", "raptr_jax.main", *self.arguments()])

  @property
  def is_finished(self) -> bool:
    return (self.folder / plots.SUMMARY_FILE).exists()

  def summary(self) -> dict[str, Any] | None:
    """What the run came to; None before its end."""
    path = self.folder / plots.SUMMARY_FILE
    return (
      json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    )

  def metrics(self) -> list[dict[str, Any]]:
    """Its rows so far; see `raptr_jax/report.py`."""
    return plots.read_metrics(self.folder)

  def configure(self) -> str:
    """Leaves gin with this run's configuration; returns it as text.

    Raises:
      raptr_jax.main.ConfigurationError: it cannot be put together.
    """
    main.configure(self.arguments(), "")
    return gin.config_str()

  def changes(self) -> list[str]:
    """Lines in which its folder's configuration differs from that of today."""
    path = self.folder / CONFIG_FILE
    if not path.exists():
      return []
    old, new = (
      _without_folder(text).splitlines()
      for text in (path.read_text(encoding="utf-8"), self.configure())
    )
    diff = difflib.unified_diff(old, new, n=0, lineterm="")
    return [line for line in diff if re.match(r"[+-]\s*\w", line)]


def finished_seeds(
  setting: Setting, row: Row, learning_rate: float | None
) -> dict[int, Run]:
  """The finished runs of a row at a learning rate, by seed."""
  if learning_rate is None:
    return {}
  folder = Run(setting, row, learning_rate, 0).folder.parent
  seeds = sorted(int(p.name.split("_")[1]) for p in folder.glob("seed_*"))
  runs = (Run(setting, row, learning_rate, seed) for seed in seeds)
  return {run.seed: run for run in runs if run.is_finished}


def shell(argv: Sequence[str]) -> str:
  """A line for a shell; gin's values have single quotes of their own."""
  words = []
  for word in argv:
    name, equals, value = word.partition("=")
    plain = re.fullmatch(r"[\w./,:@%+-]*", value)
    words.append(word if plain else f'{name}{equals}"{value}"')
  return " ".join(words)


def _without_folder(config: str) -> str:
  """Runs may be moved; gin breaks lines that are long."""
  pattern = r"^MODEL_DIR = (\\\n\s+)?.*\n"
  return re.sub(pattern, "", config, flags=re.MULTILINE)
