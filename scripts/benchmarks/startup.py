"""Suite `startup`: seconds from the command to the first step.

The quickstart runs as a process of its own, on text that is already prepared:
first with an empty compilation cache, then with what the first run has left
there. A stage waits from the evaluation before it to the end of its first step.
"""

import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.results import Table, Value

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS = {"tiny": 16, "cpu": 160, "gpu": 160}
STAGES = 4
NARROW = ("--gin.bert.BertConfig.embed_dim=16", "--gin.BATCH_SIZE=8")
POLL_SECONDS = 0.01


@dataclasses.dataclass(frozen=True)
class Entry:
  """An entry of `metrics.jsonl`: that a step is trained, or evaluated.

  Attributes:
    kind: "train" or "eval".
    step: number of steps done.
    seconds: from the start of the program to the entry.
  """

  kind: str
  step: int
  seconds: float


def run(size: str, rounds: int) -> Iterator[Table]:
  """One table; each run starts once, however many rounds there are."""
  del rounds
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    with _program(folder, size, "prepare") as preparation:
      if preparation.wait():
        raise RuntimeError("The text was not prepared: see above.")
    rows = [
      _row(f"{cache} cache", STEPS[size], _train(folder, size, cache))
      for cache in ("empty", "filled")
    ]
  yield Table("Start of the quickstart", rows)


def _row(start: str, total: int, entries: Sequence[Entry]) -> dict[str, Value]:
  done = {(entry.kind, entry.step): entry.seconds for entry in entries}
  boundaries = [total * stage // STAGES for stage in range(1, STAGES)]
  # Steps without an evaluation between them.
  last = [done["train", step] for step in range(boundaries[-1] + 2, total)]
  steps = (after - before for before, after in itertools.pairwise(last))
  return {
    "start": start,
    "first step after, s": done["train", 1],
    **{
      f"stage {stage} waits, s": done["train", step + 1] - done["eval", step]
      for stage, step in enumerate(boundaries, 2)
    },
    "step of the last stage, s": statistics.median(steps),
  }


def _train(folder: Path, size: str, name: str) -> list[Entry]:
  """The entries of a run, which is ended before its last step."""
  metrics = folder / name / "metrics.jsonl"
  entries: list[Entry] = []
  began = time.perf_counter()
  with _program(folder, size, "train", name) as program:
    while not entries or entries[-1].step < STEPS[size] - 1:
      if program.poll() is not None:
        raise RuntimeError("The run has ended early: see above.")
      time.sleep(POLL_SECONDS)
      text = metrics.read_text("utf-8") if metrics.exists() else ""
      lines = text[: text.rfind("\n") + 1].splitlines()
      seconds = time.perf_counter() - began
      for line in map(json.loads, lines[len(entries) :]):
        entries.append(Entry(line["split"], line["step"], seconds))
    program.kill()
  return entries


def _program(
  folder: Path, size: str, mode: str, run_name: str = "unused"
) -> subprocess.Popen[bytes]:
  """Starts the quickstart in a process of its own."""
  own = "JAX_COMPILATION_CACHE_DIR"  # Would come before the macro.
  return subprocess.Popen(
    command(folder, size, mode, run_name),
    cwd=ROOT,
    env={name: x for name, x in os.environ.items() if name != own},
    stdout=subprocess.DEVNULL,
  )


def command(folder: Path, size: str, mode: str, run_name: str) -> list[str]:
  """The quickstart, shortened, with an entry for each step."""
  return [
    sys.executable,
    "-m",
    "raptr_jax.main",
    f"--run_mode={mode}",
    "--gin_file=experiments/quickstart_bert_raptr.gin",
    f"--gin.MODEL_DIR='{folder / run_name}'",
    f"--gin.DATA_DIR='{folder / 'data'}'",
    f"--gin.COMPILATION_CACHE_DIR='{folder / 'cache'}'",
    f"--gin.TRAIN_STEPS={STEPS[size]}",
    "--gin.WARMUP_STEPS=2",
    "--gin.EVAL_PERIOD=1000",
    "--gin.experiment.Experiment.report_period=1",
    *(NARROW if size == "tiny" else ()),
  ]
