"""What a run records survives a stop, and what it shows adds up."""

import contextlib
import io
import json
import math
import struct

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from raptr_jax.reports import remaining_time, report, run_files


class Terminal(io.StringIO):
  def isatty(self):
    return True


def train_entry(**changes):
  entry = {
    "loss": 3.5,
    "accuracy": 0.4,
    "grad_norm": 1.0,
    "learning_rate": 1e-3,
    "stage": 1,
    "path_length": 6.0,
    "flops": 1e9,
    "tokens": 4096.0,
    "tokens_per_second": 41234.5,
    "padding": 0.05,
    "step_seconds": 0.1,
    "mfu": None,
  }
  return {**entry, **changes}


def eval_entry(loss=3.25):
  return {"loss": loss, "accuracy": 0.5}


def make_report(folder, start_step=0, **changes):
  settings = {"total_steps": 20, "boundaries": (5, 10), **changes}
  return report.RunReport(folder, start_step=start_step, **settings)


@contextlib.contextmanager
def begun_report(folder, start_step=0, **changes):
  with make_report(folder, start_step, **changes) as run:
    run.begin()
    yield run


def train(folder, start_step, stop_step):
  """Goes through the steps in the order of the training loop."""
  with begun_report(folder, start_step) as run:
    for step in range(start_step, stop_step):
      if step % 5 == 0 and not run.has_eval(step):
        run.evaluation(step, "full", eval_entry())
      run.train(step + 1, train_entry(loss=float(step)))


def strict_entries(folder):
  """Entries, by a parser that takes neither NaN nor Infinity."""

  def refuse(name):
    raise ValueError(f"{name} is not JSON")

  text = (folder / run_files.METRICS_FILE).read_text()
  return [json.loads(x, parse_constant=refuse) for x in text.splitlines()]


def events(folder):
  """Events of all TensorBoard files, oldest file first."""
  found = []
  for path in sorted((folder / "tensorboard").iterdir()):
    data = path.read_bytes()
    while data:
      (size,) = struct.unpack("<Q", data[:8])
      found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
      data = data[16 + size :]
  return found


def test_an_entry_is_on_disk_at_once(tmp_path):
  with begun_report(tmp_path) as run:
    run.train(1, train_entry())
    (entry,) = strict_entries(tmp_path)
  assert entry == {"split": "train", "step": 1, **train_entry()}


@pytest.mark.parametrize(
  "torn", ["", '{"split": "train", "st', '{"step": 99}\n{']
)
def test_resumed_record_equals_unbroken_record(tmp_path, torn):
  train(tmp_path / "unbroken", 0, 12)
  folder = tmp_path / "broken"
  train(folder, 0, 8)
  path = folder / run_files.METRICS_FILE
  path.write_text(path.read_text() + torn)
  train(folder, 5, 12)
  assert strict_entries(folder) == strict_entries(tmp_path / "unbroken")
  assert not list(folder.glob("*.tmp"))


def test_nothing_is_written_before_the_run_begins(tmp_path):
  train(tmp_path, 0, 8)
  before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
  with make_report(tmp_path, 0) as run:
    run.note("reading the state")
  assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
  with make_report(tmp_path / "new", 0):
    pass
  assert not (tmp_path / "new").exists()


def test_evaluation_before_the_checkpoint_is_not_repeated(tmp_path):
  train(tmp_path, 0, 8)
  resumed = make_report(tmp_path, 5)
  assert resumed.has_eval(5)
  assert not resumed.has_eval(5, 6)
  assert not make_report(tmp_path / "other", 5).has_eval(5)


def test_later_evaluation_is_repeated(tmp_path):
  train(tmp_path, 0, 12)
  assert make_report(tmp_path, 12).has_eval(10)
  assert not make_report(tmp_path, 7).has_eval(10)


def test_run_from_scratch_starts_an_empty_record(tmp_path):
  train(tmp_path, 0, 8)
  with begun_report(tmp_path, 0) as run:
    assert not run.has_eval(0)
  assert strict_entries(tmp_path) == []


