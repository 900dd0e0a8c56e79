import re

import pytest

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


@pytest.fixture
def folder(tmp_path):
  root = tmp_path / "texts"
  (root / "sub").mkdir(parents=True)
  (root / "b.txt").write_text("first\nline\n\n\n  second   passage \n\n")
  (root / "a.txt").write_text("one\ntwo\n  three\n")
  (root / "sub" / "c.txt").write_bytes("\ufeffälso\r\n".encode())
  (root / "notes.md").write_text("not read")
  return root


def test_text_folder_divides_at_blank_lines_else_at_lines(folder):
  source = TextFolder(str(folder), validation_every=3)
  # In order of paths: a.txt by lines, b.txt by blank lines, sub/c.txt.
  assert list(source.documents("train")) == [
    "one",
    "two",
    "first line",
    "second passage",
  ]
  assert list(source.documents("validation")) == ["three", "älso"]
  assert source.num_documents("train") == 4
  assert source.num_documents("validation") == 2


@pytest.mark.parametrize("split", ["train", "validation"])
def test_start_passes_over_documents(folder, split):
  for source in (TextFolder(str(folder), 3), KingJamesBible()):
    whole = list(source.documents(split))
    for start in (0, 1, len(whole) - 1, len(whole)):
      assert list(source.documents(split, start)) == whole[start:]


def test_missing_folder_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"nowhere.*--gin.TEXT_DIR"):
    TextFolder(str(tmp_path / "nowhere")).documents("train")


def test_folder_without_text_is_named(tmp_path):
  (tmp_path / "x.md").write_text("text")
  with pytest.raises(FileNotFoundError, match=r"no .txt file"):
    TextFolder(str(tmp_path)).documents("train")


def test_file_that_is_not_utf8_is_named(folder):
  (folder / "latin.txt").write_bytes("schön".encode("latin-1"))
  with pytest.raises(ValueError, match=r"latin.txt is not UTF-8"):
    list(TextFolder(str(folder)).documents("train"))


def test_unknown_split_and_useless_holdout_are_refused(folder):
  with pytest.raises(ValueError, match=r"'test' is not one of"):
    TextFolder(str(folder)).documents("test")
  with pytest.raises(ValueError, match=r"validation_every=1"):
    TextFolder(str(folder), validation_every=1)
