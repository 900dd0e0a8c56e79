"""A small corpus and task for tests: real text, in files of a test's own."""

import itertools
import textwrap
from pathlib import Path

import numpy as np

from raptr_jax.tasks.objectives.masked_lm import MaskedLM
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text.sources import KingJamesBible, TextFolder

LENGTHS = {"inputs": 32}
VOCABULARY_SIZE = 600
BATCH_SIZE = 16


def write_corpus(folder: Path, num_documents: int = 120) -> Path:
  """So many chapters of unequal lengths, each in a text file of its own."""
  chapters = itertools.islice(
    KingJamesBible().documents("train"), num_documents
  )
  folder.mkdir(parents=True)
  for i, text in enumerate(chapters):
    beginning = text[: 100 + 37 * (i % 29)]
    (folder / f"{i:03}.txt").write_text(beginning, encoding="utf-8")
  return folder


def write_own_text(folder: Path) -> Path:
  """Three small files of text, as somebody may have: a poem, prose, code."""
  lines = next(KingJamesBible().documents("train")).split(". ")
  poem = "\n\n".join(f"{a},\n    {b}." for a, b in itertools.pairwise(lines))
  prose = textwrap.fill(". ".join(lines[5:15]), 60)
  code = Path(textwrap.__file__).read_text(encoding="utf-8")[:2_000]
  folder.mkdir(parents=True)
  for name, text in (("poem", poem), ("prose", prose), ("code.py", code)):
    (folder / name).write_text(text, encoding="utf-8")
  return folder


def make_task(corpus: Path, **changes) -> TextTask:
  """Masked language modelling on the files of a folder."""
  fields = {
    "name": "small_bert",
    "source": TextFolder(str(corpus), validation_every=6),
    "objective": MaskedLM(),
    "vocabulary_size": VOCABULARY_SIZE,
  }
  return TextTask(**{**fields, **changes})


def open_dataset(kind, data_dir, **changes):
  """A dataset of that kind, in order unless `changes` say otherwise."""
  arguments = {
    "data_dir": str(data_dir),
    "feature_lengths": LENGTHS,
    "batch_size": BATCH_SIZE,
    "seed": 3,
    "shuffle": False,
  }
  dataset = kind(**{**arguments, **changes})
  dataset.open()
  return dataset


def take(dataset, count: int, start: int = 0) -> list:
  """So many batches of a dataset, from number `start` on."""
  return list(itertools.islice(dataset.batches(start), count))


def assert_batches_equal(batches, expected) -> None:
  """Fails unless keys, types and values are the same, bit for bit."""
  assert len(batches) == len(expected)
  for batch, other in zip(batches, expected):
    assert batch.keys() == other.keys()
    for key, value in batch.items():
      assert value.dtype == other[key].dtype
      np.testing.assert_array_equal(value, other[key])