def test_damage_before_the_last_line_is_an_error(tmp_path):
  path = tmp_path / run_files.METRICS_FILE
  path.write_text('{"step"\n{"step": 1, "split": "train"}\n')
  with pytest.raises(OSError, match=r"metrics\.jsonl:1 is not JSON"):
    make_report(tmp_path, 5)


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan")])
def test_what_is_not_finite_becomes_null(tmp_path, value):
  with begun_report(tmp_path) as run:
    run.train(1, train_entry(loss=value, grad_norm=np.float32(2.0)))
  (entry,) = strict_entries(tmp_path)
  assert entry["loss"] is None
  assert entry["grad_norm"] == 2.0


def test_tensorboard_gets_all_numbers_by_name(tmp_path):
  with begun_report(tmp_path) as run:
    run.train(1, train_entry(grad_norm=math.nan))
    run.evaluation(1, "full", eval_entry())
    run.evaluation(1, 6, eval_entry(3.75))
  values = {
    value.tag: (event.step, value.simple_value)
    for event in events(tmp_path)
    for value in event.summary.value
  }
  train_names = train_entry().keys() - {"grad_norm", "mfu"}
  eval_names = {"loss_full", "accuracy_full", "loss_path_6", "accuracy_path_6"}
  assert values.keys() == {f"train/{name}" for name in train_names} | {
    f"eval/{name}" for name in eval_names
  }
  assert values["train/loss"] == (1, 3.5)
  assert values["eval/loss_path_6"] == (1, 3.75)


def test_tensorboard_hides_only_what_is_written_again(tmp_path):
  train(tmp_path, 0, 8)
  train(tmp_path, 5, 8)
  starts = [e.step for e in events(tmp_path) if e.HasField("session_log")]
  assert starts == [0, 6]


def test_plain_lines_without_a_terminal(tmp_path, capsys):
  with begun_report(tmp_path, total_steps=1000) as run:
    run.note("compiled path of 6 layers in 3.1 s")
    run.evaluation(0, "full", eval_entry(11.5))
    run.evaluation(0, 6, eval_entry())
    run.train(5, train_entry())
    run.train(6, train_entry(path_length=10.5, mfu=0.5, stage=2))
  lines = capsys.readouterr().out.splitlines()
  assert lines == [
    "compiled path of 6 layers in 3.1 s",
    "step    0/1000  full model    loss 11.5000  accuracy 0.5000",
    "step    5/1000  path  6.0  loss  3.5000   41k tok/s  eta 0:01:40",
    "step    6/1000  path 10.5  loss  3.5000   41k tok/s  mfu 50%  eta 0:01:39",
  ]


def test_lines_of_a_long_run_fit_80_columns(tmp_path, capsys):
  lengths = np.full(2_000_000, 24.0)
  with begun_report(
    tmp_path, total_steps=2_000_000, path_lengths=lengths
  ) as run:
    entry = train_entry(
      path_length=24.0, loss=12.0, mfu=0.995, step_seconds=3.0
    )
    run.evaluation(999_999, "grown", eval_entry(12.0))
    run.train(1_000_000, entry | {"tokens_per_second": 949_999.0})
  lines = capsys.readouterr().out.splitlines()
  assert lines[1].endswith("loss 12.0000  950k tok/s  mfu 100%  eta 34d 17h")
  assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
  ("rate", "shown"),
  [(0.4, "0"), (999.4, "999"), (999.6, "1.0k"), (9949.0, "9.9k"),
   (9951.0, "10k"), (999_600, "1.0M"), (12_345_678, "12M")],
)  # fmt: skip
def test_a_rate_takes_four_characters(rate, shown):
  assert report._thousands(rate) == shown


def test_a_log_tells_what_the_run_waits_for_and_a_signal(tmp_path, capfd):
  with begun_report(tmp_path) as run:
    with run.activity("compiling", in_log=True):
      pass
    with run.activity("evaluating", in_log=False):
      pass
    run.announce("stopping")
    run.follow(lambda: 7)
  out, err = capfd.readouterr()
  assert out == "compiling ...\n"
  assert err == "stopping\n"


