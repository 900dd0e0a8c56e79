import numpy as np
import pytest

from raptr_jax.tasks import files
from raptr_jax.tasks.objectives.packing import Row
from raptr_jax.tasks.prepared import records
from raptr_jax.tasks.task import NotPreparedError


def _rows(count):
  rng = np.random.default_rng(0)
  rows = []
  for i in range(count):
    lengths = rng.integers(1, 9, size=1 + i % 4).astype(np.int32)
    tokens = rng.integers(0, 2**31 - 1, size=lengths.sum(), dtype=np.int32)
    rows.append(Row(tokens, lengths))
  return rows


def _lists(rows):
  return [(list(row.tokens), list(row.segment_lengths)) for row in rows]


def test_row_as_bytes_by_hand():
  row = Row(np.array([7, 300], np.int32), np.array([2], np.int32))
  record = records.encode_row(row)
  assert record == bytes([1, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 44, 1, 0, 0])
  assert _lists([records.decode_row(record)]) == [([7, 300], [2])]


@pytest.mark.parametrize(
  "record",
  [
    b"",
    b"\x01\0\0\0\x03\0\0\0\x07\0\0\0",
    b"\xff" * 8,
    b"123",
    b"\x05\0\0\0",
    b"\x02\0\0\0\xff\xff\xff\xff\x02\0\0\0\x07\0\0\0",
  ],
)
def test_what_is_no_row_is_refused(record):
  with pytest.raises(ValueError, match=r"not a row|multiple of element size"):
    records.decode_row(record)


@pytest.mark.parametrize("ids", [[7, 320], [-1, 0]])
def test_ids_beyond_the_vocabulary_are_named(ids):
  row = Row(np.array(ids, np.int32), np.array([2], np.int32))
  with pytest.raises(ValueError, match=f"{ids[0]} to {ids[1]}.* 0 to 319"):
    records.check_ids(row, 320)


@pytest.mark.parametrize("count", [0, 1, records.ROWS_AT_ONCE + 1])
def test_shard_gives_back_its_rows(tmp_path, count):
  path = tmp_path / "train-00000.array_record"
  rows = _rows(count)
  records.write_shard(path, rows)
  assert _lists(records.read_shard(path)) == _lists(rows)
  assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_interrupted_shard_does_not_exist(tmp_path):
  def rows():
    yield from _rows(5)
    raise KeyboardInterrupt

  path = tmp_path / "train-00000.array_record"
  with pytest.raises(KeyboardInterrupt):
    records.write_shard(path, rows())
  assert not path.exists()


def test_a_row_is_found_by_its_number(tmp_path):
  rows = _rows(7)
  paths = [tmp_path / name for name in "abc"]
  for path, part in zip(paths, (rows[:3], [], rows[3:])):
    records.write_shard(path, part)
  found = [records.read_row(paths, index) for index in range(7)]
  assert _lists(found) == _lists(rows)
  with pytest.raises(IndexError):
    records.read_row(paths, 7)


def test_rows_are_counted(tmp_path):
  paths = [tmp_path / "a", tmp_path / "b"]
  for path, count in zip(paths, (3, 0)):
    records.write_shard(path, _rows(count))
  assert records.num_rows(paths) == 3


def test_difference_in_settings_is_named(tmp_path):
  found = {"task": "x", "vocabulary_size": 5, "more": 1}
  records.check_settings(tmp_path, found, {"task": "x", "vocabulary_size": 5})
  with pytest.raises(
    ValueError,
    match=r"vocabulary_size=5, but now vocabulary_size=6"
    r".*--gin.MIXTURE_OR_TASK_NAME or --gin.DATA_DIR, or delete",
  ):
    records.check_settings(tmp_path, found, {"vocabulary_size": 6})


def test_folder_that_is_not_prepared_says_how(tmp_path):
  with pytest.raises(NotPreparedError, match=r"raptr --run_mode=prepare"):
    records.load_metadata(tmp_path)


def test_folder_of_another_version_says_what_to_do(tmp_path):
  value = {"settings": {"version": 0}, "more": 1}
  files.write_json(tmp_path / records.METADATA, value)
  with pytest.raises(ValueError, match=r"version 0.*delete .* prepare again"):
    records.load_metadata(tmp_path)
