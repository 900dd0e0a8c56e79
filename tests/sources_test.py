import itertools
import re

import hypothesis
import hypothesis.strategies as st
import pytest

from raptr_jax.tasks.text import text_files
from raptr_jax.tasks.text.sources import (
  KJV_VALIDATION_BOOKS,
  KingJamesBible,
  TextFolder,
)


def test_every_chapter_of_the_king_james_bible_is_in_one_split():
  source = KingJamesBible()
  train = list(source.documents("train"))
  validation = list(source.documents("validation"))
  assert len(train) + len(validation) == 1_189
  assert not set(train) & set(validation)
  assert train[0].startswith("In the beginning God created the heaven and")
  assert train[-1].endswith("our Lord Jesus Christ be with you all. Amen.")
  assert validation[0].startswith("Now it came to pass in the days when the")


def test_king_james_bible_is_plain_running_text():
  for split in KingJamesBible().splits:
    for text in KingJamesBible().documents(split):
      assert not re.search(r"[\[\]\n]|  |^ | $", text), text[:80]


def test_about_a_twentieth_of_the_king_james_bible_is_held_out():
  source = KingJamesBible()
  sizes = {s: sum(map(len, source.documents(s))) for s in source.splits}
  assert 0.04 < sizes["validation"] / sum(sizes.values()) < 0.06
  assert all(
    name in source.description() for name in KJV_VALIDATION_BOOKS.values()
  )


TEXTS = {
  "a.txt": b"one\ntwo\n\n  three\n",
  "b.md": b"first\nline\n\n \n  second   passage \n\n",
  "sub/c.py": "\ufeffif x:\r\n\tpass\r\n".encode(),
}
SKIPPED = {
  ".git/config": (b"hidden", "hidden"),
  "empty.txt": (b" \n", "blank"),
  "latin.txt": ("schön".encode("latin-1"), "not UTF-8"),
  "photo.jpg": (b"\x89\x00\x01", "binary or UTF-16"),
}


def write(root, contents):
  for name, data in contents.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  return str(root)


@pytest.fixture
def folder(tmp_path):
  return write(tmp_path / "texts", TEXTS)


def both(source):
  """The documents of all splits."""
  return [t for split in source.splits for t in source.documents(split)]


@pytest.mark.parametrize(
  ("unit", "documents"),
  [
    ("file", ["one two three", "first line second passage", "if x: pass"]),
    (
      "paragraph",
      ["one two", "three", "first line", "second passage", "if x: pass"],
    ),
    (
      "line",
      ["one", "two", "three", "first", "line", "second passage", "if x:",
       "pass"],
    ),
  ],
)  # fmt: skip
def test_a_document_is_what_its_unit_says(folder, unit, documents):
  source = TextFolder(folder, validation_every=2, unit=unit)
  # In order of names, and every second one is held out.
  assert list(source.documents("train")) == documents[::2]
  assert list(source.documents("validation")) == documents[1::2]
  assert source.remarks() == (f"{folder}: 3 files read",)


@pytest.mark.parametrize(
  ("unit", "documents"),
  [
    ("file", ["one\ntwo\n\n  three\n", "if x:\n\tpass\n",
              "first\nline\n\n \n  second   passage \n\n"]),
    ("paragraph", ["one\ntwo", "first\nline", "if x:\n\tpass", "  three",
                   "  second   passage "]),
    ("line", ["one", "  three", "line", "if x:", "two", "first",
              "  second   passage ", "\tpass"]),
  ],
)  # fmt: skip
def test_white_space_can_be_kept(folder, unit, documents):
  source = TextFolder(folder, 2, unit, whitespace="keep")
  assert both(source) == documents
  assert source.keeps_whitespace


def test_what_is_not_text_is_skipped_and_named(folder, tmp_path):
  alone = both(TextFolder(folder, 2))
  write(tmp_path / "texts", {n: data for n, (data, _) in SKIPPED.items()})
  source = TextFolder(folder, 2)
  assert both(source) == alone
  (line,) = source.remarks()
  assert line == (
    f"{folder}: 3 files read, 4 skipped: .git/config (hidden), empty.txt "
    "(blank), latin.txt (not UTF-8) and 1 more"
  )
  for name, (_, reason) in SKIPPED.items():
    file = text_files.TextFile(name, tmp_path / "texts" / name, 1)
    assert text_files.why_skipped(file) == reason
  size = sum(map(len, TEXTS.values()))
  assert size < source.num_bytes() == size + 2 + 5 + 3  # Visible ones.


def test_a_character_may_straddle_what_is_read_at_once(
  folder, tmp_path, monkeypatch
):
  whole = both(TextFolder(folder, 2))
  write(tmp_path / "texts", {"d": b"good" + "schlecht ä".encode("latin-1")})
  monkeypatch.setattr(text_files, "READ_BYTES", 1)
  assert both(TextFolder(folder, 2)) == whole