def test_a_kill_loses_no_row_of_tensorboard(tmp_path):
  """Rows are there before the process could end in order."""
  with begun_report(tmp_path) as run:
    run.train(1, train_entry())
    run.evaluation(1, "full", eval_entry())
    steps = {v.tag for event in events(tmp_path) for v in event.summary.value}
    assert {"train/loss", "eval/loss_full"} <= steps


def test_terminal_shows_a_bar_and_the_same_numbers(tmp_path, monkeypatch):
  screen = Terminal()
  monkeypatch.setattr("sys.stdout", screen)
  monkeypatch.setenv("TERM", "xterm")
  monkeypatch.setenv("COLUMNS", "80")
  with begun_report(tmp_path) as run:
    run.note("compiled [bold]")
    run.train(10, train_entry(stage=2))
    run._progress._bar.live.refresh()
    run.follow(lambda: 11)
    with run.activity("compiling", in_log=True):
      run._progress._bar.live.refresh()
    run.announce("stopping after this step")
  shown = screen.getvalue()
  assert "compiled [bold]" in shown
  assert "step 10/20" in shown
  assert "step 11/20" in shown
  assert "stage 2/3  path  6.0  loss  3.5000  eval     n/a   41k tok/s" in shown
  assert "mfu" not in shown
  assert "compiling, 0:00:0" in shown
  assert "stopping after this step" in shown
  assert "\x1b[?25h" in shown  # The cursor is back.


def test_remaining_time_is_exact_for_constant_cost():
  remaining = remaining_time.RemainingTime(np.full(100, 12.0), start_step=20)
  assert remaining.update(30, 0.5) == pytest.approx(70 * 0.5)
  assert remaining.update(99, 0.5) == pytest.approx(0.5)
  assert remaining.update(100, 0.5) == 0.0


def test_remaining_time_counts_longer_paths_to_come():
  lengths = np.repeat([5.0, 11.0], 50)
  remaining = remaining_time.RemainingTime(lengths, start_step=0)
  # Steps of 5 + 1 layers take 0.6 s, so those of 11 + 1 will take 1.2 s.
  assert remaining.update(40, 0.6) == pytest.approx(10 * 0.6 + 50 * 1.2)
  # An entry on both sides of the boundary costs what its steps cost.
  assert remaining.update(60, 0.9) == pytest.approx(40 * 1.2)


def test_remaining_time_forgets_the_compilation():
  remaining = remaining_time.RemainingTime(np.full(1000, 6.0), start_step=0)
  estimates = [remaining.update(1, 100.0)]
  estimates += [remaining.update(step, 0.1) for step in range(2, 80)]
  assert estimates[0] == pytest.approx(99_900)
  assert estimates[-1] == pytest.approx(921 * 0.1, rel=1e-3)


def test_path_lengths_must_cover_the_run(tmp_path):
  with pytest.raises(ValueError, match=r"shape \(19,\).*20 steps"):
    make_report(tmp_path, path_lengths=np.ones(19))


def test_summary_is_written_with_page_and_picture(tmp_path):
  summary = {
    "steps": 20,
    "final_eval_loss": np.float32(3.25),
    "unigram_loss": None,
    "flop_factor_nominal": 1.33,
    "flop_factor_spent": math.nan,
    "train_seconds": 60.0,
    "parameters": 1000,
    "num_layers": 12,
    "boundaries": (5, 10),
    "stage_path_lengths": np.array([6.0, 9.0, 12.0]),
    "date": "2026-11-22",
    "hardware": "1 x GPU",
    "versions": {"python": "3.12.1", "jax": "0.10.2"},
  }
  train(tmp_path, 0, 20)
  with begun_report(tmp_path, 20) as run:
    run.write_summary(summary)
  read = json.loads((tmp_path / run_files.SUMMARY_FILE).read_text())
  assert read["boundaries"] == [5, 10]
  assert read["stage_path_lengths"] == [6.0, 9.0, 12.0]
  assert read["flop_factor_spent"] is None
  assert (tmp_path / "summary.md").exists()
  assert (tmp_path / "curves.png").exists()
