"""Prepares a task: writes its vocabulary, token rows and counts.

An interrupted preparation resumes, and ends with the same files as one that was
never interrupted. If its settings have changed since, it starts over; finished
data is never deleted.
"""

import dataclasses
import functools
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from raptr_jax.tasks import files
from raptr_jax.tasks.files import AnyPath
from raptr_jax.tasks.mixture import Mixture
from raptr_jax.tasks.prepared import budget, parts, preview, records, state
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text.sentencepiece_training import train_sentencepiece
from raptr_jax.tasks.text.vocabularies import SentencePieceVocabulary
from raptr_jax.tasks.text.vocabulary import (
  AtMost,
  Vocabulary,
  file_fingerprint,
)

Task = TypeVar("Task", TextTask, Mixture)

# On one core of a small machine, 10 MB of Python code took 13 s, or 37 s with
# white space kept; 8 MB without spaces, like Chinese, took 36 s. Training the
# vocabulary is most of it.
QUICK_BYTES = 8_000_000


def prepare(
  *,
  task: Task,
  feature_lengths: Mapping[str, int],
  data_dir: str,
  workers: int = 1,
  run: parts.Run | None = None,
) -> Task:
  """Writes the vocabulary, rows and token counts of a task; shows examples.

  After an interruption, the same call resumes.

  Args:
    task: what to prepare; every part of a mixture is prepared.
    feature_lengths: lengths of the features of a batch.
    data_dir: folder of all prepared tasks; the task gets its own folder in it.
    workers: processes that tokenise. The files are the same for any number.
    run: where else to tokenise, such as `beam.on_beam`; None for `workers`.

  Returns:
    The task; its `vocabulary_size` is now the number of ids, even if it was an
    `AtMost`.

  Raises:
    FileNotFoundError: the text or the vocabulary does not exist.
    ValueError: a split is empty, the vocabulary does not suit the task, the
      text changes meanwhile, or the folder was prepared with other settings.
    BlockingIOError: another process is preparing the folder.
  """
  run = run or parts.in_processes(workers)
  for part in task.parts:
    _prepare_task(part, feature_lengths, data_dir, run)
  return task.fitted(data_dir)


def _prepare_task(
  task: TextTask,
  feature_lengths: Mapping[str, int],
  data_dir: str,
  run: parts.Run,
) -> None:
  folder = task.folder(data_dir)
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
  for split in task.source.splits:
    _check_documents(task, split)
  settings = task.settings(feature_lengths)
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
    count = _write_parts(task, feature_lengths, folder, run)
    _check_unchanged(task, settings, folder)
    settings["vocabulary_size"] = vocabulary.size
    if isinstance(limit, AtMost):
      settings["vocabulary_limit"] = int(limit)
    _write_metadata(task, vocabulary, folder, settings, count)
  preview.print_table(records.load_metadata(folder))
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


def _check_documents(task: TextTask, split: str) -> None:
  """Raises ValueError if a split has no documents."""
  if next(task.source.documents(split), None) is None:
    raise ValueError(
      f"the {split} split of {task.source.description()} has no documents: "
      f"choose a larger corpus for {task.name}"
    )


def _check_unchanged(
  task: TextTask, settings: Mapping[str, Any], folder: AnyPath
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
  folder: AnyPath,
  settings: Mapping[str, Any],
) -> None:
  """Copies or trains the vocabulary, unless the folder has it."""
  path = folder / task.vocabulary_file
  if path.is_file():
    return
  with files.replacing(path) as partial:
    if task.vocabulary_path:
      given = files.path("VOCABULARY_PATH", task.vocabulary_path)
      partial.write_bytes(given.read_bytes())
    else:
      _train_vocabulary(task, feature_lengths, partial)
    # Before the vocabulary is there, so that its origin is never in doubt.
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


def _write_parts(
  task: TextTask,
  feature_lengths: Mapping[str, int],
  folder: AnyPath,
  run: parts.Run,
) -> int:
  """Writes what is missing of a task; returns its number of parts."""
  if task.max_tokens is not None:
    was_complete = (folder / records.METADATA).is_file()
    write = budget.write_again if was_complete else budget.write
    return write(task, feature_lengths, folder, run)
  count = task.source.num_parts()
  parts.write_parts(task, feature_lengths, folder, count, run)
  return count


def _write_metadata(
  task: TextTask,
  vocabulary: Vocabulary,
  folder: AnyPath,
  settings: Mapping[str, Any],
  count: int,
) -> None:
  """Adds up what was written, and marks the folder as complete."""
  numbers = range(count)
  if (folder / records.METADATA).is_file():
    # What was lost is there again.
    for split, sizes in records.load_metadata(folder).splits.items():
      found = records.num_rows(
        records.shard_path(folder, split, part) for part in numbers
      )
      if found != sizes.rows:
        raise ValueError(
          f"the {split} split in {folder} has {found:,} rows, but had "
          f"{sizes.rows:,}: delete {folder} and prepare again"
        )
  else:
    _write_sums(task, vocabulary, folder, settings, count)
  for part in numbers:
    parts.tally_path(folder, part).unlink(missing_ok=True)
  (folder / state.UNFINISHED).unlink(missing_ok=True)


def _write_sums(
  task: TextTask,
  vocabulary: Vocabulary,
  folder: AnyPath,
  settings: Mapping[str, Any],
  count: int,
) -> None:
  """Writes the counts of tokens, and the metadata."""
  numbers = range(count)
  total = functools.reduce(
    operator.add, (parts.load_tally(folder, part) for part in numbers)
  )
  splits = {
    split: records.SplitMetadata(
      shards=len(numbers), **dict(zip(parts.SIZES, map(int, sizes)))
    )
    for split, sizes in zip(task.source.splits, total.sizes)
  }
  if task.max_tokens is not None:  # More was read than is there.
    splits = {
      name: dataclasses.replace(found, characters=None)
      for name, found in splits.items()
    }
  for split, found in splits.items():
    if not found.rows:
      raise ValueError(
        f"the {split} split in {folder} has no tokens: provide more text"
        + "".join(f", or set more than {limit}" for limit in task.limits)
      )
  total.counts[list(vocabulary.special_ids)] = 0
  records.write_counts(folder / records.UNIGRAM_COUNTS, total.counts)
  metadata = records.Metadata(
    settings=dict(settings),
    vocabulary_fingerprint=vocabulary.fingerprint(),
    special_ids=list(vocabulary.special_ids),
    splits=splits,
  )
  files.write_json(folder / records.METADATA, dataclasses.asdict(metadata))
