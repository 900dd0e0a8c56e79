"""Records of runs in other programs: a double, Weights & Biases, MLflow."""

import dataclasses
import itertools
import json
import struct
import sys
import threading

import pytest

from raptr_jax import main
from raptr_jax.reports import run_files, trackers, tracking
from raptr_jax.reports.tracking import TrackerError, Tracking
from raptr_jax.training.loop import train
from tests.toy import (
  ToyDataset,
  make_experiment,
  make_model,
  shared_programs,
)

CONFIG = (
  "import raptr_jax\n\nLEARNING_RATE = 0.001\nMODEL_DIR = \\\n    'a/long/name'\n"
  "NAME2 = 'x = 1'\noptim.adamw.b2 = 0.9\n"
)


@pytest.fixture(scope="module", autouse=True)
def programs():
  with shared_programs():
    yield


@dataclasses.dataclass
class Double:
  """A tracker in memory.

  Attributes:
    records: rows by run id.
    opened: arguments of each opening.
    broken: what each row raises, while it is not None.
  """

  extra = "double"

  records: dict = dataclasses.field(default_factory=dict)
  opened: list = dataclasses.field(default_factory=list)
  closed: list = dataclasses.field(default_factory=list)
  broken: Exception | None = None

  def open(self, **arguments):
    self.opened.append(arguments)
    run_id = arguments["run_id"] or f"run{len(self.records)}"
    self.records.setdefault(run_id, [])
    return DoubleRecord(self, run_id)


@dataclasses.dataclass
class DoubleRecord:
  tracker: Double
  run_id: str
  place = "in memory"

  def write(self, step, numbers):
    if self.tracker.broken:
      raise self.tracker.broken
    self.tracker.records[self.run_id].append((step, numbers))

  def close(self, *, failed):
    self.tracker.closed.append(failed)


class Killed(Exception):
  pass


class DyingDataset(ToyDataset):
  """Dies before the batch of a step; `rows` is called first."""

  def __init__(self, step):
    super().__init__()
    self._step = step

  def batches(self, start):
    for number, batch in enumerate(super().batches(start), start):
      if number == self._step:
        raise Killed
      yield batch


def rows_of(folder):
  """What a record of the run should have: rows of metrics.jsonl, in order."""
  return [
    (entry["step"], run_files.numbers(entry))
    for entry in run_files.read_metrics(folder)
  ]


def names_of(rows):
  return [(step, sorted(numbers)) for step, numbers in rows]


def test_a_record_has_the_rows_of_the_run(tmp_path):
  double = Double()
  train(make_experiment(tmp_path / "run", trackers=(double,)), CONFIG)
  assert list(double.records) == ["run0"]
  assert double.records["run0"] == rows_of(tmp_path / "run")
  assert double.opened == [{"name": "run", "run_id": None, "config": CONFIG}]
  assert double.closed == [False]


def test_a_resumed_run_goes_on_in_its_record_and_repeats_no_row(tmp_path):
  double, folder = Double(), tmp_path / "run"
  dying = make_experiment(
    folder, trackers=(double,), train_dataset=DyingDataset(9)
  )
  with pytest.raises(Killed):
    train(dying)
  assert double.closed == [True]
  before = list(double.records["run0"])
  assert max(step for step, _ in before) == 9  # The checkpoint is of step 5.
  train(make_experiment(folder, trackers=(double,)))
  assert list(double.records) == ["run0"]
  assert double.records["run0"][: len(before)] == before
  steps = names_of(double.records["run0"])
  assert steps == names_of(rows_of(folder))
  assert double.opened[1]["run_id"] == "run0"


def test_a_run_from_scratch_begins_a_new_record(tmp_path):
  double, folder = Double(), tmp_path / "run"
  dying = make_experiment(
    folder, trackers=(double,), train_dataset=DyingDataset(4)
  )
  with pytest.raises(Killed):
    train(dying)  # Before the first checkpoint.
  train(make_experiment(folder, trackers=(double,)))
  assert list(double.records) == ["run0", "run1"]
  assert double.records["run1"] == rows_of(folder)


