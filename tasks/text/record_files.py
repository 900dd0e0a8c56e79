"""Files of records that have a text each: JSON lines, Parquet and Arrow.

Arrow files are those in which Hugging Face's `datasets` keeps a set on disk.
"""

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from raptr_jax.tasks import extras
from raptr_jax.tasks.files import AnyPath

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".arrow")
ROWS_AT_ONCE = 1_000


class MissingColumnError(ValueError):
  """Records have no text in the column that is asked for."""


def is_records(name: str) -> bool:
  """Whether a file of this name has records, by its ending."""
  return name.endswith(ENDINGS)


def row_group_sizes(path: AnyPath) -> list[int]:
  """Bytes of each group of rows of a Parquet file, uncompressed."""
  parquet = extras.require("pyarrow.parquet")
  with (
    _naming(path),
    path.open("rb") as opened,
    parquet.ParquetFile(opened) as file,
  ):
    metadata = file.metadata
    return [
      metadata.row_group(group).total_byte_size
      for group in range(metadata.num_row_groups)
    ]


def texts(
  path: AnyPath, column: str, begin: int = 0, end: int | None = None
) -> Iterator[str]:
  """The texts of the records of a file, in order; those without are skipped.

  Args:
    path: its ending, one of `ENDINGS`, says what it is.
    column: name of the text in a record.
    begin: a byte at which a line of a `.jsonl` begins, or the first group of
      rows of a `.parquet`; 0 for other files.
    end: where to end, likewise; None for the end of the file.

  Raises:
    ModuleNotFoundError: the extra `data` is not installed.
    ValueError: the file is damaged, or its records have no such column.
  """
  if path.name.endswith(".parquet"):
    found = _parquet_texts(path, column, begin, end)
  elif path.name.endswith(".arrow"):
    found = _arrow_texts(path, column)
  else:
    found = _json_texts(path, column, begin, end)
  for text in found:
    if text is not None and not isinstance(text, str):
      raise MissingColumnError(
        f"{path} has {text!r} in TEXT_COLUMN={column!r}, expected a text: set "
        "--gin.TEXT_COLUMN"
      )
    if text:
      yield text


def _json_texts(
  path: AnyPath, column: str, begin: int, end: int | None
) -> Iterator[str]:
  with _naming(path), _opened(path) as file:
    if begin:
      file.seek(begin)
    place = begin
    while end is None or place < end:
      line = file.readline()
      if not line:
        return
      if not line.isspace():
        record = json.loads(line)
        if not isinstance(record, dict) or column not in record:
          raise _no_column(f"{path}, byte {place},", column, record)
        yield record[column]
      place += len(line)


@contextlib.contextmanager
def _opened(path: AnyPath) -> Iterator[Any]:
  """The bytes of a file, which may be compressed."""
  with path.open("rb") as file:
    if path.suffix == ".zst":
      arrow = extras.require("pyarrow")
      with arrow.input_stream(file, compression="zstd") as stream:
        yield io.BufferedReader(stream)
    elif path.suffix == ".gz":
      with gzip.open(file) as unpacked:
        yield unpacked
    else:
      yield file


def _parquet_texts(
  path: AnyPath, column: str, begin: int, end: int | None
) -> Iterator[str]:
  parquet = extras.require("pyarrow.parquet")
  with (
    _naming(path),
    path.open("rb") as opened,
    parquet.ParquetFile(opened) as file,
  ):
    names = file.schema_arrow.names
    if column not in names:
      raise _no_column(str(path), column, names)
    last = file.metadata.num_row_groups if end is None else end
    batches = file.iter_batches(
      ROWS_AT_ONCE, row_groups=list(range(begin, last)), columns=[column]
    )
    for batch in batches:
      yield from batch.column(0).to_pylist()


def _arrow_texts(path: AnyPath, column: str) -> Iterator[str]:
  arrow = extras.require("pyarrow")
  with _naming(path), path.open("rb") as file:
    reader = arrow.ipc.open_stream(file)
    if column not in reader.schema.names:
      raise _no_column(str(path), column, reader.schema.names)
    for batch in reader:
      yield from batch.column(column).to_pylist()


@contextlib.contextmanager
def _naming(path: AnyPath) -> Iterator[None]:
  """Names the file in what is raised because of its contents."""
  try:
    yield
  except (MissingColumnError, FileNotFoundError):
    raise
  except (EOFError, OSError, ValueError, zlib.error) as error:
    raise ValueError(
      f"{path} cannot be read ({error}): it may have been cut short; restore "
      "it, or leave it out by --gin.TEXT_GLOB"
    ) from error


def _no_column(where: str, column: str, found: Any) -> MissingColumnError:
  names = list(found) if isinstance(found, Iterable) else found
  return MissingColumnError(
    f"{where} has no TEXT_COLUMN={column!r}, only {names}: set "
    "--gin.TEXT_COLUMN"
  )
