import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from raptr_jax.data.order import Order
from raptr_jax.data.prepared import PreparedDataset
from raptr_jax.tasks import extras
from raptr_jax.tasks.prepared import records
from raptr_jax.tasks.prepared.prepare import prepare
from raptr_jax.tasks.text import text_files
from tests.small_task import (
  LENGTHS,
  assert_batches_equal,
  make_task,
  take,
  write_corpus,
)

BATCH_SIZE = 16


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return write_corpus(tmp_path_factory.mktemp("data") / "corpus")


@pytest.fixture(scope="module")
def data_dir(corpus, tmp_path_factory):
  path = tmp_path_factory.mktemp("prepared")
  prepare(task=make_task(corpus), feature_lengths=LENGTHS, data_dir=str(path))
  return path


@pytest.fixture
def make(corpus, data_dir):
  def dataset(**changes):
    arguments = {
      "task": make_task(corpus),
      "data_dir": str(data_dir),
      "feature_lengths": LENGTHS,
      "batch_size": BATCH_SIZE,
      "seed": 3,
    }
    opened = PreparedDataset(**{**arguments, **changes})
    opened.open()
    return opened

  return dataset


def _originals(batch):
  """The rows of a batch, uncorrupted, as a list of tuples."""
  rows = batch["tokens"].copy()
  for row, places, targets, weights in zip(
    rows, batch["target_positions"], batch["targets"], batch["target_weights"]
  ):
    row[places[weights > 0]] = targets[weights > 0]
  return [tuple(row) for row in rows]


def _epoch(dataset, epoch):
  """Uncorrupted rows of an epoch, in their order."""
  size = dataset.num_examples
  first, last = (size * epoch) // BATCH_SIZE, (size * (epoch + 1)) // BATCH_SIZE
  batches = take(dataset, last - first + 1, start=first)
  rows = [row for batch in batches for row in _originals(batch)]
  begin = size * epoch - first * BATCH_SIZE
  return rows[begin : begin + size]


def test_batch_has_the_shapes_of_the_objective(make):
  (batch,) = take(make(), 1)
  shapes = {key: (value.shape, value.dtype) for key, value in batch.items()}
  assert shapes == {
    "tokens": ((16, 32), np.int32),
    "segment_ids": ((16, 32), np.int32),
    "positions": ((16, 32), np.int32),
    "target_positions": ((16, 5), np.int32),
    "targets": ((16, 5), np.int32),
    "target_weights": ((16, 5), np.float32),
  }


def test_spec_is_that_of_a_batch_and_needs_no_records(make, corpus):
  (batch,) = take(make(), 1)
  unprepared = PreparedDataset(
    task=make_task(corpus),
    data_dir="nowhere",
    feature_lengths=LENGTHS,
    batch_size=BATCH_SIZE,
    seed=0,
  )
  assert unprepared.num_examples is None
  spec = unprepared.batch_spec()
  assert spec.keys() == batch.keys()
  for key, value in batch.items():
    assert (spec[key].shape, spec[key].dtype) == (value.shape, value.dtype)


def test_every_epoch_has_every_row_once_in_an_order_of_its_own(make, data_dir):
  dataset = make()
  paths = sorted((data_dir / "small_bert").glob("train-*"))
  stored = [
    tuple(np.pad(row.tokens, (0, 32 - len(row.tokens))))
    for path in paths
    for row in records.read_shard(path)
  ]
  assert dataset.num_examples == len(stored) > 100
  epochs = [_epoch(dataset, epoch) for epoch in (0, 1)]
  for epoch in epochs:
    assert sorted(epoch) == sorted(stored)
    assert epoch != stored
  assert epochs[0] != epochs[1]
  assert _epoch(make(shuffle=False), 1) == stored


def test_masks_are_fresh_in_every_epoch(make):
  dataset = make(shuffle=False, batch_size=1)
  first, again = take(dataset, 1) + take(dataset, 1, dataset.num_examples)
  assert _originals(first) == _originals(again)
  assert (first["tokens"] != again["tokens"]).any()


@pytest.mark.parametrize("start", [1, 7, 40])
def test_starting_at_a_batch_is_skipping_those_before(make, start):
  whole = take(make(), start + 3)
  assert_batches_equal(take(make(), 3, start), whole[start:])