def test_other_processes_do_not_track(tmp_path, monkeypatch):
  from raptr_jax.training import recorder
  from raptr_jax.training.plan import make_plan

  double = Double()
  experiment = make_experiment(tmp_path, trackers=(double,))
  monkeypatch.setattr("jax.process_index", lambda: 1)
  with recorder.open_report(experiment, make_plan(experiment), 0) as report:
    report.begin(experiment.trackers, CONFIG)
  assert not double.opened


def entry(step):
  return {"split": "train", "step": step, "loss": float(step)}


def open_tracking(folder, *chosen, notes=None):
  return Tracking(
    chosen,
    folder,
    recorded=None,
    config="",
    note=([] if notes is None else notes).append,
  )


def test_rows_that_failed_are_sent_with_later_ones(tmp_path):
  double, notes = Double(broken=OSError("no network")), []
  with open_tracking(tmp_path, double, notes=notes) as records:
    records.write(entry(1))
    records.write(entry(2))
    wait_until(lambda: any("no network" in note for note in notes))
    double.broken = None
    records.write(entry(3))
  assert [step for step, _ in double.records["run0"]] == [1, 2, 3]
  assert notes == [
    "Double: in memory",
    "Double does not take a row (no network): the run goes on, and tries"
    " again with each row",
    "Double has all rows again",
  ]


@pytest.mark.parametrize(
  "error, failed", [(KeyboardInterrupt, False), (FloatingPointError, True)]
)
def test_only_a_run_that_fails_is_marked_as_failed(tmp_path, error, failed):
  double = Double()
  with pytest.raises(error), open_tracking(tmp_path, double):
    raise error
  assert double.closed == [failed]


def wait_until(condition):
  event = threading.Event()
  for _ in range(500):
    if condition():
      return
    event.wait(0.01)
  raise AssertionError("it never came")


def test_a_tracker_that_fails_to_the_end_does_not_end_the_run(tmp_path, capsys):
  double = Double(broken=OSError("no network"))
  experiment = make_experiment(tmp_path, trackers=(double,))
  assert train(experiment)["steps"] == 12
  shown = capsys.readouterr().out
  assert shown.count("no network") == 1
  assert "Double may lack what happened from step 2 on: metrics.jsonl" in shown


def test_a_network_that_hangs_does_not_hold_a_run_for_ever(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(tracking, "CLOSE_SECONDS", 0.1)
  release, notes = threading.Event(), []

  class Hanging(Double):
    def open(self, **arguments):
      record = super().open(**arguments)
      record.write = lambda step, numbers: release.wait(60)
      return record

  with open_tracking(tmp_path, Hanging(), notes=notes) as records:
    records.write(entry(7))
  release.set()
  assert notes[-1].startswith("Hanging may lack what happened from step 7 on")


@pytest.mark.parametrize(
  "error, message",
  [
    (
      PermissionError("no key"),
      r"TRACKERS has Refusing.*\(no key\).*set it up",
    ),
    (ModuleNotFoundError("no x"), r"pip install 'raptr_jax\[double\]'"),
  ],
)
def test_a_tracker_that_cannot_start_stops_the_run_before_it_trains(
  tmp_path, error, message
):
  class Refusing(Double):
    def open(self, **arguments):
      raise error

  first = Double()
  dataset = DyingDataset(0)
  experiment = make_experiment(
    tmp_path, trackers=(first, Refusing()), train_dataset=dataset
  )
  with pytest.raises(TrackerError, match=message):
    train(experiment)
  assert first.closed == [True]
  assert not (tmp_path / "trackers.json").exists()


def test_a_refused_restart_leaves_the_record_alone(tmp_path):
  double = Double()
  train(make_experiment(tmp_path, trackers=(double,), total_steps=3))
  opened = len(double.opened)
  other = make_experiment(
    tmp_path, trackers=(double,), model=make_model(embed_dim=24)
  )
  with pytest.raises(
    FileExistsError, match="another run: the parts of the model"
  ):
    train(other)
  assert len(double.opened) == opened


def test_two_trackers_of_a_kind_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"tuple of different trackers: set .*"):
    make_experiment(tmp_path, trackers=(Double(), Double()))


