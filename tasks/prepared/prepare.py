"""Prepares a task: writes its vocabulary, token rows and counts.

An interrupted preparation resumes, and ends with the same files as one that was
never interrupted. If its settings have changed since, it starts over; finished
data is never deleted.
"""

import contextlib
import dataclasses
import itertools
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from raptr_jax.tasks import files
from raptr_jax.tasks.mixture import Mixture
from raptr_jax.tasks.objectives.packing import BLOCK_DOCUMENTS, Row
from raptr_jax.tasks.prepared import preview, records, state
from raptr_jax.tasks.progress import Progress
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text.sentencepiece_training import train_sentencepiece
from raptr_jax.tasks.text.vocabularies import SentencePieceVocabulary
from raptr_jax.tasks.text.vocabulary import (
  AtMost,
  Vocabulary,
  file_fingerprint,
)

Task = TypeVar("Task", TextTask, Mixture)

# A whole number of blocks, so that no shard depends on the one before.
SHARD_DOCUMENTS = 16 * BLOCK_DOCUMENTS
SHOW_SECONDS = 0.2  # Between updates on a terminal ...
LOG_SECONDS = 10.0  # ... and between lines of a log.
# On one core of a small machine, 10 MB of Python code took 13 s, or 37 s with
# white space kept; 8 MB without spaces, like Chinese, took 36 s. Training the
# vocabulary is most of it.
QUICK_BYTES = 8_000_000


def prepare(
  *,
  task: Task,
  feature_lengths: Mapping[str, int],
  data_dir: str,
) -> Task:
  """Writes the vocabulary, rows and token counts of a task; shows examples.

  After an interruption, the same call resumes.

  Args:
    task: what to prepare; every part of a mixture is prepared.
    feature_lengths: lengths of the features of a batch.
    data_dir: folder of all prepared tasks; the task gets its own folder in it.

  Returns:
    The task; its `vocabulary_size` is now the number of ids, even if it was an
    `AtMost`.

  Raises:
    FileNotFoundError: the text or the vocabulary does not exist.
    ValueError: a split is empty, the vocabulary does not suit the task, the
      text changes meanwhile, or the folder was prepared with other settings.
    BlockingIOError: another process is preparing the folder.
  """
  for part in task.parts:
    _prepare_part(part, feature_lengths, data_dir)
  return task.fitted(data_dir)


def _prepare_part(
  task: TextTask, feature_lengths: Mapping[str, int], data_dir: str
) -> None:
  folder = Path(data_dir).expanduser() / task.name
  limit = task.vocabulary_size
  if isinstance(limit, AtMost):
    size = records.fitted_vocabulary_size(
      name=task.name, data_dir=data_dir, at_most=limit
    )
    task = dataclasses.replace(task, vocabulary_size=size)
  # Fail now, not after hours of work.
  task.objective.row_length(feature_lengths)
  given = task.given_vocabulary()
  if given:
    task.objective.corruption(given, feature_lengths)
  num_documents = {s: _count_documents(task, s) for s in task.source.splits}
  settings = {
    **task.settings(feature_lengths),
    "num_documents": num_documents,
  }
  state.check_finished(folder, settings)
  if state.is_complete(folder):
    print(f"{folder} is complete")
    return
  print(f"preparing {folder}")
  for line in task.source.remarks():
    print(line)
  folder.mkdir(parents=True, exist_ok=True)
  with files.only_writer(folder, "preparing"):
    state.discard_unfinished(folder, settings)
    _provide_vocabulary(task, feature_lengths, folder, settings)
    _check_unchanged(task, settings, folder)
    task = task.fitted(data_dir)
    vocabulary = task.prepared_vocabulary(folder)
    ratios = {
      split: _write_split(
        task, vocabulary, feature_lengths, folder, split, count
      )
      for split, count in num_documents.items()
    }
    _check_unchanged(task, settings, folder)
    settings["vocabulary_size"] = vocabulary.size
    if isinstance(limit, AtMost):
      settings["vocabulary_limit"] = int(limit)
    _write_metadata(vocabulary, folder, settings)
  preview.print_table(records.load_metadata(folder), ratios)
  preview.print_examples(task, vocabulary, feature_lengths, folder)
  print(f"{folder} is complete")


def is_quick(task: TextTask | Mixture) -> bool:
  """Whether preparing takes less than a minute, with what is installed.

  Raises:
    FileNotFoundError: the text does not exist.
  """
  sizes = [part.source.num_bytes() for part in task.parts]
  known = [size for size in sizes if size is not None]
  return len(known) == len(sizes) and sum(known) <= QUICK_BYTES


def _count_documents(task: TextTask, split: str) -> int:
  count = task.source.num_documents(split)
  if not count:
    raise ValueError(
      f"the {split} split of {task.source.description()} has no documents: "
      f"choose a larger corpus for {task.name}"
    )
  return count


def _check_unchanged(
  task: TextTask, settings: Mapping[str, Any], folder: Path
) -> None:
  """Raises ValueError if the text is not what it was at the start."""
  if task.source.fingerprint() != settings.get("source_files"):
    raise ValueError(
      f"the files of the text changed while {folder} was being prepared: "
      "start again, with a --gin.DATA_DIR outside of the text's folder"
    )


