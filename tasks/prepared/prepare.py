"""Prepares a task: writes its vocabulary, token rows and counts.

An interrupted preparation resumes, and ends with the same files as one that was
never interrupted.
"""

import contextlib
import dataclasses
import itertools
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raptr_jax.tasks import files
from raptr_jax.tasks.mixture import Mixture
from raptr_jax.tasks.objectives.packing import BLOCK_DOCUMENTS, Row
from raptr_jax.tasks.prepared import records
from raptr_jax.tasks.progress import Progress
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text.sentencepiece_training import train_sentencepiece
from raptr_jax.tasks.text.vocabulary import Vocabulary

# A whole number of blocks, so that no shard depends on the one before.
SHARD_DOCUMENTS = 16 * BLOCK_DOCUMENTS
SHOW_SECONDS = 0.2  # Between updates on a terminal ...
LOG_SECONDS = 10.0  # ... and between lines of a log.


def prepare(
  *,
  task: TextTask | Mixture,
  feature_lengths: Mapping[str, int],
  data_dir: str,
) -> None:
  """Writes the vocabulary, rows and token counts of a task.

  After an interruption, the same call resumes.

  Args:
    task: what to prepare; every part of a mixture is prepared.
    feature_lengths: lengths of the features of a batch.
    data_dir: folder of all prepared tasks; the task gets its own folder in it.

  Raises:
    FileNotFoundError: the text or the vocabulary does not exist.
    ValueError: a split is empty, the vocabulary does not suit the task, or the
      folder was prepared with other settings.
    BlockingIOError: another process is preparing the folder.
  """
  if isinstance(task, Mixture):
    for part in task.tasks:
      prepare(task=part, feature_lengths=feature_lengths, data_dir=data_dir)
    return
  folder = Path(data_dir).expanduser() / task.name
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
  _check_folder(folder, settings)
  if _is_complete(folder):
    print(f"{folder} is complete")
    return
  folder.mkdir(parents=True, exist_ok=True)
  with files.only_writer(folder, "preparing"):
    vocabulary = _provide_vocabulary(task, feature_lengths, folder, settings)
    for split, count in num_documents.items():
      _write_split(task, vocabulary, feature_lengths, folder, split, count)
    _write_metadata(vocabulary, folder, settings)
  print(f"{folder} is complete")


def _count_documents(task: TextTask, split: str) -> int:
  count = task.source.num_documents(split)
  if not count:
    raise ValueError(
      f"the {split} split of {task.source.description()} has no documents: "
      f"choose a larger corpus for {task.name}"
    )
  return count


def _check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
  """Raises ValueError if the folder was prepared with other settings."""
  for name in (records.METADATA, records.UNFINISHED):
    if not (folder / name).is_file():
      continue
    found = json.loads((folder / name).read_text(encoding="utf-8"))
    records.check_settings(folder, found["settings"], settings)
    vocabulary = folder / settings["vocabulary_file"]
    if vocabulary.is_file() and found["vocabulary_fingerprint"]:
      records.check_vocabulary(vocabulary, found["vocabulary_fingerprint"])


def _is_complete(folder: Path) -> bool:
  try:
    metadata = records.load_metadata(folder)
    for split in metadata.splits:
      records.shard_paths(folder, split, metadata)
  except FileNotFoundError:
    return False
  names = (metadata.settings["vocabulary_file"], records.UNIGRAM_COUNTS)
  return all((folder / name).is_file() for name in names)


def _provide_vocabulary(
  task: TextTask,
  feature_lengths: Mapping[str, int],
  folder: Path,
  settings: Mapping[str, Any],
) -> Vocabulary:
  """Copies or trains the vocabulary, and records what the folder will hold."""
  path = folder / task.vocabulary_file
  unfinished: dict[str, Any] = {
    "settings": settings,
    "vocabulary_fingerprint": None,
  }
  if not path.is_file():
    # Written before the vocabulary, so that its origin is never in doubt.
    files.write_json(folder / records.UNFINISHED, unfinished)
    with files.replacing(path) as partial:
      if task.vocabulary_path:
        shutil.copyfile(Path(task.vocabulary_path).expanduser(), partial)
      else:
        print(f"training a vocabulary of {task.vocabulary_size:,} ids ...")
        train_sentencepiece(
          task.source.documents("train"),
          task.vocabulary_size,
          partial,
          extra_pieces=task.objective.extra_pieces(feature_lengths),
        )
  vocabulary = task.prepared_vocabulary(folder)
  unfinished["vocabulary_fingerprint"] = vocabulary.fingerprint()
  _check_folder(folder, settings)
  files.write_json(folder / records.UNFINISHED, unfinished)
  return vocabulary


def _write_split(
  task: TextTask,
  vocabulary: Vocabulary,
  feature_lengths: Mapping[str, int],
  folder: Path,
  split: str,
  num_documents: int,
) -> None:
  """Writes the missing shards of a split."""
  shards = _shards(folder, split, num_documents)
  missing = list(itertools.dropwhile(Path.is_file, shards))
  if not missing:
    return
  start = (len(shards) - len(missing)) * SHARD_DOCUMENTS
  with _Counter(f"{task.name} {split}", num_documents, start) as counter:
    documents = counter.documents(task.source.documents(split, start))
    for path in missing:
      part = itertools.islice(documents, SHARD_DOCUMENTS)
      rows = task.rows(part, vocabulary, feature_lengths)
      records.write_shard(path, counter.rows(rows))


def _write_metadata(
  vocabulary: Vocabulary, folder: Path, settings: Mapping[str, Any]
) -> None:
  """Counts what was written, and marks the folder as complete."""
  splits = {}
  for split, documents in settings["num_documents"].items():
    shards = _shards(folder, split, documents)
    rows, counts = records.count_tokens(shards, vocabulary.size)
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
  (folder / records.UNFINISHED).unlink()


def _shards(folder: Path, split: str, num_documents: int) -> list[Path]:
  """Paths of all shards of a split, written or not."""
  count = -(-num_documents // SHARD_DOCUMENTS)
  return [records.shard_path(folder, split, i) for i in range(count)]


class _Counter(contextlib.AbstractContextManager["_Counter"]):
  """Counts documents read and rows written, and shows progress."""

  def __init__(self, label: str, num_documents: int, done: int):
    """Starts at `done` of `num_documents`."""
    self._label, self._total = label, num_documents
    self._done = self._first = done
    self._rows = self._tokens = 0
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
      if time.monotonic() - self._shown >= SHOW_SECONDS:
        self._show()

  def rows(self, rows: Iterable[Row]) -> Iterator[Row]:
    """Passes rows through, counting them."""
    for row in rows:
      self._rows += 1
      self._tokens += len(row.tokens)
      yield row

  def _show(self) -> None:
    self._shown = time.monotonic()
    seconds = max(self._shown - self._began, 1e-3)
    speed = (self._done - self._first) / seconds
    self._progress.update(
      self._done,
      f"{self._label}: {self._rows:,} rows, {self._tokens:,} tokens,"
      f" {self._rows / seconds:,.0f} rows/s",
      (self._total - self._done) / speed if speed else None,
    )
