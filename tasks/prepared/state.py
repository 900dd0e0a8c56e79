"""State of a task's folder: finished, unfinished, or with other settings.

`unfinished.json` holds the settings and the vocabulary's fingerprint until
`metadata.json` is written. Unfinished work with other settings is thrown away;
finished data is never deleted.
"""

import json
from collections.abc import Mapping
from typing import Any

from raptr_jax.tasks import files
from raptr_jax.tasks.files import AnyPath
from raptr_jax.tasks.prepared import records
from raptr_jax.tasks.text.vocabulary import file_fingerprint

UNFINISHED = "unfinished.json"


def is_complete(folder: AnyPath) -> bool:
  """Whether the folder has its metadata and all files that this names."""
  try:
    metadata = records.load_metadata(folder)
    for split in metadata.splits:
      records.shard_paths(folder, split, metadata)
  except FileNotFoundError:
    return False
  names = (metadata.settings["vocabulary_file"], records.UNIGRAM_COUNTS)
  return all((folder / name).is_file() for name in names)


def check_finished(folder: AnyPath, settings: Mapping[str, Any]) -> None:
  """Raises ValueError if the folder was prepared with other settings."""
  if not (folder / records.METADATA).is_file():
    return
  metadata = records.load_metadata(folder)
  records.check_settings(folder, metadata.settings, settings)
  vocabulary = folder / settings["vocabulary_file"]
  if vocabulary.is_file():
    records.check_vocabulary(vocabulary, metadata.vocabulary_fingerprint)


def note_unfinished(
  folder: AnyPath, settings: Mapping[str, Any], vocabulary_fingerprint: str
) -> None:
  """Records what the folder is going to hold."""
  value = {
    "settings": settings,
    "vocabulary_fingerprint": vocabulary_fingerprint,
  }
  files.write_json(folder / UNFINISHED, value)


def discard_unfinished(folder: AnyPath, settings: Mapping[str, Any]) -> None:
  """Removes what a preparation with other settings has left unfinished.

  A folder with metadata, or without a note of what it holds, is left alone.

  Raises:
    ValueError: the note is damaged.
  """
  unfinished = folder / UNFINISHED
  if (folder / records.METADATA).is_file() or not unfinished.is_file():
    return
  try:
    found = json.loads(unfinished.read_text(encoding="utf-8"))
    name = found["settings"]["vocabulary_file"]
    files.check_name("vocabulary_file", name)
    changed = records.difference(found["settings"], settings)
  except records.MALFORMED as error:
    raise ValueError(
      f"{unfinished} is damaged ({type(error).__name__}: {error}): delete "
      f"{folder} and prepare again"
    ) from error
  vocabulary = folder / name
  if not changed and (
    not vocabulary.is_file()
    or file_fingerprint(vocabulary) != found["vocabulary_fingerprint"]
  ):
    changed = f"another {vocabulary.name}"
  if changed:
    print(f"{folder}: was unfinished, with {changed}: starting over")
    for pattern in ("*.array_record", "part-*.npz"):
      for path in folder.glob(pattern):
        path.unlink()
    vocabulary.unlink(missing_ok=True)
    unfinished.unlink()  # Last, since it says what the rest is.
