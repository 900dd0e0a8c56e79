"""Suite `input`: how many examples a CPU core can feed to a device.

The pipelines read a text of random words once, from opened files to batches;
the streamed one also tokenises it. CPU seconds are those of all threads of the
process, so that examples per CPU second are what one busy core gives. They are
counted from the second batch on, when a stream has read ahead.
"""

import contextlib
import io
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import Table, Value
from raptr_jax.contracts import Dataset

LENGTHS = {"masked_lm": {"inputs": 128}, "ul2": {"tokens": 512}}
BATCH = 32
WORDS = {"tiny": 20_000, "cpu": 500_000, "gpu": 500_000}
LEXICON = 3_000  # Different words, as frequent as Zipf's law says.


def run(size: str, rounds: int) -> Iterator[Table]:
  """One table; its pipelines run once, however many rounds there are."""
  del rounds
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    write_text(folder / "text", WORDS[size])
    rows = [row for objective in LENGTHS for row in _rows(objective, folder)]
  yield Table("Input", rows)


def write_text(folder: Path, words: int) -> None:
  """Files of 1,000 random words each."""
  rng = np.random.default_rng(0)
  letters = rng.integers(97, 123, (LEXICON, 12), np.uint8)
  sizes = rng.integers(2, 12, LEXICON)
  lexicon = [bytes(row[:n]).decode() for row, n in zip(letters, sizes)]
  chances = 1 / np.arange(1, LEXICON + 1)
  chosen = rng.choice(
    lexicon, (words // 1_000, 1_000), p=chances / chances.sum()
  )
  folder.mkdir()
  for number, row in enumerate(chosen):
    path = folder / f"{number:04}.txt"
    path.write_text(" ".join(row), encoding="utf-8")


def _rows(objective: str, folder: Path) -> Iterator[dict[str, Value]]:
  """A row for each pipeline."""
  from raptr_jax.data.prepared import PreparedDataset
  from raptr_jax.data.streaming import StreamingDataset
  from raptr_jax.tasks.objectives.masked_lm import MaskedLM
  from raptr_jax.tasks.objectives.ul2 import UL2
  from raptr_jax.tasks.prepared.prepare import prepare
  from raptr_jax.tasks.task import TextTask
  from raptr_jax.tasks.text.sources import TextFolder
  from raptr_jax.tasks.text.vocabulary import AtMost

  lengths, data_dir = LENGTHS[objective], str(folder / "data")
  task = TextTask(
    name=objective,
    source=TextFolder(str(folder / "text")),
    objective={"masked_lm": MaskedLM, "ul2": UL2}[objective](),
    vocabulary_size=AtMost(2_048),
  )
  with contextlib.redirect_stdout(io.StringIO()):
    task = prepare(task=task, feature_lengths=lengths, data_dir=data_dir)
  data: dict[str, Any] = dict(
    task=task, data_dir=data_dir, feature_lengths=lengths
  )
  prepared = PreparedDataset(**data, batch_size=BATCH, seed=0)
  count = (prepared.num_examples or 0) // BATCH
  yield _row(objective, "prepared", prepared, count)
  streamed = StreamingDataset(**data, batch_size=BATCH, seed=0)
  yield _row(objective, "streamed", streamed, count)


def _row(
  objective: str, pipeline: str, dataset: Dataset, count: int
) -> dict[str, Value]:
  dataset.open()
  batches = dataset.batches(0)
  next(batches)
  wall, cpu = time.perf_counter(), time.process_time()
  for _ in itertools.islice(batches, count):
    pass
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  (length,) = LENGTHS[objective].values()
  return {
    "objective": f"{objective}, {length} tokens",
    "pipeline": pipeline,
    "examples": count * BATCH,
    "examples per CPU second": count * BATCH / cpu,
    "tokens per CPU second": count * BATCH * length / cpu,
    "examples per second": count * BATCH / wall,
  }
