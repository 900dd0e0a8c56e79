"""Files of text: which ones there are, which to skip, and their documents."""

import codecs
import io
import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from raptr_jax.tasks import files
from raptr_jax.tasks.files import AnyPath
from raptr_jax.tasks.text import record_files

UNITS = ("file", "paragraph", "line")
# Longer documents come in pieces, so that neither a piece nor its tokens take
# much memory, and a block of documents to pack is not a whole library. A piece
# still fills dozens of rows, so few rows end at a cut.
PIECE_CHARACTERS = 100_000
READ_BYTES = 1 << 20
CHECKED_BYTES = 1 << 24  # Enough to see that a file is text.
RANGE_BYTES = 1 << 25  # A few seconds of work.
LOOK_BACK = 1 << 16  # Longer lines are not blank.
BORDERS = ("\n\n", "\n", ". ", " ")  # Where to cut, the best first.


class TextFile(NamedTuple):
  """A file, its name below the folder it was found in, and its bytes."""

  name: str
  path: AnyPath
  size: int

  @property
  def is_hidden(self) -> bool:
    """Whether its name, or that of a folder around it, begins with a dot."""
    return any(part.startswith(".") for part in self.name.split("/"))


def find_files(directory: str, glob: str) -> list[TextFile]:
  """All files that match, hidden ones too, ordered by name.

  Args:
    directory: a folder; or a file, which is then the only one.
    glob: pattern of names below the folder.

  Raises:
    FileNotFoundError: there is no such folder or file, or no file matches.
    ValueError: `glob` is not a pattern.
  """
  root = files.path("TEXT_DIR", directory)
  if root.is_file():
    return [TextFile(root.name, *files.sized(root))]
  if not root.is_dir():
    raise FileNotFoundError(
      f"TEXT_DIR={directory!r} does not exist: set --gin.TEXT_DIR to a folder "
      "of text files, or to one file"
    )
  try:
    found = files.find(root, glob)
  except (NotImplementedError, ValueError) as error:
    raise ValueError(
      f"TEXT_GLOB={glob!r} must be a pattern of file names below TEXT_DIR "
      f"({error}): set --gin.TEXT_GLOB, such as \"'**/*.txt'\""
    ) from error
  if not found:
    raise FileNotFoundError(
      f"no file in TEXT_DIR={directory!r} matches TEXT_GLOB={glob!r}: set "
      "--gin.TEXT_GLOB or --gin.TEXT_DIR"
    )
  return sorted(
    TextFile(path.relative_to(root).as_posix(), path, size)
    for path, size in found
  )


def why_skipped(file: TextFile) -> str | None:
  """Why a file is not read as text; None if it is.

  A file of records is read whatever is in it. Of other large files, only the
  beginning is looked at.
  """
  if file.is_hidden:
    return "hidden"
  if record_files.is_records(file.name):
    return None
  decoder = codecs.getincrementaldecoder("utf-8-sig")()
  blank = True
  with file.path.open("rb") as opened:
    try:
      while data := opened.read(READ_BYTES):
        if b"\0" in data:
          return "binary or UTF-16"
        text = decoder.decode(data)  # Raises if it is not UTF-8.
        blank = blank and not text.strip()
        if opened.tell() >= CHECKED_BYTES and not blank:
          return None
      decoder.decode(b"", final=True)
    except UnicodeDecodeError:
      return "not UTF-8"
  return "blank" if blank else None


class FileRange(NamedTuple):
  """Documents of a file that can be read without those before them.

  Attributes:
    file: the file.
    number: of the file, among all that are read.
    begin: where its first document begins: a byte, or a group of Parquet rows.
    end: where the next range begins; None for the end of the file.
    size: bytes, about.
  """

  file: TextFile
  number: int
  begin: int
  end: int | None
  size: int

  def documents(self, unit: str, column: str) -> Iterator[Iterator[str]]:
    """The documents, each as an iterator of its pieces.

    A piece has at most `PIECE_CHARACTERS`, white space as in the file. Joined,
    the pieces of a "file" are all of it; others lack the ends of their lines.

    Args:
      unit: what a document is, one of `UNITS`; blank lines separate
        paragraphs, and a blank line is no document. Records are documents.
      column: name of the text in records.

    Raises:
      ValueError: the file cannot be read, or its records lack the column.
    """
    path = self.file.path
    if record_files.is_records(self.file.name):
      texts = record_files.texts(path, column, self.begin, self.end)
      return (cut([text]) for text in texts)
    return _documents(path, unit, self.begin, self.end)


