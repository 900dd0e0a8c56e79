"""A run's folder is checked: each damage is found and named, none is done."""

import json
import re
import shutil
from pathlib import Path

import pytest

from raptr_jax.data.prepared import PreparedDataset
from raptr_jax.data.streaming import StreamingDataset
from raptr_jax.methods import policies
from raptr_jax.methods.growth import GrowthPlan
from raptr_jax.methods.schedule import stage_schedule
from raptr_jax.tasks.prepared.prepare import prepare
from raptr_jax.tasks.prepared.records import encode_row, read_shard
from raptr_jax.training import learning_rates, optim
from raptr_jax.training.checkpoint_record import (
  FORMAT,
  NewerFormatError,
  Record,
  _sha256,
)
from raptr_jax.training.loop import train
from raptr_jax.training.partitioning import Partitioner
from raptr_jax.training.run_lock import alone_in
from raptr_jax.training.verification import VerificationError, verify
from tests.object_store import install
from tests.small_task import LENGTHS, VOCABULARY_SIZE, make_task, write_corpus
from tests.toy import (
  LAYERS,
  ToyDataset,
  make_experiment,
  make_model,
  shared_programs,
)

RUN, DATA = "run", "data"


@pytest.fixture(scope="module", autouse=True)
def programs():
  with shared_programs():
    yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return write_corpus(tmp_path_factory.mktemp("text") / "corpus")


@pytest.fixture(scope="module")
def make(corpus):
  """Makes an experiment whose run and data are below a folder."""
  model = make_model(vocab_size=VOCABULARY_SIZE, max_length=LENGTHS["inputs"])

  def experiment(folder, kind=PreparedDataset, **overrides):
    train_data, eval_data = (
      kind(
        task=make_task(corpus),
        data_dir=str(folder / DATA),
        feature_lengths=LENGTHS,
        batch_size=8,
        seed=3,
        split=split,
      )
      for split in ("train", "validation")
    )
    data = dict(model=model, train_dataset=train_data, eval_dataset=eval_data)
    return make_experiment(folder / RUN, **data | overrides)

  return experiment


@pytest.fixture(scope="module")
def finished(make, corpus, tmp_path_factory):
  """A run with checkpoints of steps 5, 10 and 12, and its data."""
  folder = tmp_path_factory.mktemp("finished")
  prepare(
    task=make_task(corpus),
    feature_lengths=LENGTHS,
    data_dir=str(folder / DATA),
  )
  train(make(folder))
  return folder


@pytest.fixture
def folder(finished, tmp_path):
  """A copy of it, which a test may change."""
  return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def lines(make, folder, capsys):
  """Verifies the copy; the lines of all that is wrong, and the last line."""

  def verified(**overrides) -> tuple[list[str], str]:
    capsys.readouterr()
    error = ""
    try:
      verify(make(folder, **overrides))
    except VerificationError as failed:
      error = str(failed)
    *found, last = capsys.readouterr().out.splitlines()
    wrong = [line for line in found if ": wrong: " in line]
    assert bool(wrong) == bool(error)
    for line in wrong:
      assert line.split(":")[0] in error
    return wrong, last

  return verified


