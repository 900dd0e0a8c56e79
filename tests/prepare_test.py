import dataclasses
import re
import resource
import shutil

import numpy as np
import pytest

from raptr_jax.main import prepare_main
from raptr_jax.tasks import files
from raptr_jax.tasks.prepared import parts, records
from raptr_jax.tasks.prepared import prepare as preparation
from raptr_jax.tasks.prepared.prepare import prepare
from raptr_jax.tasks.task import TextTask
from raptr_jax.tasks.text import sources, text_files
from raptr_jax.tasks.text.vocabulary import AtMost
from tests.small_task import LENGTHS, VOCABULARY_SIZE, make_task, write_corpus

RANGE_BYTES = 30_000  # Three parts.


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
  monkeypatch.setattr(text_files, "RANGE_BYTES", RANGE_BYTES)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return write_corpus(tmp_path_factory.mktemp("prepare") / "corpus")


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
  """A folder that was prepared without interruption."""
  data_dir = tmp_path_factory.mktemp("finished")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text_files, "RANGE_BYTES", RANGE_BYTES)
    _prepare(make_task(corpus), data_dir)
  return data_dir / "small_bert"


@pytest.fixture
def copy(finished, tmp_path):
  """A data folder of a test's own, with the finished task in it."""
  shutil.copytree(finished, tmp_path / "small_bert")
  return tmp_path


def _prepare(task, data_dir, lengths=LENGTHS):
  prepare(task=task, feature_lengths=lengths, data_dir=str(data_dir))