def _provide_vocabulary(
  task: TextTask,
  feature_lengths: Mapping[str, int],
  folder: Path,
  settings: Mapping[str, Any],
) -> None:
  """Copies or trains the vocabulary, unless the folder has it."""
  path = folder / task.vocabulary_file
  if path.is_file():
    return
  with files.replacing(path) as partial:
    if task.vocabulary_path:
      shutil.copyfile(Path(task.vocabulary_path).expanduser(), partial)
    else:
      _train_vocabulary(task, feature_lengths, partial)
    # Before the vocabulary, so that its origin is never in doubt.
    state.note_unfinished(folder, settings, file_fingerprint(partial))
  state.check_finished(folder, settings)  # Its vocabulary may have been lost.


def _train_vocabulary(
  task: TextTask, feature_lengths: Mapping[str, int], path: Path
) -> None:
  bound = task.vocabulary_size
  fits = isinstance(bound, AtMost)
  limit = "at most " if fits else ""
  print(f"training a vocabulary of {limit}{bound:,} ids ...")
  train_sentencepiece(
    task.source.documents("train"),
    bound,
    path,
    extra_pieces=task.objective.extra_pieces(feature_lengths),
    keep_whitespace=task.source.keeps_whitespace,
  )
  size = SentencePieceVocabulary(str(path)).size
  if size < bound:
    print(
      f"VOCABULARY_SIZE: {size:,} ids, as many as this text supports (limit "
      f"{bound:,})"
    )


def _write_split(
  task: TextTask,
  vocabulary: Vocabulary,
  feature_lengths: Mapping[str, int],
  folder: Path,
  split: str,
  num_documents: int,
) -> float | None:
  """Writes the missing shards of a split.

  Returns:
    Characters per token in these shards; None if all were there.
  """
  shards = _shards(folder, split, num_documents)
  missing = list(itertools.dropwhile(Path.is_file, shards))
  if not missing:
    return None
  start = (len(shards) - len(missing)) * SHARD_DOCUMENTS
  with _Counter(split, num_documents, start) as counter:
    documents = counter.documents(task.source.documents(split, start))
    for path in missing:
      part = itertools.islice(documents, SHARD_DOCUMENTS)
      rows = task.rows(part, vocabulary, feature_lengths)
      records.write_shard(path, counter.rows(rows))
  return counter.characters_per_token


def _write_metadata(
  vocabulary: Vocabulary, folder: Path, settings: Mapping[str, Any]
) -> None:
  """Counts what was written, and marks the folder as complete."""
  splits = {}
  for split, documents in settings["num_documents"].items():
    shards = _shards(folder, split, documents)
    rows, counts = records.count_tokens(shards, vocabulary.size)
    if not rows:
      raise ValueError(
        f"the {split} split in {folder} has no tokens: provide more text"
      )
    splits[split] = records.SplitMetadata(
      documents=documents,
      shards=len(shards),
      rows=rows,
      tokens=int(counts.sum()),
    )
    if split == "train":
      counts[list(vocabulary.special_ids)] = 0
      records.write_counts(folder / records.UNIGRAM_COUNTS, counts)
  metadata = records.Metadata(
    settings=dict(settings),
    vocabulary_fingerprint=vocabulary.fingerprint(),
    special_ids=list(vocabulary.special_ids),
    splits=splits,
  )
  files.write_json(folder / records.METADATA, dataclasses.asdict(metadata))
  (folder / state.UNFINISHED).unlink(missing_ok=True)


def _shards(folder: Path, split: str, num_documents: int) -> list[Path]:
  """Paths of all shards of a split, written or not."""
  count = -(-num_documents // SHARD_DOCUMENTS)
  return [records.shard_path(folder, split, i) for i in range(count)]


class _Counter(contextlib.AbstractContextManager["_Counter"]):
  """Counts documents read and rows written, and shows progress."""

  def __init__(self, split: str, num_documents: int, done: int):
    """Starts at `done` of `num_documents`."""
    self._split, self._total = split, num_documents
    self._done = self._first = done
    self._rows = self._tokens = self._characters = 0
    self._began = self._shown = time.monotonic()
    self._progress = Progress(
      num_documents, done=done, unit="document", log_seconds=LOG_SECONDS
    )

  def __enter__(self) -> "_Counter":
    self._progress.__enter__()
    return self

  def __exit__(self, *error: object) -> None:
    self._show()
    self._progress.__exit__(*error)

  def documents(self, documents: Iterable[str]) -> Iterator[str]:
    """Passes documents through, counting them."""
    for document in documents:
      yield document
      self._done += 1
      self._characters += len(document)
      if time.monotonic() - self._shown >= SHOW_SECONDS:
        self._show()

  def rows(self, rows: Iterable[Row]) -> Iterator[Row]:
    """Passes rows through, counting them."""
    for row in rows:
      self._rows += 1
      self._tokens += len(row.tokens)
      yield row

  @property
  def characters_per_token(self) -> float:
    """Tokens include those that frame pieces of text."""
    return self._characters / max(self._tokens, 1)

  def _show(self) -> None:
    self._shown = time.monotonic()
    seconds = max(self._shown - self._began, 1e-3)
    speed = (self._done - self._first) / seconds
    self._progress.update(
      self._done,
      f"{self._split}: {self._rows:,} rows, {self._tokens:,} tokens",
      (self._total - self._done) / speed if speed else None,
    )