def snapshot(folder):
  return {
    path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
    for path in folder.rglob("*")
  }


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def halve(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def largest(checkpoint):
  """The file with the arrays of a checkpoint."""
  files = (path for path in checkpoint.rglob("*") if path.is_file())
  return max(files, key=lambda path: path.stat().st_size)


def change_record(checkpoint, **changes):
  """Changes a record, and its digest with it."""
  path = checkpoint / "progress" / "metadata"
  content = json.loads(path.read_text()) | changes
  del content["sha256"]
  path.write_text(json.dumps({**content, "sha256": _sha256(content)}))


def change_rows(folder, change):
  path = folder / RUN / "metrics.jsonl"
  rows = path.read_text().splitlines()
  change(rows)
  path.write_text("\n".join(rows) + "\n")


def test_a_sound_run_is_said_to_be_one_and_left_alone(
  make, folder, lines, capsys
):
  before = snapshot(folder)
  assert lines() == ([], f"MODEL_DIR = '{folder / RUN}' is complete, with all"
                     " 12 steps")  # fmt: skip
  verify(make(folder))
  out = capsys.readouterr().out
  for thing in (
    r"checkpoints/5: ok, \d+ arrays", r"checkpoints/12: ok",
    "configuration: ok",
    r"metrics\.jsonl: ok, 15 rows", r"summary\.json: ok, of 12 steps",
    r"small_bert: ok, files of records: [2-9]",
  ):  # fmt: skip
    assert re.search(thing, out), thing
  assert snapshot(folder) == before


def test_a_run_on_another_mesh_is_checked(make, lines):
  wrong, last = lines(partitioner=Partitioner(fsdp=4, tensor=2))
  assert not wrong and last.endswith("is complete, with all 12 steps")


def test_a_run_that_has_not_ended_can_be_resumed(folder, lines):
  shutil.rmtree(folder / RUN / "checkpoints" / "12")
  (folder / RUN / "summary.json").unlink()
  rows = folder / RUN / "metrics.jsonl"
  rows.write_text(rows.read_text()[:-9])  # Killed while it wrote a row.
  assert lines() == (
    [], f"MODEL_DIR = '{folder / RUN}' can be resumed from step 10 of 12"
  )  # fmt: skip


@pytest.mark.parametrize("damage", [flip, halve, Path.unlink])
@pytest.mark.parametrize("step", ["5", "12"])
def test_damaged_arrays_are_found(folder, lines, damage, step):
  damage(largest(folder / RUN / "checkpoints" / step))
  wrong, last = lines()
  assert wrong[0].startswith(f"checkpoints/{step}: wrong: damaged (")
  if step == "12":
    assert last.endswith("can be resumed from step 10 of 12")
    assert len(wrong) == 2  # The summary is of other steps.
  else:
    assert last.endswith("is complete, with all 12 steps")
    assert len(wrong) == 1


def test_an_altered_record_is_found(folder, lines):
  path = folder / RUN / "checkpoints" / "12" / "progress" / "metadata"
  path.write_text(path.read_text().replace('"examples": 96', '"examples": 97'))
  wrong, last = lines()
  assert re.search("/12: wrong.*its record is not what was saved", wrong[0])
  assert last.endswith("from step 10 of 12")


def test_a_missing_array_is_found(folder, lines):
  checkpoint = folder / RUN / "checkpoints" / "5"
  found = json.loads((checkpoint / "progress" / "metadata").read_text())
  change_record(checkpoint, digests=found["digests"] | {"params/more": "0"})
  (wrong,), _ = lines()
  assert wrong.endswith(
    "checkpoints/5: wrong: damaged (params/more is missing)"
  )


def test_a_newer_format_is_one_clear_error(make, folder, lines):
  change_record(
    folder / RUN / "checkpoints" / "12",
    format=FORMAT + 1,
    written_by="raptr_jax 99.0",
  )
  told = (
    f"raptr_jax 99.0 has written this checkpoint, in format {FORMAT + 1}, .*"
    f"reads formats up to {FORMAT}: install that version"
  )
  wrong, last = lines()
  assert re.search(f"checkpoints/12: wrong: {told}", wrong[0])
  assert "nothing to resume from: a newer version has written that of" in last
  before = {path: content for path, (_, content) in snapshot(folder).items()}
  with pytest.raises(NewerFormatError, match=told):
    train(make(folder))
  after = {path: content for path, (_, content) in snapshot(folder).items()}
  assert after == before


def test_checkpoints_that_are_all_damaged_are_nothing_to_resume_from(
  folder, lines
):
  for step in ("5", "10", "12"):
    flip(largest(folder / RUN / "checkpoints" / step))
  _, last = lines()
  assert last.endswith("from: the checkpoints of steps [5, 10, 12] are damaged")
  shutil.rmtree(folder / RUN / "checkpoints")
  wrong, last = lines()
  assert wrong[0] == "checkpoints: wrong: there are none"
  assert last.endswith("nothing to resume from: it has no checkpoint")


def test_what_is_no_checkpoint_is_named(make, folder, capsys):
  for name in ("11.orbax-checkpoint-tmp", "copy"):
    (folder / RUN / "checkpoints" / name).mkdir()
  verify(make(folder))
  out = capsys.readouterr().out
  assert re.search("checkpoints/11.orbax-checkpoint-tmp: left over from a", out)
  assert "checkpoints/copy: no checkpoint, and not read" in out


def swap(rows):
  rows[1], rows[4] = rows[4], rows[1]


@pytest.mark.parametrize(
  ("change", "told"),
  [
    (lambda rows: rows.pop(1), r"the training row of step 4;.*report_period = 2"),
    (lambda rows: rows.pop(2), r"the evaluation of step 4 \(layers: full"),
    (lambda rows: rows.pop(), r"the evaluation of step 12 \(layers: 4"),
    (lambda rows: rows.clear(), "row of step 2, 4, 6, 8, 10 and 1 more"),
    (
      lambda rows: rows.insert(3, rows[1]),
      "line 4 repeats the training row of step 4 of line 2",
    ),
    (swap, r"line 3 is the evaluation of step 4 .*, but comes after step 6"),
    (lambda rows: rows.insert(2, "{}"), "line 3 is no row of training"),
    (lambda rows: rows.insert(2, "{"), "jsonl:3 is not JSON"),
  ],
)  # fmt: skip
def test_rows_are_complete_and_in_order(folder, lines, change, told):
  change_rows(folder, change)
  (wrong,), _ = lines()
  assert wrong.startswith("metrics.jsonl: wrong: ")
  assert re.search(told, wrong)


def test_rows_after_the_checkpoint_may_be_there_or_not(folder, lines):
  shutil.rmtree(folder / RUN / "checkpoints" / "12")
  (folder / RUN / "summary.json").unlink()
  assert lines()[0] == []
  change_rows(folder, lambda rows: rows.__delitem__(slice(-5, None)))
  assert lines()[0] == []


@pytest.mark.parametrize(
  ("changed", "told"),
  [
    ({"random_seed": 1}, "RANDOM_SEED = 0 there, 1 here"),
    ({"policy": policies.full(num_layers=LAYERS)}, "the layers drawn"),
    (
      {"optimizer": optim.adafactor(
        learning_rate=learning_rates.linear(
          peak=1e-2, warmup_steps=2, total_steps=12
        )
      )},
      "checkpoint of another model or optimizer: opt_state",
    ),
  ],
)  # fmt: skip
def test_another_configuration_is_found(lines, changed, told):
  (wrong,), last = lines(**changed)
  assert wrong.startswith("configuration: wrong: ")
  assert told in wrong
  assert last.endswith("resumed from step 12 once mended: configuration")


@pytest.mark.parametrize(
  ("text", "told"),
  [
    ('{"steps": 12', "damaged"),
    ("[]", "damaged"),
    ('{"steps": 11}', "it is of 11 steps, but the latest whole checkpoint is"),
  ],
)
def test_a_damaged_summary_is_found(folder, lines, text, told):
  (folder / RUN / "summary.json").write_text(text)
  (wrong,), _ = lines()
  assert wrong.startswith(f"summary.json: wrong: {told}")


def flip_row(shard):
  """Flips a bit in the middle of the rows of a shard, which padding follows."""
  content = bytearray(shard.read_bytes())
  rows = bytes(content[:65_536]).rstrip(b"\0")
  content[len(rows) // 2] ^= 1
  shard.write_bytes(content)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_flipped_bit_in_a_row_is_found(folder, lines, split):
  name = f"small_bert/{split}-00000.array_record"
  flip_row(folder / DATA / name)
  (wrong,), last = lines()
  assert re.search(f"{name}: wrong: .*is damaged .*--run_mode=prepare", wrong)
  assert last.endswith(f"once mended: {name}")


def test_a_bit_that_is_not_found_is_in_no_row(make, folder):
  """A few of the rest are in the heads of blocks, which say nothing new."""
  shard = folder / DATA / "small_bert" / "validation-00000.array_record"
  whole = shard.read_bytes()
  rows = list(map(encode_row, read_shard(shard)))
  dataset = make(folder).train_dataset
  found = 0
  for place in range(60, len(whole[:65_536].rstrip(b"\0")), 150):
    content = bytearray(whole)
    content[place] ^= 1
    shard.write_bytes(content)
    try:
      dataset.check_file(shard)
    except OSError:
      found += 1
    else:
      assert list(map(encode_row, read_shard(shard))) == rows
  assert found > 20


def test_a_shard_that_cannot_be_opened_is_found(folder, lines):
  name = "validation-00000.array_record"
  halve(folder / DATA / "small_bert" / name)
  (wrong,), last = lines()
  assert re.search(f"data: wrong: .*{name} is damaged", wrong)
  assert last.endswith("once mended: data")


def test_another_vocabulary_beside_the_records_is_found(folder, lines):
  flip(folder / DATA / "small_bert" / "vocabulary.model")
  (wrong,), last = lines()
  assert re.search(r"data: wrong: .*vocabulary\.model.* is not the", wrong)
  assert last.endswith("once mended: data")


def test_streamed_data_is_said_not_to_be_checked(make, folder, capsys):
  experiment = make(folder, kind=StreamingDataset)
  with pytest.raises(VerificationError):  # It was trained on records.
    verify(experiment)
  out = capsys.readouterr().out
  assert "(train_dataset): not checked: a StreamingDataset has no" in out


def test_a_run_in_use_is_not_checked(make, folder):
  with alone_in(folder / RUN):
    before = snapshot(folder)
    with pytest.raises(BlockingIOError, match="is in use by process"):
      verify(make(folder))
    assert snapshot(folder) == before


def test_a_folder_that_does_not_exist_is_no_run(make, tmp_path):
  with pytest.raises(FileNotFoundError, match="set --gin.MODEL_DIR"):
    verify(make(tmp_path))
  assert not list(tmp_path.iterdir())


def test_the_rows_of_a_growing_model_are_known(tmp_path, capsys):
  schedule = stage_schedule(
    path_lengths=(2, 3, 4), total_steps=12, num_layers=LAYERS
  )
  run = make_experiment(
    tmp_path / RUN,
    policy=policies.stacked(schedule=schedule),
    growth=GrowthPlan(schedule, "last"),
  )
  train(run)
  verify(run)
  grown = [
    number
    for number, row in enumerate(
      (tmp_path / RUN / "metrics.jsonl").read_text().splitlines()
    )
    if '"grown"' in row
  ]
  change_rows(tmp_path, lambda rows: rows.pop(grown[0]))
  capsys.readouterr()
  with pytest.raises(VerificationError):
    verify(run)
  told = "lacks the evaluation of step 4 (layers: grown"
  assert told in capsys.readouterr().out


def test_a_run_in_parts_has_the_rows_of_each(tmp_path):
  first = make_experiment(tmp_path / RUN)
  train(first)
  shutil.rmtree(tmp_path / RUN / "checkpoints" / "12")
  (tmp_path / RUN / "summary.json").unlink()
  full = policies.full(num_layers=LAYERS)  # Has no stages.
  changed = make_experiment(tmp_path / RUN, policy=full)
  train(changed, accept_changes=True)
  verify(changed)
  change_rows(tmp_path, lambda rows: rows.pop(2))  # At a boundary.
  with pytest.raises(VerificationError, match=r"metrics\.jsonl"):
    verify(changed)


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_run_at_an_address_is_checked(tmp_path, monkeypatch, capsys, scheme):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  install(monkeypatch, tmp_path)
  run = make_experiment(f"{scheme}://bucket/run")
  train(run)
  before = snapshot(tmp_path)
  capsys.readouterr()
  verify(run)
  out = capsys.readouterr().out
  assert out.endswith(" is complete, with all 12 steps\n")
  assert "no checkpoint" not in out
  assert snapshot(tmp_path) == before
  flip(largest(tmp_path / scheme / "bucket" / "run" / "checkpoints" / "12"))
  with pytest.raises(VerificationError, match="checkpoints/12"):
    verify(run)


def test_a_checkpoint_belongs_to_its_vocabulary(tmp_path):
  def run(vocabulary):
    dataset = ToyDataset()
    if vocabulary:
      dataset.vocabulary_fingerprint = vocabulary
    return make_experiment(tmp_path / RUN, train_dataset=dataset)

  train(run("one"))
  (tmp_path / RUN / "summary.json").unlink()
  with pytest.raises(FileExistsError, match="the vocabulary would not be the"):
    train(run("another"))
  with pytest.raises(VerificationError, match="configuration"):
    verify(run("another"))
  verify(run(None))  # It does not say which it has.
  verify(run("one"))


def test_a_checkpoint_that_knows_no_vocabulary_goes_with_any(tmp_path):
  run = make_experiment(tmp_path / RUN)
  train(run)
  run.train_dataset.vocabulary_fingerprint = "one"
  verify(run)


def test_prepared_and_streamed_text_have_the_same_vocabulary(make, finished):
  prepared, streamed = (
    make(finished, kind=kind).train_dataset
    for kind in (PreparedDataset, StreamingDataset)
  )
  prepared.open()
  streamed.open()
  found = prepared.vocabulary_fingerprint
  assert re.fullmatch("[0-9a-f]{64}", found)
  assert found == streamed.vocabulary_fingerprint


def test_a_vocabulary_trained_again_is_the_same(
  make, corpus, finished, tmp_path
):
  prepare(
    task=make_task(corpus),
    feature_lengths=LENGTHS,
    data_dir=str(tmp_path / DATA),
  )
  one, other = (make(f).train_dataset for f in (finished, tmp_path))
  assert one.vocabulary_fingerprint == other.vocabulary_fingerprint


def test_an_old_record_has_no_digests(make, folder, capsys):
  path = folder / RUN / "checkpoints" / "5" / "progress" / "metadata"
  found = Record.from_json(json.loads(path.read_text()))
  path.write_text(json.dumps(found.progress))
  verify(make(folder))
  assert "without digests to compare with" in capsys.readouterr().out