def ranges(file: TextFile, number: int, unit: str) -> Iterator[FileRange]:
  """Divides a file into ranges of about `RANGE_BYTES`.

  A document is in the range in which it begins. A file that is one document,
  or compressed, is one range.
  """
  path, size = file.path, file.size
  if file.name.endswith(".parquet"):
    groups = record_files.row_group_sizes(path)
    for group, group_size in enumerate(groups):
      yield FileRange(file, number, group, group + 1, group_size)
    return
  if record_files.is_records(file.name):
    unit = "line" if file.name.endswith(".jsonl") else "file"
  if size <= RANGE_BYTES or unit == "file":
    yield FileRange(file, number, 0, None, size)
    return
  begins = [
    *(
      document_start(path, offset, unit)
      for offset in range(0, size, RANGE_BYTES)
    ),
    size,
  ]
  for begin, end in itertools.pairwise(begins):
    if begin < end:
      yield FileRange(file, number, begin, end, end - begin)


def document_start(path: AnyPath, offset: int, unit: str) -> int:
  """The first byte, from `offset` on, at which a document may begin.

  Args:
    path: a file of text.
    offset: a byte of it.
    unit: "line" or "paragraph".
  """
  if not offset:
    return 0
  with path.open("rb") as file:
    file.seek(max(offset - LOOK_BACK, 0))
    before = file.read(offset - file.tell())
    line = before[before.rfind(b"\n", 0, -1) + 1 :]  # It ends before offset,
    if not line.endswith(b"\n"):
      line += file.readline()  # or goes on.
    while unit == "paragraph" and line and not line.isspace():
      line = file.readline()
    return file.tell()


def _documents(
  path: AnyPath, unit: str, begin: int, end: int | None
) -> Iterator[Iterator[str]]:
  """The documents of a range of a file of text."""
  encoding = "utf-8" if begin else "utf-8-sig"
  with _Span(path, begin, end) as span:
    file = io.TextIOWrapper(io.BufferedReader(span), encoding)
    if unit == "file":
      yield cut(_checked(path, iter(lambda: file.read(READ_BYTES), "")))
      return
    lines_of = itertools.groupby(_checked(path, file), key=_is_filled)
    for filled, lines in lines_of:
      if filled and unit == "paragraph":
        yield (piece.rstrip("\n") for piece in cut(lines))
      elif filled:
        for line in lines:
          yield cut([line.rstrip("\n")])


def _checked(path: AnyPath, texts: Iterable[str]) -> Iterator[str]:
  """Passes texts on, and names the file if they cannot be decoded."""
  try:
    yield from texts
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{path} is not text in UTF-8 ({error.reason} after its beginning): "
      "convert it (iconv -t UTF-8), or leave it out by --gin.TEXT_GLOB"
    ) from error


class _Span(io.RawIOBase):
  """The bytes of a file from `begin` to `end`."""

  def __init__(self, path: AnyPath, begin: int, end: int | None):
    self._file = path.open("rb")
    self._file.seek(begin)
    self._left = sys.maxsize if end is None else end - begin

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    data = self._file.read(min(len(buffer), self._left))
    buffer[: len(data)] = data
    self._left -= len(data)
    return len(data)

  def close(self) -> None:
    self._file.close()
    super().close()


def _is_filled(line: str) -> bool:
  return not line.isspace()


def cut(parts: Iterable[str]) -> Iterator[str]:
  """Joins the parts of a text, and cuts it into pieces at good borders."""
  rest = ""
  for part in parts:
    rest += part
    begin = 0
    while len(rest) - begin > PIECE_CHARACTERS:
      middle = begin + PIECE_CHARACTERS // 2
      end = border(rest, middle, begin + PIECE_CHARACTERS)
      yield rest[begin:end]
      begin = end
    rest = rest[begin:]
  if rest:
    yield rest


def border(text: str, least: int, most: int) -> int:
  """The last place from `least` to `most` to cut a text at.

  That is the end of a paragraph, else of a line, a sentence or a word; in a
  text without any, it is `most`.
  """
  for mark in BORDERS:
    found = text.rfind(mark, least, most)
    if found >= 0:
      return found + len(mark)
  return most


def cut_end(
  pieces: Iterable[str], size: int, share: int
) -> Iterator[tuple[bool, str]]:
  """Pieces of a document, each with whether it is in the document's end.

  Args:
    pieces: the document.
    size: its number of characters.
    share: n; the end begins at the last good border before the last n-th.
  """
  end_size = max(size // share, 1)
  offset = 0
  for piece in pieces:
    most = size - end_size - offset  # Where to cut this piece ...
    least = most - end_size  # ... or, for a good border, before.
    if most >= len(piece):
      yield False, piece
    elif most <= 0 or (least <= 0 and offset):  # It begins at a border.
      yield True, piece
    else:
      place = border(piece, max(least, 0), most)
      yield False, piece[:place]
      yield True, piece[place:]
    offset += len(piece)
