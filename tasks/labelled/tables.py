"""Reads the original files of labelled tasks: tab-separated, without quotes."""

import csv
import gzip
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

PACKED: Mapping[str, Callable[..., IO[Any]]] = {
  ".gz": gzip.open,
  ".xz": lzma.open,
}


def find(folder: str, names: Sequence[str]) -> Path:
  """The first of these files in a folder, packed (.gz, .xz) or not.

  Raises:
    FileNotFoundError: there is none.
  """
  root = Path(folder).expanduser()
  paths = [root / f"{name}{end}" for name in names for end in ("", *PACKED)]
  for path in paths:
    if path.is_file():
      return path
  raise FileNotFoundError(
    f"none of {', '.join(str(root / name) for name in names)} exists: put the"
    " original file there, or set --gin.FINE_TUNING_DIR to the folder that has"
    " it"
  )


def rows(
  path: Path,
  columns: Sequence[str],
  headers: Mapping[int, tuple[str, ...]],
  *,
  skip_short: bool,
) -> Iterator[tuple[int, dict[str, str]]]:
  """Yields the number of each line, counted from 1, and its columns by name.

  Args:
    path: the file.
    columns: that it must have.
    headers: of files without one, by their number of columns.
    skip_short: whether lines that lack columns are left out.

  Raises:
    ValueError: a column is missing, or the file is no text.
  """
  opened = PACKED.get(path.suffix, open)
  try:
    with opened(path, "rt", encoding="utf-8", newline="") as file:
      lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
      header: Sequence[str] = ()
      for number, line in enumerate(lines, 1):
        if number == 1:
          header = _header(path, line, columns, headers)
          if list(header) == line:
            continue
        if len(line) >= len(header):
          yield number, dict(zip(header, line))
        elif not skip_short:
          raise ValueError(
            f"{path}, line {number} has {len(line)} columns, expected"
            f" {len(header)}: {', '.join(header)}"
          )
  except (EOFError, OSError, UnicodeDecodeError, lzma.LZMAError) as error:
    raise ValueError(f"{path} cannot be read ({error})") from error
  except csv.Error as error:
    raise ValueError(f"{path} is no table ({error})") from error


def _header(
  path: Path,
  line: Sequence[str],
  columns: Sequence[str],
  headers: Mapping[int, tuple[str, ...]],
) -> Sequence[str]:
  """The names of the columns of a file that begins with a line."""
  if set(columns) <= set(line):
    return line
  without = headers.get(len(line), ())
  if set(columns) <= set(without):
    return without
  missing = [name for name in columns if name not in line]
  raise ValueError(
    f"{path} has the columns {', '.join(line)[:200]}, but lacks"
    f" {', '.join(missing)}: expected the original file"
  )
