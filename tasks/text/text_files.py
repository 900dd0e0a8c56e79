"""Files of text: which ones there are, which to skip, and their documents."""

import codecs
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

UNITS = ("file", "paragraph", "line")
# Longer documents come in pieces, so that neither a piece nor its tokens take
# much memory, and a block of documents to pack is not a whole library. A piece
# still fills dozens of rows, so few rows end at a cut.
PIECE_CHARACTERS = 100_000
READ_BYTES = 1 << 20
BORDERS = ("\n\n", "\n", ". ", " ")  # Where to cut, the best first.


class TextFile(NamedTuple):
  """A file, and its name below the folder it was found in."""

  name: str
  path: Path

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
  root = Path(directory).expanduser()
  if root.is_file():
    return [TextFile(root.name, root)]
  if not root.is_dir():
    raise FileNotFoundError(
      f"TEXT_DIR={directory!r} does not exist: set --gin.TEXT_DIR to a folder "
      "of text files, or to one file"
    )
  try:
    paths = [path for path in root.glob(glob) if path.is_file()]
  except (NotImplementedError, ValueError) as error:
    raise ValueError(
      f"TEXT_GLOB={glob!r} must be a pattern of file names below TEXT_DIR "
      f"({error}): set --gin.TEXT_GLOB, such as \"'**/*.txt'\""
    ) from error
  if not paths:
    raise FileNotFoundError(
      f"no file in TEXT_DIR={directory!r} matches TEXT_GLOB={glob!r}: set "
      "--gin.TEXT_GLOB or --gin.TEXT_DIR"
    )
  files = (TextFile(path.relative_to(root).as_posix(), path) for path in paths)
  return sorted(files)


def why_skipped(file: TextFile) -> str | None:
  """Why a file is not read as text; None if it is. Reads all of it."""
  if file.is_hidden:
    return "hidden"
  decoder = codecs.getincrementaldecoder("utf-8-sig")()
  blank = True
  with file.path.open("rb") as opened:
    try:
      while data := opened.read(READ_BYTES):
        if b"\0" in data:
          return "binary or UTF-16"
        text = decoder.decode(data)  # Raises if it is not UTF-8.
        blank = blank and not text.strip()
      decoder.decode(b"", final=True)
    except UnicodeDecodeError:
      return "not UTF-8"
  return "blank" if blank else None


def read_documents(path: Path, unit: str) -> Iterator[Iterator[str]]:
  """The documents of a file of text, each as an iterator of its pieces.

  A piece has at most `PIECE_CHARACTERS`, white space as in the file. Joined,
  the pieces of a "file" are all of it; others lack the ends of their lines.

  Args:
    path: a file that is not to be skipped.
    unit: what a document is, one of `UNITS`; blank lines separate paragraphs,
      and a blank line is no document.
  """
  with path.open(encoding="utf-8-sig") as file:
    if unit == "file":
      yield cut(iter(lambda: file.read(READ_BYTES), ""))
      return
    for filled, lines in itertools.groupby(file, key=_is_filled):
      if filled and unit == "paragraph":
        yield (piece.rstrip("\n") for piece in cut(lines))
      elif filled:
        for line in lines:
          yield cut([line.rstrip("\n")])


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
