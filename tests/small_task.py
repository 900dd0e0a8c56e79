"""A small corpus and task for tests: real text, in files of a test's own."""

import itertools
from pathlib import Path

import numpy as np

from raptr_jax.tasks.objectives.masked_lm import MaskedLM
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text.sources import KingJamesBible, TextFolder

LENGTHS = {"inputs": 32}
VOCABULARY_SIZE = 600


def write_corpus(folder: Path, num_documents: int = 120) -> Path:
  """Text files with so many chapters of unequal lengths."""
  chapters = itertools.islice(
    KingJamesBible().documents("train"), num_documents
  )
  texts = [text[: 100 + 37 * (i % 29)] for i, text in enumerate(chapters)]
  folder.mkdir(parents=True)
  half = num_documents // 2
  (folder / "a.txt").write_text("\n\n".join(texts[:half]), encoding="utf-8")
  (folder / "b.txt").write_text("\n".join(texts[half:]), encoding="utf-8")
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