def test_a_batch_larger_than_an_epoch_reads_its_rows_again(make, capsys):
  whole = make(split="validation")
  size = whole.num_examples
  batch_size = 5 * size // 2
  assert "reads every row" not in capsys.readouterr().out
  large = make(split="validation", batch_size=batch_size)
  line = f"validation of small_bert: {size} rows, so each batch of {batch_size}"
  assert capsys.readouterr().out.count(line) == 1
  batches = take(large, 3)
  assert capsys.readouterr().out == ""  # Not for every batch.
  # Example i of batch b is at position b * batch_size + i, as ever.
  single = take(make(split="validation", batch_size=1), 3 * batch_size)
  for batch, start in zip(batches, range(0, 3 * batch_size, batch_size)):
    part = single[start : start + batch_size]
    joined = {key: np.concatenate([one[key] for one in part]) for key in batch}
    assert_batches_equal([batch], [joined])
  # By hand: two and a half epochs, each row with a corruption of its own.
  order = Order(seed=3, shuffle=True)
  located = [order.locate(p, size) for p in range(batch_size)]
  assert [e for e, _ in located] == [p // size for p in range(batch_size)]
  rows = _originals(batches[0])
  assert sorted(rows[:size]) == sorted(rows[size : 2 * size])
  assert_batches_equal(take(large, 1, 2), batches[2:])


def test_a_split_without_rows_is_refused(make, data_dir, corpus, tmp_path):
  shutil.copytree(data_dir, tmp_path / "copy")
  path = tmp_path / "copy" / "small_bert" / records.METADATA
  metadata = json.loads(path.read_text())
  metadata["splits"]["validation"]["rows"] = 0
  path.write_text(json.dumps(metadata))
  with pytest.raises(ValueError, match="validation split .* has no rows"):
    make(data_dir=str(tmp_path / "copy"), split="validation")


def test_starting_far_away_is_immediate(make):
  assert_batches_equal(take(make(), 1, 10**9), take(make(), 1, 10**9))


def test_seed_decides_order_and_masks(make):
  assert_batches_equal(take(make(), 3), take(make(), 3))
  (first,), (other,) = take(make(), 1), take(make(seed=4), 1)
  assert _originals(first) != _originals(other)
  first, other = (take(make(seed=seed, shuffle=False), 1)[0] for seed in (3, 4))
  assert _originals(first) == _originals(other)
  assert (first["tokens"] != other["tokens"]).any()


def test_hosts_read_the_parts_of_the_batch_of_one(make, monkeypatch):
  whole = take(make(), 40)  # More than an epoch.
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  parts = []
  for host in range(2):
    monkeypatch.setattr(jax, "process_index", lambda host=host: host)
    parts.append(take(make(), 40))
  assert parts[0][0]["tokens"].shape == (8, 32)
  joined = [
    {key: np.concatenate([left[key], right[key]]) for key in left}
    for left, right in zip(*parts)
  ]
  assert_batches_equal(joined, whole)


def test_processes_make_the_same_batches(make):
  whole = take(make(), 12)
  assert_batches_equal(take(make(workers=2), 5, start=7), whole[7:])


def test_evaluation_sees_the_same_batches_every_time(make):
  dataset = make(split="validation", shuffle=False)
  assert_batches_equal(take(dataset, 3), take(dataset, 3))


def test_counts_are_of_the_train_split(make, data_dir):
  counts = make(split="validation").unigram_counts
  expected = np.load(data_dir / "small_bert" / records.UNIGRAM_COUNTS)
  np.testing.assert_array_equal(counts, expected)


def test_hosts_must_share_a_batch_evenly(make, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 3)
  with pytest.raises(ValueError, match=r"BATCH_SIZE=16 .* hosts, 3"):
    make()


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"data_dir": "nowhere"}, r"raptr --run_mode=prepare.* the same flags"),
    ({"feature_lengths": {"inputs": 16}}, r"'inputs': 32.*'inputs': 16"),
    ({"batch_size": 0}, r"BATCH_SIZE=0"),
    ({"split": "test"}, r"'test' is not one of"),
    (
      {"data_dir": "ftp://b/d"},
      r"DATA_DIR='ftp://b/d' is an address.*expected",
    ),
    ({"seed": -1}, r"--gin.RANDOM_SEED"),
    ({"workers": -1}, r"DATA_WORKERS=-1 .* --gin.DATA_WORKERS"),
  ],
)
def test_what_does_not_fit_is_refused(make, changes, message):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    make(**changes)


