"""The files of a prepared task: rows in ArrayRecord shards, and metadata.

A task's folder holds `vocabulary.model` (or `.txt`), the shards
`train-00000.array_record`, ..., `validation-00000.array_record`, ...,
`unigram_counts.npy` (int64[V], token counts of the train split, 0 for special
ids) and `metadata.json`, which is written last.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from array_record.python import array_record_module

from raptr_jax.tasks import files
from raptr_jax.tasks.files import AnyPath, local_copy, replacing
from raptr_jax.tasks.objectives.packing import Row
from raptr_jax.tasks.task import ROWS_VERSION, NotPreparedError
from raptr_jax.tasks.text.vocabulary import AtMost, file_fingerprint

METADATA = "metadata.json"
UNIGRAM_COUNTS = "unigram_counts.npy"
ROWS_AT_ONCE = 4_096
# What reading JSON raises that is not what this program wrote.
MALFORMED = (AttributeError, KeyError, RecursionError, TypeError, ValueError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitMetadata:
  """Sizes of a split."""

  documents: int
  shards: int
  rows: int
  tokens: int
  characters: int | None = None  # Not known of older or cut ones.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
  """What a prepared folder holds.

  Attributes:
    settings: `TextTask.settings`, and the number of documents in each split.
    vocabulary_fingerprint: SHA-256 of the vocabulary that encoded the rows.
    special_ids: that vocabulary's `special_ids`.
    splits: sizes of each split.
  """

  settings: dict[str, Any]
  vocabulary_fingerprint: str
  special_ids: list[int]
  splits: dict[str, SplitMetadata]


def encode_row(row: Row) -> bytes:
  """Number of segments, their lengths, tokens; all as little-endian int32."""
  head = [len(row.segment_lengths)]
  parts = (head, row.segment_lengths, row.tokens)
  return np.concatenate(parts).astype("<i4").tobytes()


def decode_row(record: bytes) -> Row:
  """The row of a record, as read-only arrays.

  Raises:
    ValueError: it is none.
  """
  values = np.frombuffer(record, "<i4")
  begin = 1 + int(values[0]) if len(values) else 0
  row = Row(tokens=values[begin:], segment_lengths=values[1:begin])
  is_row = 0 < begin <= len(values) and row.segment_lengths.min(initial=1) > 0
  if not is_row or row.segment_lengths.sum() != len(row.tokens):
    raise ValueError("a record is not a row")
  return row


def check_ids(row: Row, num_ids: int) -> None:
  """Raises ValueError if a row has ids that a vocabulary does not have."""
  # Without a sign, negative ids are large ones.
  if row.tokens.view("<u4").max(initial=0) >= num_ids:
    raise ValueError(
      f"a row has ids from {row.tokens.min()} to {row.tokens.max()}, expected 0"
      f" to {num_ids - 1}"
    )


def shard_path(folder: AnyPath, split: str, number: int) -> AnyPath:
  """Path of shard `number` of a split."""
  return folder / f"{split}-{number:05}.array_record"


def split_metadata(
  folder: AnyPath, split: str, metadata: Metadata
) -> SplitMetadata:
  """The sizes of a split of a folder with this metadata.

  Raises:
    ValueError: it has no such split.
  """
  if split not in metadata.splits:
    raise ValueError(
      f"{folder / METADATA} has the splits {sorted(metadata.splits)}, expected "
      f"{split!r}, too: delete {folder} and prepare again"
    )
  return metadata.splits[split]


def shard_paths(
  folder: AnyPath, split: str, metadata: Metadata
) -> list[AnyPath]:
  """Paths of all shards of a split, in the order of their rows.

  Raises:
    NotPreparedError: a shard is missing.
  """
  paths: list[AnyPath] = []
  for number in range(split_metadata(folder, split, metadata).shards):
    path = shard_path(folder, split, number)
    if not path.is_file():
      raise NotPreparedError(f"{path} does not exist")
    paths.append(path)
  return paths


def num_rows(paths: Iterable[AnyPath]) -> int:
  """Number of rows in shards.

  Raises:
    OSError: a shard is damaged.
  """
  total = 0
  paths = list(paths)
  for path, copy in zip(paths, files.local_copies(paths)):
    try:
      reader = array_record_module.ArrayRecordReader(str(copy))
      total += reader.num_records()
      reader.close()
    except RuntimeError as error:
      raise damaged(path, error) from error
  return total


def damaged(path: AnyPath, error: RuntimeError | ValueError) -> OSError:
  """What to raise for a shard that cannot be read."""
  return OSError(
    f"{path} is damaged ({error}): delete it, and run the same command with "
    "--run_mode=prepare, which writes it again"
  )


def write_shard(path: AnyPath, rows: Iterable[Row]) -> None:
  """Writes a shard, whole or not at all.

  Raises:
    OSError: the disk is full, or fails.
  """
  with replacing(path) as partial:
    # One row per group, since rows are read singly, in any order.
    writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
    try:
      for row in rows:
        writer.write(encode_row(row))
      writer.close()
    except RuntimeError as error:  # What a writer raises, whatever the cause.
      raise OSError(
        f"{path} cannot be written: {str(error).split(';')[0]}. What is "
        "finished is kept: make room and start the same command again, or set "
        "another --gin.DATA_DIR"
      ) from error
    finally:
      # Closed or not; what cannot be closed is thrown away.
      with contextlib.suppress(RuntimeError):
        writer.close()


def read_shard(path: AnyPath) -> Iterator[Row]:
  """The rows of a shard, in order."""
  reader = array_record_module.ArrayRecordReader(str(local_copy(path)))
  try:
    count = reader.num_records()
    for begin in range(0, count, ROWS_AT_ONCE):
      end = min(begin + ROWS_AT_ONCE, count)
      yield from map(decode_row, reader.read(begin, end))
  finally:
    reader.close()


def check_shard(path: AnyPath, num_ids: int) -> None:
  """Reads all rows of a shard, each of which carries a hash.

  Args:
    path: of the shard.
    num_ids: V, the number of ids of its vocabulary.

  Raises:
    OSError: it is damaged.
  """
  try:
    for row in read_shard(path):
      check_ids(row, num_ids)
  except (RuntimeError, ValueError) as error:
    raise damaged(path, error) from error


def read_row(paths: Iterable[AnyPath], index: int) -> Row:
  """Row `index` of a split.

  Raises:
    IndexError: the shards have fewer rows.
  """
  for path in paths:
    reader = array_record_module.ArrayRecordReader(str(local_copy(path)))
    try:
      count = reader.num_records()
      if index < count:
        return decode_row(reader.read([index])[0])
    finally:
      reader.close()
    index -= count
  raise IndexError(index)


def write_counts(path: AnyPath, counts: np.ndarray) -> None:
  """Writes token counts, whole or not at all."""
  with replacing(path) as partial, partial.open("wb") as file:
    np.save(file, counts)


def load_counts(path: AnyPath) -> np.ndarray:
  """Reads token counts, int64[V]."""
  try:
    with path.open("rb") as file:
      counts: np.ndarray = np.load(file, allow_pickle=False)
  except (EOFError, ValueError) as error:
    raise ValueError(
      f"{path} holds no token counts: delete {path.parent} and prepare again"
    ) from error
  return counts


def load_metadata(folder: AnyPath) -> Metadata:
  """Reads the metadata of a complete folder.

  Raises:
    NotPreparedError: the folder is not prepared.
    ValueError: another version of this program prepared it, or it is damaged.
  """
  path = folder / METADATA
  if not path.is_file():
    raise NotPreparedError(f"{path} does not exist")
  try:
    fields = json.loads(path.read_text(encoding="utf-8"))
    version = fields["settings"].get("version")
    if version == ROWS_VERSION:
      splits = {
        name: SplitMetadata(**sizes) for name, sizes in fields["splits"].items()
      }
      found = Metadata(**{**fields, "splits": splits})
      files.check_name("vocabulary_file", found.settings["vocabulary_file"])
      return found
  except MALFORMED as error:
    raise ValueError(
      f"{path} is damaged ({type(error).__name__}: {error}): delete {folder} "
      "and prepare again"
    ) from error
  raise ValueError(
    f"{path} has version {version}, but this program reads version "
    f"{ROWS_VERSION}: delete {folder} and prepare again"
  )


def fitted_vocabulary_size(*, name: str, data_dir: str, at_most: int) -> int:
  """V of a vocabulary that is trained as large as the task's text allows.

  Whatever uses VOCABULARY_SIZE, the model included, gets the same number: the
  prepared vocabulary's, and the bound before the task is prepared.

  Args:
    name: name of the task.
    data_dir: folder of all prepared tasks.
    at_most: the bound.

  Returns:
    The size with which the task was prepared, if the bound would lead to it
    again; otherwise an `AtMost`.
  """
  try:
    metadata = load_metadata(files.path("DATA_DIR", data_dir) / name)
  except NotPreparedError:
    return AtMost(at_most)
  found: int = metadata.settings["vocabulary_size"]
  limit = metadata.settings.get("vocabulary_limit", at_most)
  # A size below its limit is all that the text supports.
  same = found <= at_most and (limit == at_most or found < limit)
  return found if same else AtMost(at_most)


def difference(
  found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> str | None:
  """The first setting that a folder has otherwise than the task."""
  # Those that limit the text are there only if they are set.
  for key in (*wanted, "max_tokens", "text_share"):
    value = wanted.get(key)
    if found.get(key) != value:
      return f"{key}={found.get(key)!r}, but now {key}={value!r}"
  return None


def check_settings(
  folder: AnyPath, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
  """Compares a folder's settings with those of the task.

  Raises:
    ValueError: they differ; the message names the first difference.
  """
  changed = difference(found, wanted)
  if changed:
    raise ValueError(
      f"{folder} was prepared with {changed}: undo that change, set another "
      "--gin.MIXTURE_OR_TASK_NAME or --gin.DATA_DIR, or delete "
      f"{folder} and prepare again"
    )


def check_vocabulary(path: AnyPath, expected: str) -> None:
  """Compares a prepared task's vocabulary with the one that encoded its rows.

  Args:
    path: the vocabulary in the task's folder.
    expected: SHA-256 of the vocabulary that encoded the rows.

  Raises:
    NotPreparedError: the vocabulary is missing.
    ValueError: it differs.
  """
  if not path.is_file():
    raise NotPreparedError(f"{path} does not exist")
  fingerprint = file_fingerprint(path)
  if fingerprint != expected:
    raise ValueError(
      f"{path} (SHA-256 {fingerprint[:12]}...) is not the vocabulary its "
      f"rows were encoded with ({expected[:12]}...): put that one back, "
      f"set another --gin.DATA_DIR, or delete {path.parent} and prepare again"
    )
