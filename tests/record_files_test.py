"""Records: JSON lines, plain and compressed, Parquet, Arrow."""

import gzip
import json

import pytest

from raptr_jax.tasks.text import record_files, text_files
from raptr_jax.tasks.text.sources import TextFolder

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

TEXTS = [f"Text {i}\nof  several\tlines. ÄÖ" for i in range(40)]
RECORDS = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
LINES = "".join(
  json.dumps(record, ensure_ascii=i % 2 == 0) + "\n"
  for i, record in enumerate(RECORDS)
).encode()


def write(path, ending):
  """A file with the records."""
  path.mkdir(parents=True, exist_ok=True)
  file = path / f"records{ending}"
  table = pa.table({"id": [*range(40)], "text": TEXTS})
  if ending == ".jsonl":
    file.write_bytes(LINES)
  elif ending == ".jsonl.gz":
    file.write_bytes(gzip.compress(LINES))
  elif ending == ".jsonl.zst":
    with pa.output_stream(str(file), compression="zstd") as stream:
      stream.write(LINES)
  elif ending == ".parquet":
    parquet.write_table(table, file, row_group_size=9)
  else:
    with pa.ipc.new_stream(str(file), table.schema) as stream:
      stream.write_table(table, max_chunksize=9)
  return file


@pytest.mark.parametrize("ending", record_files.ENDINGS)
def test_every_format_gives_back_its_texts(tmp_path, ending):
  write(tmp_path / "t", ending)
  source = TextFolder(str(tmp_path / "t"), 10, whitespace="keep")
  held_out = TEXTS[9::10]
  assert list(source.documents("validation")) == held_out
  assert list(source.documents("train")) == [
    text for text in TEXTS if text not in held_out
  ]
  collapsed = TextFolder(str(tmp_path / "t"), 10)
  assert next(collapsed.documents("train")) == "Text 0 of several lines. ÄÖ"


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_large_files_are_read_in_parts(tmp_path, monkeypatch, ending):
  write(tmp_path / "t", ending)
  monkeypatch.setattr(text_files, "RANGE_BYTES", 400)
  source = TextFolder(str(tmp_path / "t"), 2, whitespace="keep")
  assert source.num_parts() >= 4
  parts = [
    list(source.documents(split, part))
    for split in source.splits
    for part in range(source.num_parts())
  ]
  found = [text for part in parts for text in part]
  assert sorted(found) == sorted(TEXTS)
  assert all(len(part) < 12 for part in parts)


@pytest.mark.parametrize("ending", record_files.ENDINGS)
def test_another_column_is_named(tmp_path, ending):
  file = write(tmp_path / "t", ending)
  source = TextFolder(str(tmp_path / "t"), 10, column="body")
  with pytest.raises(
    ValueError, match=rf"{file.name}.* no TEXT_COLUMN='body', only .*'text'"
  ):
    list(source.documents("train"))
  assert "text of body" in source.description()
  source = TextFolder(str(tmp_path / "t"), 10, column="id")
  with pytest.raises(
    ValueError, match=rf"{file.name} has 0 in TEXT_COLUMN='id', expected a text"
  ):
    list(source.documents("train"))


@pytest.mark.parametrize("ending", record_files.ENDINGS)
def test_a_file_that_was_cut_short_is_named(tmp_path, ending):
  file = write(tmp_path / "t", ending)
  data = file.read_bytes()
  file.write_bytes(data[: len(data) * 2 // 3])
  source = TextFolder(str(tmp_path / "t"), 2)
  with pytest.raises(ValueError, match=rf"{file.name} cannot be read.*GLOB"):
    list(source.documents("train"))


def test_records_without_text_are_skipped(tmp_path):
  lines = [
    '{"text": null}',
    "",
    '{"text": ""}',
    '{"text": "a"}',
    '{"text": "b"}',
  ]
  (tmp_path / "a.jsonl").write_text("\n".join(lines))
  assert list(record_files.texts(tmp_path / "a.jsonl", "text")) == ["a", "b"]
  (tmp_path / "a.jsonl").write_text('["a"]\n')
  with pytest.raises(ValueError, match=r"a.jsonl, byte 0, has no TEXT_COLUMN"):
    list(record_files.texts(tmp_path / "a.jsonl", "text"))


def test_a_set_of_hugging_face_on_disk_is_read(tmp_path):
  # As `datasets` writes it: Arrow streams, and JSON files about them.
  write(tmp_path / "t", ".arrow")
  for name in ("state.json", "dataset_info.json"):
    (tmp_path / "t" / name).write_text('{"splits": {}}')
  source = TextFolder(
    str(tmp_path / "t"), 10, glob="**/*.arrow", whitespace="keep"
  )
  assert len(list(source.documents("train"))) == 36
