"""Runs, text and data at addresses: gs:// and s3://, as object stores do it."""

import gzip
import json
import re

import fsspec
import jax
import numpy as np
import pytest

import raptr_jax
from raptr_jax import main
from raptr_jax.tasks import files
from raptr_jax.tasks.prepared.prepare import prepare
from raptr_jax.tasks.text import record_files, text_files
from raptr_jax.tasks.text.sources import TextFolder
from raptr_jax.training import checkpoint_storage, setup
from raptr_jax.training.checkpoint import Checkpointer, has_checkpoint
from raptr_jax.training.loop import train
from tests.object_store import install
from tests.small_task import LENGTHS, make_task, write_corpus
from tests.toy import ToyDataset, make_experiment, shared_programs

SCHEMES = ("gs", "s3")  # Orbax writes to the first one itself.
TIMES = ("tokens_per_second", "step_seconds", "mfu")


@pytest.fixture
def root(tmp_path, monkeypatch):
  """The folder in which the buckets of both schemes are."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  install(monkeypatch, tmp_path)
  return tmp_path


@pytest.fixture(params=SCHEMES)
def bucket(request, root):
  return f"{request.param}://bucket"


@pytest.fixture(scope="module", autouse=True)
def programs():
  with shared_programs():
    yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
  """A run that never stopped, in a folder of this machine."""
  experiment = make_experiment(tmp_path_factory.mktemp("unbroken"))
  train(experiment)
  return experiment


def content(experiment, name):
  path = files.path("MODEL_DIR", experiment.model_dir) / name
  return path.read_text(encoding="utf-8")


def entries(experiment):
  parsed = map(json.loads, content(experiment, "metrics.jsonl").splitlines())
  return [
    {name: x for name, x in entry.items() if name not in TIMES}
    for entry in parsed
  ]


def summary(experiment):
  found = json.loads(content(experiment, "summary.json"))
  return {
    name: value
    for name, value in found.items()
    if name not in ("train_seconds", "seconds", "goodput", "date")
  }


def final_params(experiment):
  with experiment.checkpointer.open(experiment.model_dir) as checkpoints:
    state, _ = checkpoints.restore(setup.abstract_state(experiment))
  return jax.device_get(state.params)


class Killed(Exception):
  """Stands for a process that dies without a word."""


class InterruptedDataset(ToyDataset):
  """Calls a function before the batch of a step."""

  def __init__(self, step, interrupt):
    super().__init__()
    self._step, self._interrupt = step, interrupt

  def batches(self, start):
    for number, batch in enumerate(super().batches(start), start):
      if number == self._step:
        self._interrupt()
      yield batch


def test_killed_and_started_again_it_ends_as_on_this_machine(
  bucket, unbroken, monkeypatch
):
  with monkeypatch.context() as patch:

    def die():
      # What a killed process has not published is lost.
      patch.setattr(files.Growing, "publish", lambda self: None)
      raise Killed

    dying = make_experiment(
      f"{bucket}/run", train_dataset=InterruptedDataset(6, die)
    )
    with pytest.raises(Killed):
      train(dying)
  run = make_experiment(f"{bucket}/run")
  assert has_checkpoint(run.model_dir)
  assert [e["step"] for e in entries(run)][-1] == 5  # Of the checkpoint.
  train(run)
  assert entries(run) == entries(unbroken)
  assert summary(run) == summary(unbroken)
  jax.tree.map(
    np.testing.assert_array_equal, final_params(run), final_params(unbroken)
  )
  page = content(run, "summary.md")
  assert page.startswith("# run\n")
  folder = files.path("MODEL_DIR", run.model_dir)
  assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
  # Each start writes a file of its own.
  assert len(list((folder / "tensorboard").iterdir())) == 2


def test_rows_can_be_seen_while_a_run_goes_on(bucket, monkeypatch):
  monkeypatch.setattr("raptr_jax.reports.report.PUBLISH_SECONDS", 0.0)
  seen = []

  dataset = InterruptedDataset(4, lambda: seen.extend(entries(run)))
  run = make_experiment(f"{bucket}/run", train_dataset=dataset, total_steps=6)
  train(run)
  assert seen and seen == entries(run)[: len(seen)]


def test_a_run_begins_with_the_parameters_of_one_at_an_address(bucket):
  first = make_experiment(f"{bucket}/first", total_steps=3)
  train(first)
  second = make_experiment(
    f"{bucket}/second",
    total_steps=3,
    checkpointer=Checkpointer(initial_checkpoint=f"{bucket}/first"),
  )
  with second.checkpointer.open(second.model_dir) as checkpoints:
    found = checkpoints.restore_initial(setup.abstract_state(second).params)
  jax.tree.map(np.testing.assert_array_equal, found, final_params(first))


def test_the_last_checkpoints_are_kept(bucket, root):
  run = make_experiment(
    f"{bucket}/run", checkpointer=Checkpointer(period=2, keep=2)
  )
  train(run)
  folder = files.path("MODEL_DIR", f"{bucket}/run/checkpoints")
  assert checkpoint_storage.saved_steps(folder) == [10, 12]
  assert not list(root.glob("*/bucket/run/checkpoints/8/**/manifest.ocdbt"))


def test_half_a_copy_is_no_checkpoint(root, monkeypatch):
  run = make_experiment("s3://bucket/run", checkpointer=Checkpointer(period=3))

  def cut_short(source, target):
    files.write_text(target / "state" / "manifest.ocdbt", "half")
    raise OSError("the network is down")

  with monkeypatch.context() as patch:
    patch.setattr(files, "copy_folder", cut_short)
    with pytest.raises(OSError, match="network is down"):
      train(run)
  assert list(root.glob("s3/bucket/run/checkpoints/3/**/manifest.ocdbt"))
  assert not has_checkpoint(run.model_dir)
  train(run)  # From the beginning.
  assert has_checkpoint(run.model_dir)


def test_several_processes_need_storage_that_orbax_writes_to(root, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  folder = files.path("MODEL_DIR", "s3://bucket/run/checkpoints")
  with pytest.raises(OSError, match=r"MODEL_DIR = 's3://bucket/run', but 2"):
    checkpoint_storage.storage(folder, keep=1)


def settings(place):
  """A small BERT on the text of a folder, as the command line sets it."""
  values = {
    "MODEL_DIR": f"'{place}/run'",
    "DATA_DIR": f"'{place}/data'",
    "TEXT_DIR": f"'{place}/text'",
    "NUM_LAYERS": 3,
    "PATH_LENGTHS": (2, 3),
    "TRAIN_STEPS": 4,
    "WARMUP_STEPS": 1,
    "BATCH_SIZE": 8,
    "records.fitted_vocabulary_size.at_most": 600,
    "bert.BertConfig.embed_dim": 16,
    "TASK_FEATURE_LENGTHS": {"inputs": 32},
    "COMPILATION_CACHE_DIR": None,
  }
  return [
    "--gin_file=experiments/quickstart_bert_raptr.gin",
    "--gin_file=data/bert_text.gin",
    *(f"--gin.{name}={value}" for name, value in values.items()),
  ]


def test_the_command_line_does_at_addresses_what_it_does_here(
  root, capsys, monkeypatch
):
  write_corpus(root / "text")
  write_corpus(root / "gs" / "bucket" / "text")
  main.main(settings(root))
  main.main(settings("gs://bucket"))
  here, there = root, root / "gs" / "bucket"
  names = {path.name for path in (here / "data").glob("*/*")}
  assert "metadata.json" in names
  assert names == {path.name for path in (there / "data").glob("*/*")}
  for path in (here / "data").glob("*/*"):
    if path.name != "metadata.json":  # It names the folder of the text.
      copy = there / path.relative_to(here)
      assert copy.read_bytes() == path.read_bytes(), path.name
  losses = [
    json.loads((place / "run" / "summary.json").read_text())["final_eval_loss"]
    for place in (here, there)
  ]
  assert losses[0] == losses[1]
  capsys.readouterr()
  main.main(["--run_mode=eval", "--gin.MODEL_DIR='gs://bucket/run'"])
  assert "written: gs://bucket/run/results.json" in capsys.readouterr().out
  results = json.loads((there / "run" / "results.json").read_text())
  assert results["held_out"]["loss"] == pytest.approx(losses[1], rel=1e-6)
  main.main(["--gin.MODEL_DIR='gs://bucket/run'"])
  assert "complete: gs://bucket/run/summary.json" in capsys.readouterr().out
  # From Python, and moved with its data: the folder of neither is the run's.
  run = raptr_jax.load("gs://bucket/run")
  assert run.step == 4
  run.experiment.open()


def test_preparation_at_an_address_goes_on(bucket, root, monkeypatch, capsys):
  monkeypatch.setattr(text_files, "RANGE_BYTES", 30_000)  # Three parts.
  corpus = write_corpus(root / "text")
  task = make_task(corpus)
  prepare(task=task, feature_lengths=LENGTHS, data_dir=str(root / "data"))

  def prepare_there():
    prepare(task=task, feature_lengths=LENGTHS, data_dir=f"{bucket}/data")

  upload, written = files._upload, []

  def failing(source, path):
    if len(written) == 5:
      raise OSError("the network is down")
    written.append(path.name)
    upload(source, path)

  with monkeypatch.context() as patch:
    patch.setattr(files, "_upload", failing)
    with pytest.raises(OSError, match="network is down"):
      prepare_there()
  written.clear()
  monkeypatch.setattr(
    files,
    "_upload",
    lambda source, path: (written.append(path.name), upload(source, path)),
  )
  prepare_there()
  assert "part-00000.npz" not in written  # Nor what it counts.
  assert written[-1] == "metadata.json"
  scheme = bucket.partition(":")[0]
  there = root / scheme / "bucket" / "data" / "small_bert"
  here = root / "data" / "small_bert"
  found, expected = (
    {path.name: path.read_bytes() for path in folder.iterdir()}
    for folder in (there, here)
  )
  assert found == expected
  capsys.readouterr()
  prepare_there()
  assert f"{bucket}/data/small_bert is complete" in capsys.readouterr().out


@pytest.mark.parametrize("glob", ["**/*", "*", "**/*.txt", "a/*", "a/**/*.txt"])
def test_text_is_found_and_read_as_on_this_machine(bucket, root, glob):
  scheme = bucket.partition(":")[0]
  for folder in (root / "text", root / scheme / "bucket" / "text"):
    for name in ("b.txt", "a/1.txt", "a/b/2.txt", ".git/x.txt", "a/c.md"):
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / name).write_text(f"The text of {name}.\n\nMore.\n" * 9)
  here, there = (
    TextFolder(place, glob=glob, unit="paragraph", validation_every=3)
    for place in (str(root / "text"), f"{bucket}/text")
  )
  assert there.num_bytes() == here.num_bytes() > 0
  assert there.fingerprint() == here.fingerprint()
  for split in here.splits:
    assert list(there.documents(split)) == list(here.documents(split))
  assert f"text of {bucket}/text ({glob})" in there.description()
  line, *_ = there.remarks()
  assert line.startswith(f"{bucket}/text: ")


def test_a_large_file_is_read_in_ranges(bucket, root, monkeypatch):
  monkeypatch.setattr(text_files, "RANGE_BYTES", 100)
  scheme = bucket.partition(":")[0]
  path = root / scheme / "bucket" / "text" / "long.txt"
  path.parent.mkdir(parents=True)
  path.write_text("".join(f"Line {i}.\n" for i in range(200)))
  source = TextFolder(f"{bucket}/text", unit="line")
  assert source.num_parts() > 10
  assert list(source.documents("train")) == list(
    TextFolder(str(path), unit="line").documents("train")
  )


def test_records_are_read_whatever_packs_them(bucket, root):
  arrow = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  scheme = bucket.partition(":")[0]
  folder = root / scheme / "bucket"
  folder.mkdir(parents=True, exist_ok=True)
  texts = [f"text {i}" for i in range(5)]
  lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
  (folder / "x.jsonl").write_text(lines)
  (folder / "x.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
  (folder / "x.jsonl.zst").write_bytes(
    arrow.compress(lines.encode(), codec="zstd", asbytes=True)
  )
  table = arrow.table({"text": texts})
  parquet.write_table(table, folder / "x.parquet")
  path = folder / "x.arrow"
  with arrow.ipc.new_stream(arrow.OSFile(str(path), "wb"), table.schema) as x:
    x.write_table(table)
  for ending in record_files.ENDINGS:
    path = files.path("TEXT_DIR", f"{bucket}/x{ending}")
    assert list(record_files.texts(path, "text")) == texts
  assert len(
    record_files.row_group_sizes(files.path("X", f"{bucket}/x.parquet"))
  )


def test_what_fails_leaves_the_object_that_was_there(bucket):
  path = files.path("X", f"{bucket}/x.json")
  files.write_json(path, {"a": 1})
  with pytest.raises(Killed), files.replacing(path) as partial:
    partial.write_text("half of")
    raise Killed
  assert json.loads(path.read_text()) == {"a": 1}


def test_a_copy_is_made_again_when_the_object_has_changed(bucket, root):
  path = files.path("X", f"{bucket}/x.txt")
  path.write_text("first")
  first = files.local_copy(path)
  assert first.read_text() == "first"
  changed = first.stat().st_mtime_ns
  assert files.local_copy(path) == first
  assert first.stat().st_mtime_ns == changed
  path.write_text("other")  # As long as the first.
  assert files.local_copy(path).read_text() == "other"
  assert not first.exists()
  assert root / "cache" in first.parents


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gcs"), ("s3", "s3")])
def test_a_package_that_is_missing_is_named_once(
  scheme, extra, tmp_path, monkeypatch, capsys
):
  def missing(protocol):
    raise ImportError(f"install the package of {protocol}")

  monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
  reason = re.escape(f"pip install 'raptr_jax[{extra}]'")
  with pytest.raises(ModuleNotFoundError, match=f"MODEL_DIR.*{reason}"):
    make_experiment(f"{scheme}://bucket/run")
  with pytest.raises(ModuleNotFoundError, match=f"TEXT_DIR.*{reason}"):
    TextFolder(f"{scheme}://bucket/text")
  for arguments in (
    [f"--gin.MODEL_DIR='{scheme}://bucket/run'"],
    settings(f"{scheme}://bucket"),
  ):
    with pytest.raises(SystemExit):
      main.main(arguments)
    error = capsys.readouterr().err
    assert error.count(f"raptr_jax[{extra}]") == error.count("\n") == 1


def test_an_address_of_an_unknown_kind_is_told():
  with pytest.raises(
    ValueError, match=r"MODEL_DIR='ftp://b/run' is an address"
  ):
    make_experiment("ftp://b/run")
  message = r"TEXT_DIR='ftp://b/t'.*'gs', 's3'.*set --gin.TEXT_DIR"
  with pytest.raises(ValueError, match=message):
    TextFolder("ftp://b/t")