def test_one_line_of_gin_switches_one_on(tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(SystemExit):
    main.main(
      [
        "--gin_file=experiments/quickstart_bert_raptr.gin",
        f"--gin.MODEL_DIR='{tmp_path}/run'",
        f"--gin.DATA_DIR='{tmp_path}/data'",
        "--gin.COMPILATION_CACHE_DIR=None",
        "--gin.TRACKERS=(@trackers.WandB(),)",
      ]
    )
  error = capsys.readouterr().err
  assert error.startswith("error: TRACKERS has WandB, which cannot start")
  assert "pip install 'raptr_jax[wandb]'" in error
  assert error.count("\n") == 1


def test_macros_of_one_line_describe_a_run():
  assert trackers.macros(CONFIG) == {
    "LEARNING_RATE": "0.001",
    "NAME2": "'x = 1'",
  }


def killed_and_resumed(folder, tracker):
  dying = make_experiment(
    folder, trackers=(tracker,), train_dataset=DyingDataset(9)
  )
  with pytest.raises(Killed):
    train(dying, CONFIG)
  ids = json.loads((folder / "trackers.json").read_text())
  train(make_experiment(folder, trackers=(tracker,)), CONFIG)
  assert json.loads((folder / "trackers.json").read_text()) == ids
  return ids[type(tracker).__name__]


def logged(path):
  """Messages of a LevelDB log, as which W&B keeps what it has not sent."""
  data, place, message = path.read_bytes(), 7, b""  # After the file's header.
  while place + 7 <= len(data):
    if 32_768 - place % 32_768 < 7:  # The end of a block is padding.
      place += 32_768 - place % 32_768
    _, size, kind = struct.unpack_from("<IHB", data, place)
    message += data[place + 7 : place + 7 + size]
    place += 7 + size
    if kind in (1, 4):  # The only part of a message, or the last one.
      yield message
      message = b""


@pytest.mark.filterwarnings("ignore")  # Those of the package are its own.
def test_wandb_keeps_a_record_offline(tmp_path, monkeypatch):
  wandb = pytest.importorskip("wandb")
  from wandb.proto.wandb_internal_pb2 import Record

  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_DIR", str(tmp_path))
  folder = tmp_path / "run"
  run_id = killed_and_resumed(folder, trackers.WandB())
  wandb.teardown()  # It has written everything.
  logs = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
  assert len(logs) == 2  # One of each process, of the same run.
  found = {}
  for record in map(Record.FromString, itertools.chain(*map(logged, logs))):
    items = {
      (item.key or item.nested_key[0]): json.loads(item.value_json)
      for item in record.history.item
    }
    for name, value in items.items():
      if not name.startswith("_"):
        found.setdefault(name, []).append((items["_step"], value))
  rows = rows_of(folder)
  names = {name for _, numbers in rows for name in numbers}
  assert found.keys() == names
  assert found["train/loss"] == [
    (step, numbers["train/loss"])
    for step, numbers in rows
    if "train/loss" in numbers
  ]
  assert [step for step, _ in found["eval/loss_full"]] == [
    step for step, numbers in rows if "eval/loss_full" in numbers
  ]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_a_record_in_a_folder(tmp_path, monkeypatch):
  mlflow = pytest.importorskip("mlflow")
  monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
  monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "records").as_uri())
  folder = tmp_path / "run"
  run_id = killed_and_resumed(folder, trackers.MLflow(experiment="toys"))
  client = mlflow.MlflowClient()
  run = client.get_run(run_id)
  assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
  assert run.data.params["LEARNING_RATE"] == "0.001"
  assert client.get_experiment_by_name("toys").experiment_id == (
    run.info.experiment_id
  )
  rows = rows_of(folder)
  losses = client.get_metric_history(run_id, "train/loss")
  assert [(x.step, x.value) for x in losses] == [
    (step, numbers["train/loss"])
    for step, numbers in rows
    if "train/loss" in numbers
  ]
  names = {name for _, numbers in rows for name in numbers}
  assert run.data.metrics.keys() == names