def _files(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def _rows(folder, split):
  paths = sorted(folder.glob(f"{split}-*"))
  return [
    (list(row.tokens), list(row.segment_lengths))
    for path in paths
    for row in records.read_shard(path)
  ]


def test_folder_holds_what_the_task_says(finished, corpus):
  assert sorted(_files(finished)) == [
    "metadata.json",
    "train-00000.array_record",
    "train-00001.array_record",
    "train-00002.array_record",
    "unigram_counts.npy",
    "validation-00000.array_record",
    "validation-00001.array_record",
    "validation-00002.array_record",
    "vocabulary.model",
  ]
  task = make_task(corpus)
  vocabulary = task.prepared_vocabulary(finished)
  assert vocabulary.size == VOCABULARY_SIZE
  for split in task.source.splits:
    # Part by part, since rows do not cross parts.
    expected = [
      (list(row.tokens), list(row.segment_lengths))
      for part in range(task.source.num_parts())
      for row in task.rows(
        task.source.documents(split, part), vocabulary, LENGTHS
      )
    ]
    assert _rows(finished, split) == expected


def test_metadata_and_counts_agree_with_the_rows(finished, corpus):
  metadata = records.load_metadata(finished)
  for split, sizes in metadata.splits.items():
    rows = _rows(finished, split)
    assert sizes.rows == len(rows)
    assert sizes.tokens == sum(len(tokens) for tokens, _ in rows)
    documents = list(make_task(corpus).source.documents(split))
    assert sizes.documents == len(documents)
    assert sizes.characters == sum(map(len, documents))
    assert sizes.shards == 3
  tokens = np.concatenate([tokens for tokens, _ in _rows(finished, "train")])
  expected = np.bincount(tokens, minlength=VOCABULARY_SIZE)
  assert expected[metadata.special_ids].sum() > 0
  expected[metadata.special_ids] = 0
  counts = np.load(finished / records.UNIGRAM_COUNTS)
  np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("rows_until_stop", [0, 1, 3, 4, 5])
def test_interruption_leaves_no_trace(
  finished, corpus, tmp_path, monkeypatch, rows_until_stop
):
  left = iter(range(rows_until_stop))
  rows = TextTask.rows

  def interrupted(self, *arguments):
    if next(left, None) is None:
      raise KeyboardInterrupt
    return rows(self, *arguments)

  folder = tmp_path / "small_bert"
  with monkeypatch.context() as patch:
    patch.setattr(TextTask, "rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
      _prepare(make_task(corpus), tmp_path)
  done = {path: path.stat().st_mtime_ns for path in folder.glob("*record")}
  assert len(done) == rows_until_stop
  whole = rows_until_stop // 2 * 2  # A part has a shard of each split.
  _prepare(make_task(corpus), tmp_path)
  assert _files(folder) == _files(finished)
  kept = [path.stat().st_mtime_ns == time for path, time in done.items()]
  assert sum(kept) == whole


def test_any_number_of_processes_writes_the_same_files(
  finished, corpus, tmp_path, capsys
):
  task = make_task(corpus)
  assert task.source.num_parts() == 3
  prepare(task=task, feature_lengths=LENGTHS, data_dir=str(tmp_path), workers=2)
  assert _files(tmp_path / "small_bert") == _files(finished)
  assert "part 3/3" in capsys.readouterr().out
  with pytest.raises(ValueError, match=r"workers=0 .* --workers"):
    prepare(
      task=task, feature_lengths=LENGTHS, data_dir=str(tmp_path), workers=0
    )


@pytest.mark.parametrize("max_tokens", [500, 5_000, 12_000])
def test_a_budget_takes_random_parts_and_cuts_the_last(
  finished, corpus, tmp_path, max_tokens, monkeypatch
):
  """Whoever writes them, and if they are interrupted."""
  given = str(finished / "vocabulary.model")
  task = make_task(corpus, vocabulary_path=given, max_tokens=max_tokens)
  for workers in (1, 2):
    folder = str(tmp_path / str(workers))
    if workers == 2:
      with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(preparation, "_write_metadata", _interrupt)
        prepare(task=task, feature_lengths=LENGTHS, data_dir=folder)
    prepare(
      task=task, feature_lengths=LENGTHS, data_dir=folder, workers=workers
    )
  one, two = (_files(tmp_path / n / "small_bert") for n in ("1", "2"))
  assert one == two
  folder = tmp_path / "1" / "small_bert"
  train = records.load_metadata(folder).splits["train"]
  assert max_tokens - LENGTHS["inputs"] < train.tokens <= max_tokens
  assert records.load_metadata(folder).splits["validation"].rows
  expected = [
    (list(row.tokens), list(row.segment_lengths))
    for part in (0, 2, 1)  # As their SHA-256 has it.
    for row in task.rows(
      task.source.documents("train", part), task.given_vocabulary(), LENGTHS
    )
  ]
  assert _rows(folder, "train") == expected[: train.rows]
  for lost in (0, train.shards - 1):  # The second was cut.
    (folder / f"train-{lost:05}.array_record").unlink()
    _prepare(task, tmp_path / "1")
    assert _files(folder) == two
  with pytest.raises(
    ValueError, match=f"prepared with max_tokens={max_tokens}"
  ):
    _prepare(dataclasses.replace(task, max_tokens=None), tmp_path / "1")


@pytest.mark.parametrize("max_tokens", [None, 3_000])
def test_a_share_takes_documents_and_leaves_validation_whole(
  finished, corpus, tmp_path, max_tokens
):
  given = str(finished / "vocabulary.model")
  task = make_task(
    corpus, vocabulary_path=given, text_share=0.5, max_tokens=max_tokens
  )
  for workers in (1, 2):
    prepare(
      task=task,
      feature_lengths=LENGTHS,
      data_dir=str(tmp_path / str(workers)),
      workers=workers,
    )
  folder = tmp_path / "1" / "small_bert"
  assert _files(folder) == _files(tmp_path / "2" / "small_bert")
  train = records.load_metadata(folder).splits["train"]
  if max_tokens:
    assert max_tokens - LENGTHS["inputs"] < train.tokens <= max_tokens
  else:
    assert _rows(folder, "validation") == _rows(finished, "validation")
    assert train.documents == len(list(task.documents("train")))
    (folder / "train-00001.array_record").unlink()
    _prepare(task, tmp_path / "1")
    assert _files(folder) == _files(tmp_path / "2" / "small_bert")
  parts = (0, 2, 1) if max_tokens else (0, 1, 2)
  share = set(task.documents("train"))
  expected = [
    (list(row.tokens), list(row.segment_lengths))
    for part in parts
    for row in task.rows(
      (text for text in task.source.documents("train", part) if text in share),
      task.given_vocabulary(),
      LENGTHS,
    )
  ]
  assert _rows(folder, "train") == expected[: train.rows]
  for other in (0.6, 1):
    with pytest.raises(ValueError, match=r"prepared with text_share=0\.5"):
      _prepare(dataclasses.replace(task, text_share=other), tmp_path / "1")


def test_shares_are_as_large_as_they_say_and_nested(tmp_path):
  path = tmp_path / "lines.txt"
  path.write_text("".join(f"This is line {i}.\n" for i in range(40_000)))
  source = sources.TextFolder(str(path), unit="line")
  whole = list(source.documents("train"))
  smaller: list[str] = []
  for share in (0.1, 0.2, 0.5, 1):
    task = make_task(path, source=source, text_share=share)
    taken = list(task.documents("train"))
    assert len(taken) == pytest.approx(
      share * len(whole), abs=0.01 * len(whole)
    )
    assert set(smaller) <= set(taken)
    smaller = taken
  assert taken == whole


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(corpus, share):
  with pytest.raises(ValueError, match=f"TEXT_SHARE={share} .*TEXT_SHARE$"):
    make_task(corpus, text_share=share)


def test_a_share_without_text_says_what_to_raise(finished, corpus, tmp_path):
  given = str(finished / "vocabulary.model")
  task = make_task(corpus, vocabulary_path=given, text_share=1e-9)
  with pytest.raises(
    ValueError, match="no tokens.* more than TEXT_SHARE=1e-09"
  ):
    _prepare(task, tmp_path)


def _interrupt(*args):
  raise KeyboardInterrupt


def test_a_budget_beyond_the_text_is_refused(finished, corpus, tmp_path):
  tokens = records.load_metadata(finished).splits["train"].tokens
  given = str(finished / "vocabulary.model")
  task = make_task(corpus, vocabulary_path=given, max_tokens=tokens + 100)
  with pytest.raises(
    ValueError, match=rf"MAX_TOKENS={tokens + 100:,}, .* only {tokens:,} tokens"
  ):
    _prepare(task, tmp_path)
  assert not (tmp_path / "small_bert" / records.METADATA).exists()
  with pytest.raises(ValueError, match="MAX_TOKENS=31, .* row of 32 tokens"):
    _prepare(dataclasses.replace(task, max_tokens=31), tmp_path)
  with pytest.raises(ValueError, match="MAX_TOKENS=0 must be at least 1"):
    make_task(corpus, max_tokens=0)


def test_a_disk_that_is_full_is_told_and_costs_nothing(
  finished, corpus, tmp_path, monkeypatch
):
  task = make_task(corpus, vocabulary_path=str(finished / "vocabulary.model"))
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  write = parts.write_parts

  def on_a_small_disk(*args):
    # Files of half a shard, as a full disk has them.
    size = (finished / "train-00001.array_record").stat().st_size // 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
      write(*args)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

  with monkeypatch.context() as patch:
    patch.setattr(parts, "write_parts", on_a_small_disk)
    with pytest.raises(
      OSError, match=r"train-0000.* cannot be written: .* --gin.DATA_DIR"
    ):
      _prepare(task, tmp_path)
  folder = tmp_path / "small_bert"
  assert not (folder / records.METADATA).exists()
  assert not list(folder.glob("*.partial"))
  _prepare(task, tmp_path)
  assert _rows(folder, "train") == _rows(finished, "train")


def test_finished_task_is_not_touched(copy, corpus, capsys):
  before = {p: p.stat().st_mtime_ns for p in (copy / "small_bert").iterdir()}
  _prepare(make_task(corpus), copy)
  assert "complete" in capsys.readouterr().out
  after = {p: p.stat().st_mtime_ns for p in (copy / "small_bert").iterdir()}
  assert before == after


def test_lost_shard_is_written_again(copy, finished, corpus):
  (copy / "small_bert" / "train-00002.array_record").unlink()
  _prepare(make_task(corpus), copy)
  assert _files(copy / "small_bert") == _files(finished)


def test_a_lost_shard_of_another_text_is_refused(copy, corpus, monkeypatch):
  (copy / "small_bert" / "train-00002.array_record").unlink()
  monkeypatch.setattr(TextTask, "rows", lambda *arguments: iter(()))
  with pytest.raises(ValueError, match=r"train split .* rows, but had"):
    _prepare(make_task(corpus), copy)


def test_given_vocabulary_is_copied(finished, corpus, tmp_path):
  path = tmp_path / "given.model"
  shutil.copyfile(finished / "vocabulary.model", path)
  _prepare(make_task(corpus, vocabulary_path=str(path)), tmp_path)
  folder = tmp_path / "small_bert"
  assert _rows(folder, "train") == _rows(finished, "train")
  assert _files(folder)["vocabulary.model"] == path.read_bytes()


def test_other_lengths_are_refused(copy, corpus):
  with pytest.raises(ValueError, match=r"'inputs': 32.*'inputs': 16.*DATA_DIR"):
    _prepare(make_task(corpus), copy, {"inputs": 16})


def test_other_source_is_refused(copy, corpus):
  other = sources.TextFolder(str(corpus), validation_every=7)
  with pytest.raises(ValueError, match=r"every 6th.*every 7th"):
    _prepare(make_task(corpus, source=other), copy)


def test_grown_corpus_is_refused(copy, corpus, tmp_path):
  moved = tmp_path / "corpus"
  shutil.copytree(corpus, moved)
  (moved / "z.txt").write_text("more\n\ntext")
  path = copy / "small_bert" / records.METADATA
  text = path.read_text().replace(str(corpus), str(moved))
  path.write_text(text)
  with pytest.raises(ValueError, match="source_files="):
    _prepare(make_task(moved), copy)


def test_other_vocabulary_size_is_refused(copy, corpus):
  with pytest.raises(ValueError, match=r"vocabulary_size=600.*=700"):
    _prepare(make_task(corpus, vocabulary_size=700), copy)


def test_other_vocabulary_is_refused(copy, corpus, tmp_path):
  model = copy / "small_bert" / "vocabulary.model"
  given = tmp_path / "given.model"
  shutil.copyfile(model, given)
  with pytest.raises(ValueError, match=r"given_vocabulary=None"):
    _prepare(make_task(corpus, vocabulary_path=str(given)), copy)
  model.write_bytes(model.read_bytes() + b"\x00")
  with pytest.raises(ValueError, match=r"not the vocabulary its rows"):
    _prepare(make_task(corpus), copy)


@pytest.fixture
def unfinished(corpus, tmp_path, monkeypatch):
  """A data folder whose task lacks its first shards, and its metadata."""

  def interrupted(*arguments):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(preparation, "_write_metadata", interrupted)
    with pytest.raises(KeyboardInterrupt):
      _prepare(make_task(corpus), tmp_path)
  (tmp_path / "small_bert" / "validation-00000.array_record").unlink()
  return tmp_path


def test_unfinished_work_with_the_same_settings_is_taken_up(
  unfinished, finished, corpus, capsys
):
  folder = unfinished / "small_bert"
  kept = folder / "train-00001.array_record"
  time = kept.stat().st_mtime_ns
  _prepare(make_task(corpus), unfinished)
  assert _files(folder) == _files(finished)
  assert kept.stat().st_mtime_ns == time
  assert "starting over" not in capsys.readouterr().out


@pytest.mark.parametrize(
  ("changes", "lengths", "reported"),
  [
    ({}, {"inputs": 16}, "'inputs': 32}, but now feature_lengths={'inputs'"),
    ({"vocabulary_size": 700}, LENGTHS, "=600, but now vocabulary_size=700"),
    ({"vocabulary_size": AtMost(600)}, LENGTHS, "vocabulary_size='at most 600"),
  ],
)
def test_unfinished_work_with_other_settings_is_thrown_away(
  unfinished, corpus, tmp_path_factory, capsys, changes, lengths, reported
):
  folder = unfinished / "small_bert"
  (folder / "mine.txt").write_text("not of the program's making")
  task = make_task(corpus, **changes)
  _prepare(task, unfinished, lengths)
  (line,) = (
    line
    for line in capsys.readouterr().out.splitlines()
    if "starting over" in line
  )
  assert reported in line
  (folder / "mine.txt").unlink()
  afresh = tmp_path_factory.mktemp("afresh")
  _prepare(task, afresh, lengths)
  assert _files(folder) == _files(afresh / "small_bert")


def test_unfinished_work_with_another_vocabulary_is_thrown_away(
  unfinished, finished, corpus, capsys
):
  folder = unfinished / "small_bert"
  (folder / "vocabulary.model").write_bytes(b"other")
  _prepare(make_task(corpus), unfinished)
  assert "another vocabulary.model: starting" in capsys.readouterr().out
  assert _files(folder) == _files(finished)


def test_a_failed_vocabulary_leaves_nothing_in_the_way(corpus, tmp_path):
  folder = tmp_path / "small_bert"
  for size in (5, 100_000):
    with pytest.raises(ValueError, match=rf"VOCABULARY_SIZE={size} does not"):
      _prepare(make_task(corpus, vocabulary_size=size), tmp_path)
    assert not _files(folder)
  _prepare(make_task(corpus), tmp_path)
  assert records.load_metadata(folder)


def test_missing_or_wrong_vocabulary_is_refused(finished, corpus, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"--gin.VOCABULARY_PATH"):
    _prepare(make_task(corpus, vocabulary_path="none.model"), tmp_path)
  path = str(finished / "vocabulary.model")
  task = make_task(corpus, vocabulary_path=path, vocabulary_size=500)
  with pytest.raises(ValueError, match=r"set --gin.VOCABULARY_SIZE=600"):
    _prepare(task, tmp_path)
  assert not (tmp_path / "small_bert").exists()


def test_empty_split_is_refused(tmp_path):
  (tmp_path / "text").mkdir()
  (tmp_path / "text" / "a.txt").write_text("a")  # No part can be held out.
  with pytest.raises(ValueError, match=r"train split .* no documents"):
    _prepare(make_task(tmp_path / "text"), tmp_path / "data")


def test_text_without_tokens_is_refused(tmp_path):
  pytest.importorskip("tokenizers")
  given = tmp_path / "vocab.txt"
  given.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na")
  (tmp_path / "text").mkdir()
  for name in "ab":
    (tmp_path / "text" / name).write_text("\ufffd" * 9)  # Dropped by BERT.
  task = make_task(
    tmp_path / "text", vocabulary_path=str(given), vocabulary_size=6
  )
  with pytest.raises(ValueError, match="train split .* has no tokens"):
    _prepare(task, tmp_path / "data")


def test_text_that_changes_meanwhile_is_refused(corpus, tmp_path):
  shutil.copytree(corpus, tmp_path / "text")
  inside = tmp_path / "text" / "data"  # Where it would be read as text.
  with pytest.raises(ValueError, match="changed while .* --gin.DATA_DIR outsi"):
    _prepare(make_task(tmp_path / "text"), inside)
  assert not list(inside.glob("*/*.array_record"))


def test_program_prepares_what_the_flags_say(corpus, tmp_path, capsys):
  argv = [  # As of a training run, whose model and method do not matter here.
    "--gin_file=models/bert_tiny.gin",
    "--gin_file=methods/dense.gin",
    "--gin_file=runs/pretrain.gin",
    "--gin_file=data/bert.gin",
    "--gin_file=data/bert_text.gin",
    f"--gin.MODEL_DIR='{tmp_path / 'run'}'",
    "--gin.TRAIN_STEPS=10",
    f"--gin.TEXT_DIR='{corpus}'",
    f"--gin.DATA_DIR='{tmp_path}'",
    "--gin.VOCABULARY_SIZE=600",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 32}",
  ]
  prepare_main(argv)
  metadata = records.load_metadata(tmp_path / "bert_text")
  assert metadata.settings["feature_lengths"] == {"inputs": 32}
  assert metadata.settings["vocabulary_size"] == 600
  with pytest.raises(SystemExit):
    prepare_main([*argv[:-1], "--gin.TASK_FEATURE_LENGTHS={'inputs': 16}"])
  assert re.search(r"'inputs': 32.*DATA_DIR", capsys.readouterr().err)


def test_text_that_has_changed_is_refused(copy, corpus, tmp_path):
  moved = tmp_path / "corpus"
  shutil.copytree(corpus, moved)
  path = copy / "small_bert" / records.METADATA
  path.write_text(path.read_text().replace(str(corpus), str(moved)))
  _prepare(make_task(moved), copy)  # The same files in another place.
  changed = moved / "003.txt"
  changed.write_text(changed.read_text() + " more")  # As many documents.
  with pytest.raises(ValueError, match="source_files="):
    _prepare(make_task(moved), copy)


def test_a_folder_has_one_writer(corpus, tmp_path):
  folder = tmp_path / "small_bert"
  folder.mkdir()
  with (
    files.only_writer(folder, "preparing"),
    pytest.raises(BlockingIOError, match="another process is preparing"),
  ):
    _prepare(make_task(corpus), tmp_path)
  _prepare(make_task(corpus), tmp_path)


def test_a_vocabulary_without_mask_is_refused_before_any_work(corpus, tmp_path):
  path = tmp_path / "vocab.txt"
  path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"]) + "\n")
  task = make_task(corpus, vocabulary_path=str(path), vocabulary_size=5)
  with pytest.raises(ValueError, match=r"no \[MASK\]"):
    _prepare(task, tmp_path)
  assert not (tmp_path / "small_bert").exists()