def test_a_glob_and_a_single_file_choose_files(folder):
  chosen = TextFolder(folder, 2, glob="**/*.py", unit="line")
  assert both(chosen) == ["if x:", "pass"]
  single = TextFolder(f"{folder}/a.txt", 2, unit="line", glob="*.unused")
  assert both(single) == ["one", "three", "two"]
  assert single.fingerprint()


def test_hidden_files_do_not_change_the_fingerprint(folder, tmp_path):
  before = TextFolder(folder).fingerprint()
  write(tmp_path / "texts", {".DS_Store": b"x"})
  assert TextFolder(folder).fingerprint() == before
  write(tmp_path / "texts", {"new.txt": b"x"})
  assert TextFolder(folder).fingerprint() != before
  assert TextFolder("nowhere").fingerprint() is None


@pytest.mark.parametrize("unit", text_files.UNITS)
@pytest.mark.parametrize("held_out", ["document", "file"])
def test_parts_have_every_document_once(folder, monkeypatch, unit, held_out):
  whole = TextFolder(folder, 2, unit, held_out=held_out)
  assert whole.num_parts() == 1
  texts = both(whole)
  monkeypatch.setattr(text_files, "RANGE_BYTES", 6)
  source = TextFolder(folder, 2, unit, held_out=held_out)
  assert source.num_parts() > 2
  by_part = [
    text
    for split in source.splits
    for part in range(source.num_parts())
    for text in source.documents(split, part)
  ]
  assert both(source) == by_part
  assert sorted(by_part) == sorted(texts)
  if held_out == "file":
    assert by_part == texts  # Whatever the parts, the same file is held out.


@pytest.mark.parametrize("unit", ["line", "paragraph"])
def test_documents_begin_where_they_begin_from_wherever_one_looks(
  tmp_path, unit
):
  text = "one\r\ntwo\n  \n\nthrée \n four\n\nfive  "
  path = tmp_path / "a.txt"
  path.write_bytes(text.encode())
  starts = {
    "line": ["one", "two", "  \n", "\nthr", "thr", " four", "\nfive", "five"],
    "paragraph": ["one", "\nthr", "thr", "five"],
  }[unit]
  data = text.encode()
  places = [data.find(start.encode()) for start in starts]
  # A paragraph begins after a blank line.
  expected = sorted({0, *places, len(data)})
  for offset in range(len(data) + 1):
    found = text_files.document_start(path, offset, unit)
    assert found == min(p for p in expected if p >= offset), offset


@pytest.mark.parametrize("unit", text_files.UNITS)
def test_a_long_document_comes_in_pieces_of_one_split(
  tmp_path, monkeypatch, unit
):
  monkeypatch.setattr(text_files, "PIECE_CHARACTERS", 40)
  marks = [f"doc{i:02}" for i in range(7)]
  contents = {
    f"{mark}.txt": " ".join([f"{mark}."] * (20 + i)).encode()
    for i, mark in enumerate(marks)
  }
  source = TextFolder(write(tmp_path / "t", contents), 3, unit)
  found = {}
  for split in source.splits:
    pieces = list(source.documents(split))
    assert max(map(len, pieces)) <= 40
    found[split] = set(re.findall(r"doc\d+", " ".join(pieces)))
  assert found["validation"] == {"doc02", "doc05"}
  assert found["train"] == set(marks) - found["validation"]
  assert " ".join(source.documents("train")).split() == [
    f"{mark}."
    for i, mark in enumerate(marks)
    if mark in found["train"]
    for _ in range(20 + i)
  ]


@hypothesis.settings(deadline=None, derandomize=True)
@hypothesis.given(
  parts=st.lists(st.text(alphabet="ab. \n", max_size=60), max_size=8),
  size=st.integers(1, 30),
)
def test_pieces_are_the_text_however_it_is_read(parts, size):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text_files, "PIECE_CHARACTERS", size)
    pieces = list(text_files.cut(parts))
    assert "".join(pieces) == "".join(parts)
    assert all(1 <= len(piece) <= size for piece in pieces)
    assert list(text_files.cut(["".join(parts)])) == pieces


def test_a_cut_is_made_at_the_best_border():
  text = "one two. three\nfour\n\nfive six seven"
  assert text[: text_files.border(text, 5, 30)] == "one two. three\nfour\n\n"
  assert text[: text_files.border(text, 5, 18)] == "one two. three\n"
  assert text[: text_files.border(text, 3, 12)] == "one two. "
  assert text[: text_files.border(text, 22, 27)] == text[:26]
  assert text_files.border(text, 22, 24) == 24


