"""The runs of `bert_finetune`: pretraining by several methods, then tasks.

Each model of a row is pretrained once, with seed 0, and fine-tuned on each task
with several seeds. A further row is fine-tuned from fresh parameters.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raptr_jax.tasks.progress import Progress
from tables import bert_rows
from tables.results import read_grid
from tables.runs import Run, Setting, shell
from tables.table import Row
from tables.training import (
  PROGRAM,
  QueueProgress,
  check_unchanged,
  launch,
  prepare_data,
  run_program,
)

RESULTS_FILE = "results.json"
LOG_FILE = "log.txt"
TASKS = ("cola", "sst2", "rte")
SCRATCH = "scratch"
# Macros that are not for pretraining.
OWN = ("--gin.FINE_TUNING_DIR=", "--gin.MINIMAL_PAIRS=")
METHODS = ("dense", "raptr", "gradual_stacking")
TINY_RATE = 2e-3
# Of the fine-tuning, by scale; those of BERT's paper for its own sizes.
SETTINGS: Mapping[str, Mapping[str, str]] = {
  "tiny": {
    "LEARNING_RATES": "(0.0003, 0.001)",
    "BATCH_SIZES": "(32,)",
    "FINE_TUNING_EXAMPLES": "4000",
    "FINE_TUNING_LENGTH": "32",
  },
  "small": {"LEARNING_RATES": "(0.0001, 0.0003)", "BATCH_SIZES": "(32,)"},
  "paper": {},
}
TASK_SETTINGS = {("tiny", "rte"): {"FINE_TUNING_LENGTH": "128"}}
PAIRS_EACH = {"tiny": 100, "small": 100, "paper": None}


@dataclasses.dataclass(frozen=True)
class Part:
  """One task of one row.

  Attributes:
    setting: scale, folder and overrides of pretraining.
    run: the pretraining run whose model and vocabulary it has.
    row: name of the row.
    task: the task.
    data: folder of the tasks' files.
    seeds: of the best choice.
  """

  setting: Setting
  run: Run
  row: str
  task: str
  data: str
  seeds: int

  @property
  def folder(self) -> Path:
    return self.setting.folder / "bert_finetune" / self.task / self.row

  def arguments(self) -> list[str]:
    """Those of `python -m raptr_jax.main`."""
    scale = self.setting.scale
    bindings = {
      "PRETRAINED": repr(str(self.run.folder)),
      "FINE_TUNING_TASK": repr(self.task),
      "FINE_TUNING_DIR": repr(self.data),
      "FROM_SCRATCH": str(self.row == SCRATCH),
      "SEEDS": str(self.seeds),
      **SETTINGS[scale],
      **TASK_SETTINGS.get((scale, self.task), {}),
      "MODEL_DIR": repr(str(self.folder)),
    }
    return [
      "--gin_file=runs/fine_tune.gin",
      *(f"--gin.{name}={value}" for name, value in bindings.items()),
    ]

  def command(self) -> str:
    """The shell command that runs it."""
    return shell(["python", "-m", "raptr_jax.main", *self.arguments()])

  def results(self) -> dict[str, Any] | None:
    """Its results.json; None if it lacks some."""
    found = _read(self.folder / RESULTS_FILE)
    return found if found and len(found["seeds"]) >= self.seeds else None


@dataclasses.dataclass(frozen=True)
class FineTuningTable:
  """What the table is made of.

  Attributes:
    setting: scale, folder and overrides of pretraining.
    data: folder of the tasks' files.
    pairs: file or folder of minimal pairs; None for none.
    seeds: of each fine-tuning.
  """

  setting: Setting
  data: str
  pairs: str | None
  seeds: int

  @classmethod
  def of(
    cls, scale: str, runs: Path, overrides: tuple[str, ...], seeds: int
  ) -> "FineTuningTable":
    """The table of a command line.

    Raises:
      ValueError: FINE_TUNING_DIR is missing.
    """
    own = {
      flag.partition("=")[0]: flag.partition("=")[2].strip("'\"")
      for flag in overrides
      if flag.startswith(OWN)
    }
    if "--gin.FINE_TUNING_DIR" not in own:
      raise ValueError(
        "--table bert_finetune needs the files of its tasks: set"
        " --gin.FINE_TUNING_DIR=\"'glue'\" to a folder with"
        f" {', '.join(f'{task}-train.tsv' for task in TASKS)}, or GLUE's own."
      )
    others = tuple(flag for flag in overrides if not flag.startswith(OWN))
    return cls(
      setting=Setting(scale, runs, others),
      data=own["--gin.FINE_TUNING_DIR"],
      pairs=own.get("--gin.MINIMAL_PAIRS"),
      seeds=seeds,
    )

  def pretraining(self) -> dict[str, Run]:
    """The pretraining run of each row."""
    rows = {
      "dense": bert_rows.DENSE,
      "raptr": bert_rows.RAPTR,
      "gradual_stacking": bert_rows.GRADUAL_STACKING,
    }
    if self.setting.scale == "tiny":
      return {
        name: Run(self.setting, _longer(row), TINY_RATE, 0)
        for name, row in rows.items()
      }
    rate = read_grid(self.setting, bert_rows.DENSE).rate
    return {name: Run(self.setting, row, rate, 0) for name, row in rows.items()}

  def parts(self) -> Iterator[Part]:
    """The fine-tunings, task by task."""
    runs = self.pretraining()
    for task in TASKS:
      for row in (*METHODS, SCRATCH):
        run = runs.get(row, runs["dense"])
        yield Part(self.setting, run, row, task, self.data, self.seeds)

  def pair_scores(self, row: str) -> dict[str, Any] | None:
    """A row's accuracy on minimal pairs; None if it is not measured."""
    found = _read(self.pretraining()[row].folder / RESULTS_FILE)
    return found.get("minimal_pairs") if found else None

  def pair_arguments(self, run: Run) -> list[str]:
    """Arguments of the program that judges minimal pairs."""
    bindings = {
      "MODEL_DIR": repr(str(run.folder)),
      "MINIMAL_PAIRS": repr(self.pairs),
      "MINIMAL_PAIRS_EACH": str(PAIRS_EACH[self.setting.scale]),
    }
    flags = (f"--gin.{name}={value}" for name, value in bindings.items())
    return ["--run_mode=eval", *flags]

  def run(self) -> None:
    """Runs what is missing.

    Raises:
      ChildProcessError: a run failed; its log says why.
      KeyboardInterrupt: on Ctrl-C or SIGTERM.
    """
    runs = list(self.pretraining().values())
    check_unchanged(runs)
    queue = [run for run in runs if not run.is_finished]
    if queue:
      prepare_data(queue[0])
    with QueueProgress() as display:
      while queue:
        display.start(queue)
        if not launch(queue[0], display.watch):
          raise ChildProcessError(f"{queue[0].name} failed: see its log.txt")
        display.finish("done")
        queue.pop(0)
    self._judge_pairs()
    self._fine_tune()

  def _judge_pairs(self) -> None:
    for row, run in self.pretraining().items():
      if self.pairs is not None and self.pair_scores(row) is None:
        print(f"minimal pairs: {row} ...", flush=True)
        self._call(self.pair_arguments(run), run.folder)

  def _fine_tune(self) -> None:
    left = [part for part in self.parts() if part.results() is None]
    with Progress(len(left), unit="task") as progress:
      for done, part in enumerate(left):
        progress.update(done, f"{part.task}, {part.row}", None)
        part.folder.mkdir(parents=True, exist_ok=True)
        self._call(part.arguments(), part.folder)

  def _call(self, arguments: list[str], folder: Path) -> None:
    command = [*PROGRAM, *arguments]
    code = run_program(command, folder / LOG_FILE, self.setting, lambda: None)
    if code:
      raise ChildProcessError(
        f"{shell(command)} failed: see {folder / LOG_FILE}"
      )


def _longer(row: Row) -> Row:
  """A row of the methods table, pretrained for longer on other text."""
  return dataclasses.replace(
    row, name=f"finetune_{row.name}", family="bert_finetune"
  )


def _read(path: Path) -> dict[str, Any] | None:
  if not path.is_file():
    return None
  found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
  return found