def test_other_task_is_refused(make, corpus):
  with pytest.raises(ValueError, match=r"vocabulary_size=600.*=601"):
    make(task=make_task(corpus, vocabulary_size=601))


def test_records_suffice_when_the_given_vocabulary_is_gone(
  make, data_dir, corpus, tmp_path
):
  given = tmp_path / "given.model"
  given.write_bytes((data_dir / "small_bert/vocabulary.model").read_bytes())
  arguments = {
    "task": make_task(corpus, vocabulary_path=str(given)),
    "feature_lengths": LENGTHS,
    "data_dir": str(tmp_path),
  }
  prepare(**arguments)
  with_file = take(make(**arguments), 2)
  given.unlink()
  assert_batches_equal(take(make(**arguments), 2), with_file)


def test_replaced_vocabulary_is_refused(make, corpus, tmp_path):
  prepare(
    task=make_task(corpus), feature_lengths=LENGTHS, data_dir=str(tmp_path)
  )
  with (tmp_path / "small_bert" / "vocabulary.model").open("ab") as file:
    file.write(b"\x00")
  with pytest.raises(ValueError, match=r"not the vocabulary its rows"):
    make(data_dir=str(tmp_path))


def _halve(data):
  return data[: len(data) // 2]


def _flip(data):
  middle = len(data) // 2
  return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [_halve, lambda data: b"", _flip])
def test_a_damaged_shard_is_named(make, corpus, tmp_path, monkeypatch, damage):
  monkeypatch.setattr(text_files, "RANGE_BYTES", 20_000)
  task = make_task(corpus)
  prepare(task=task, feature_lengths=LENGTHS, data_dir=str(tmp_path))
  shard = tmp_path / task.name / "train-00001.array_record"
  whole = shard.read_bytes()
  shard.write_bytes(damage(whole))
  with pytest.raises(
    OSError, match=r"train-00001.array_record is damaged .*=prepare"
  ):
    dataset = make(data_dir=str(tmp_path))
    take(dataset, dataset.num_examples // BATCH_SIZE)
  shard.unlink()
  prepare(task=task, feature_lengths=LENGTHS, data_dir=str(tmp_path))
  assert shard.read_bytes() == whole


def test_shards_of_another_text_are_refused(make, corpus, tmp_path):
  task = make_task(corpus)
  prepare(task=task, feature_lengths=LENGTHS, data_dir=str(tmp_path))
  folder = tmp_path / task.name
  (folder / "train-00000.array_record").write_bytes(
    (folder / "validation-00000.array_record").read_bytes()
  )
  with pytest.raises(ValueError, match=r"rows, but metadata.json says"):
    make(data_dir=str(tmp_path))


@pytest.mark.parametrize("name", ["seqio", "tensorflow_datasets"])
def test_missing_extra_says_how_to_install_it(monkeypatch, name):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(
    ModuleNotFoundError, match=r"pip install 'raptr_jax\[data"
  ):
    extras.require(name)


def test_default_task_needs_none_of_the_extra_packages(tmp_path):
  program = f"""
import sys
for name in ("tensorflow", "seqio", "tensorflow_datasets", "tokenizers"):
  sys.modules[name] = None
from raptr_jax.data.order import Order
from raptr_jax.data.prepared import PreparedDataset
from raptr_jax.tasks.objectives.masked_lm import MaskedLM
from raptr_jax.tasks.prepared.prepare import prepare
from raptr_jax.tasks.text.sources import KingJamesBible
from raptr_jax.tasks.task import TextTask
task = TextTask(name="kjv", source=KingJamesBible(), objective=MaskedLM(),
                vocabulary_size=600)
shared = dict(task=task, data_dir={str(tmp_path)!r},
              feature_lengths={{"inputs": 128}})
prepare(**shared)
next(PreparedDataset(**shared, batch_size=4, seed=0).batches(0))
"""
  root = Path(__file__).resolve().parents[1]
  subprocess.run([sys.executable, "-c", program], cwd=root, check=True)
