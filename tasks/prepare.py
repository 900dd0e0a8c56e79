"""Prepares the records of a task: python scripts/prepare.py --gin_file=...

Takes the gin files and flags of `python -m raptr_jax.main` and writes the
token rows that this training reads, under --gin.DATA_DIR. Interrupted, it goes
on where it stopped when it is started again.
"""

import dataclasses
import itertools
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks import records
from tasks.mixture import Mixture
from tasks.packing import BLOCK_DOCUMENTS
from tasks.progress import Progress
from tasks.sentencepiece_training import train_sentencepiece
from tasks.task import TextTask
from tasks.vocabulary import Vocabulary

# A whole number of blocks, so that a shard needs nothing of the one before.
SHARD_DOCUMENTS = 16 * BLOCK_DOCUMENTS


def prepare(
  *,
  task: TextTask | Mixture,
  feature_lengths: Mapping[str, int],
  data_dir: str,
) -> None:
  """Writes the vocabulary, the rows and the token counts of a task.

  What is finished is not done again: the same call after an interruption
  gives the same files as one without.

  Args:
    task: what to prepare; of a mixture, all parts.
    feature_lengths: lengths of the features of a batch.
    data_dir: folder of all prepared tasks; the task's own lies in it.

  Raises:
    FileNotFoundError: the text or the vocabulary is not there.
    ValueError: a split is empty, the vocabulary does not suit, or the folder
      holds records that were prepared otherwise.
  """
  if isinstance(task, Mixture):
    for part in task.tasks:
      prepare(task=part, feature_lengths=feature_lengths, data_dir=data_dir)
    return
  folder = Path(data_dir).expanduser() / task.name
  # What is wrong should say so now, not after hours of work.
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
  with records.only_writer(folder):
    vocabulary = _provide_vocabulary(task, feature_lengths, folder, settings)
    for split, count in num_documents.items():
      _write_split(task, vocabulary, feature_lengths, folder, split, count)
    _write_metadata(task, vocabulary, folder, settings)
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
  """Raises ValueError if the folder holds what was prepared otherwise."""
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
  """Copies or trains the vocabulary, and notes what the folder will be."""
  path = folder / task.vocabulary_file
  unfinished: dict[str, Any] = {
    "settings": settings,
    "vocabulary_fingerprint": None,
  }
  if not path.is_file():
    # Said before the file is there: its origin is never in doubt.
    records.write_json(folder / records.UNFINISHED, unfinished)
    with records.replacing(path) as partial:
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
  records.write_json(folder / records.UNFINISHED, unfinished)
  return vocabulary


def _write_split(
  task: TextTask,
  vocabulary: Vocabulary,
  feature_lengths: Mapping[str, int],
  folder: Path,
  split: str,
  num_documents: int,
) -> None:
  """Writes the shards of a split that are not there yet."""
  shards = _shards(folder, split, num_documents)
  missing = list(itertools.dropwhile(Path.is_file, shards))
  if not missing:
    return
  start = (len(shards) - len(missing)) * SHARD_DOCUMENTS
  with Progress(f"{task.name} {split}", num_documents, start) as progress:
    documents = progress.documents(task.source.documents(split, start))
    for path in missing:
      part = itertools.islice(documents, SHARD_DOCUMENTS)
      rows = task.rows(part, vocabulary, feature_lengths)
      records.write_shard(path, progress.rows(rows))


def _write_metadata(
  task: TextTask,
  vocabulary: Vocabulary,
  folder: Path,
  settings: Mapping[str, Any],
) -> None:
  """Counts what was written and says what the folder holds: it is done."""
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
  records.write_json(folder / records.METADATA, dataclasses.asdict(metadata))
  (folder / records.UNFINISHED).unlink()


def _shards(folder: Path, split: str, num_documents: int) -> list[Path]:
  """Where all shards of a split lie, once they are written."""
  count = -(-num_documents // SHARD_DOCUMENTS)
  return [records.shard_path(folder, split, i) for i in range(count)]


def main(argv: Sequence[str] | None = None) -> None:
  """Runs `prepare` as the flags of the command line configure it."""
  # Only the program needs gin, jax and the rest of the training program.
  from gin.config import get_configurable

  from raptr_jax.main import ConfigurationError, configure

  try:
    configure(sys.argv[1:] if argv is None else argv, __doc__ or "")
    get_configurable(prepare)()
  except (ConfigurationError, ValueError, OSError, ImportError) as error:
    # The rest of the message is what gin adds about its own calls.
    sys.exit(f"error: {str(error).splitlines()[0]}")