def test_of_few_documents_the_one_nearest_to_the_share_is_held_out(tmp_path):
  sizes = {"a": 400, "b": 10, "c": 45, "d": 545}  # A 20th is 50.
  contents = {name: name.encode() * size for name, size in sizes.items()}
  source = TextFolder(write(tmp_path / "t", contents))
  assert [text[0] for text in source.documents("validation")] == ["c"]
  assert [text[0] for text in source.documents("train")] == ["a", "b", "d"]
  assert source.remarks()[1] == (
    "validation: document 3 of only 4, 4.5% of the text"
  )


@pytest.mark.parametrize("piece_characters", [100_000, 100])
def test_the_end_of_a_single_document_is_held_out(
  tmp_path, monkeypatch, piece_characters
):
  monkeypatch.setattr(text_files, "PIECE_CHARACTERS", piece_characters)
  text = "".join(f"Line {i} of one text.\n" for i in range(200))
  path = write(tmp_path / "t", {"a": text.encode()})
  source = TextFolder(path, whitespace="keep")
  train, held_out = (
    "".join(source.documents(split)) for split in source.splits
  )
  assert train + held_out == text
  assert train.endswith("\n")
  assert 0.05 <= len(held_out) / len(text) <= 0.1
  assert "end of the text" in source.remarks()[1]


def test_a_single_short_word_is_divided_too(tmp_path):
  source = TextFolder(write(tmp_path / "t", {"a": b"word"}))
  assert both(source) == ["wor", "d"]


def test_missing_folder_is_named(tmp_path):
  source = TextFolder(str(tmp_path / "nowhere"))
  for read in (source.num_bytes, lambda: source.documents("train")):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*--gin.TEXT_DIR"):
      read()


@pytest.mark.parametrize(
  ("contents", "glob", "message"),
  [
    ({"x.md": b"text"}, "*.txt", r"no file .*TEXT_GLOB='\*.txt'.*--gin.TEXT_"),
    ({"x": b"\x00"}, "**/*", r"TEXT_DIR=.* is text in UTF-8.*--gin.TEXT_DIR"),
    ({".x": b"text"}, "**/*", r"TEXT_DIR=.* is text in UTF-8"),
    ({}, "**/*", r"no file in TEXT_DIR="),
  ],
)
def test_a_folder_without_text_is_named(tmp_path, contents, glob, message):
  (tmp_path / "t").mkdir()
  source = TextFolder(write(tmp_path / "t", contents), glob=glob)
  with pytest.raises(FileNotFoundError, match=message):
    source.documents("train")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"unit": "page"}, r"TEXT_DOCUMENTS='page' must be one of .*'paragraph'"),
    ({"whitespace": "x"}, r"TEXT_WHITESPACE='x' must be one of"),
    ({"validation_every": 1}, r"validation_every=1"),
    ({"held_out": "line"}, r"TEXT_HELD_OUT='line' must be one of"),
  ],
)
def test_unknown_values_are_refused(folder, changes, message):
  with pytest.raises(ValueError, match=message):
    TextFolder(folder, **changes)


def test_a_file_can_be_held_out(folder):
  source = TextFolder(folder, 3, "line", held_out="file")
  assert list(source.documents("validation")) == ["if x:", "pass"]
  few = TextFolder(folder, 20, "line", held_out="file")
  (_, line) = few.remarks()
  assert line == "validation: file 3 of only 3, 19.6% of the text"
  assert list(few.documents("validation")) == ["if x:", "pass"]
  with pytest.raises(ValueError, match=r"at least two files.*TEXT_HELD_OUT"):
    TextFolder(f"{folder}/a.txt", 2, held_out="file").documents("train")


def test_large_files_are_checked_as_they_are_read(tmp_path, monkeypatch):
  monkeypatch.setattr(text_files, "CHECKED_BYTES", 4)
  monkeypatch.setattr(text_files, "READ_BYTES", 4)
  path = write(tmp_path / "t", {"a": b"good\nbad: \xff\n", "b": b"x"})
  with pytest.raises(ValueError, match=r"t/a is not text in UTF-8.*TEXT_GLOB"):
    both(TextFolder(path, 2, "line"))


@pytest.mark.parametrize("glob", ["", "/x", "**x"])
def test_what_is_no_glob_is_refused(folder, glob):
  with pytest.raises(ValueError, match=r"TEXT_GLOB='.*'.*--gin.TEXT_GLOB"):
    TextFolder(folder, glob=glob).documents("train")


def test_unknown_split_is_refused(folder):
  with pytest.raises(ValueError, match=r"'test' is not one of"):
    TextFolder(folder).documents("test")


def test_settings_tell_sources_apart(folder):
  values = itertools.product(
    text_files.UNITS, ("*", "**"), ("keep", "collapse")
  )
  found = {TextFolder(folder, 20, *v).description() for v in values}
  assert len(found) == 12
