"""The page shows the right numbers, and the picture is always drawn."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest

from raptr_jax.reports import curves, run_files, summary_page
from tests.pictures import check_axes, check_readable

SUMMARY = {
  "steps": 30,
  "final_eval_loss": 3.0,
  "unigram_loss": 6.25,
  "flop_factor_nominal": 1.33,
  "flop_factor_spent": 1.3249,
  "train_seconds": 3725.4,
  "parameters": 12345678,
  "num_layers": 12,
  "boundaries": [10, 20],
  "stage_path_lengths": [6.0, 9.0, 11.5],
  "date": "2026-11-22",
  "hardware": "1 x GPU",
  "versions": {"python": "3.12.1", "jax": "0.10.2"},
}


def full_entry(step, loss):
  return {"split": "eval", "step": step, "layers": "full", "loss": loss}


def path_entry(step, layers, loss):
  return {**full_entry(step, loss), "layers": layers}


def train_entry(step, loss):
  return {"split": "train", "step": step, "loss": loss, "flops": step * 2e12}


def write_run(folder, entries, **changes):
  summary = {**SUMMARY, **changes}
  (folder / run_files.SUMMARY_FILE).write_text(json.dumps(summary))
  lines = [json.dumps(entry) + "\n" for entry in entries]
  (folder / run_files.METRICS_FILE).write_text("".join(lines))


def page_of(folder, entries, **changes):
  write_run(folder, entries, **changes)
  summary_page.write_summary_markdown(folder)
  return (folder / "summary.md").read_text()


def test_stages_show_the_losses_around_their_boundaries(tmp_path):
  losses = {
    0: 9.0,
    5: 6.0,
    10: 4.0,
    12: 3.9,
    18: 3.8,
    20: 3.5,
    21: 3.6,
    30: 3.0,
  }
  page = page_of(tmp_path, [full_entry(*item) for item in losses.items()])
  losses = "| just before its start | first within it | at its end |"
  assert f"| stage | from step | path length {losses}" in page
  assert "| 1 | 0 | 6 | 9.0000 | 6.0000 (step 5) | 4.0000 |" in page
  assert "| 2 | 10 | 9 | 4.0000 | 3.9000 (step 12) | 3.5000 |" in page
  assert "| 3 | 20 | 11.5 | 3.5000 | 3.6000 (step 21) | 3.0000 |" in page


def test_an_evaluation_of_a_later_stage_is_not_within(tmp_path):
  page = page_of(tmp_path, [full_entry(10, 4.0), full_entry(25, 3.5)])
  assert "| 2 | 10 | 9 | 4.0000 | n/a | n/a |" in page
  assert "| 3 | 20 | 11.5 | n/a | 3.5000 (step 25) | n/a |" in page


def test_training_and_path_entries_are_no_full_evaluations(tmp_path):
  page = page_of(tmp_path, [train_entry(10, 1.0), path_entry(10, 6, 2.0)])
  assert "| 2 | 10 | 9 | n/a | n/a | n/a |" in page


def test_page_has_headline_and_picture(tmp_path):
  page = page_of(tmp_path, [])
  assert page.startswith(f"# {tmp_path.name}\n")
  assert "| final evaluation loss, full model | 3.0000 |" in page
  assert "| loss of the unigram model | 6.2500 |" in page
  assert "| FLOP factor, nominal | 1.330 |" in page
  assert "| FLOP factor, spent | 1.325 |" in page
  assert "| training time | 1 h 2 min 5 s |" in page
  assert "| parameters | 12,345,678 |" in page
  assert "](curves.png)" in page


def test_loss_by_length_is_that_of_the_last_evaluation(tmp_path):
  entries = [
    path_entry(10, 6, 5.0),
    path_entry(10, 3, 5.5),
    full_entry(10, 4.0),
  ]
  entries += [
    path_entry(30, 9, 3.25),
    path_entry(30, 6, 3.5),
    full_entry(30, 3.0),
  ]
  page = page_of(tmp_path, entries)
  table = "| 6 | 3.5000 |\n| 9 | 3.2500 |\n| 12 | 3.0000 |\n"
  assert page.endswith(f"| layers | evaluation loss |\n| --- | --- |\n{table}")


def test_kinds_of_examples_have_a_table_if_there_are_several(tmp_path):
  kinds = {"R": 3.5, "S": 2.25}
  page = page_of(tmp_path, [], loss_by_example_kind=kinds)
  table = "| R | 3.5000 |\n| S | 2.2500 |\n"
  assert page.endswith(f"| kind | evaluation loss |\n| --- | --- |\n{table}")
  assert "| kind |" not in page_of(tmp_path, [], loss_by_example_kind={})


def test_unknown_fields_are_listed_and_missing_numbers_named(tmp_path):
  page = page_of(tmp_path, [full_entry(10, None)], unigram_loss=None, seed=7)
  assert page.endswith("| seed | 7 |\n")
  assert "| loss of the unigram model | n/a |" in page
  assert "| 2 | 10 | 9 | nan | n/a | n/a |" in page


def test_torn_last_line_is_left_out(tmp_path):
  write_run(tmp_path, [full_entry(0, 9.0)])
  with (tmp_path / run_files.METRICS_FILE).open("a") as file:
    file.write('{"split": "tr')
  assert run_files.read_metrics(tmp_path) == [full_entry(0, 9.0)]


@pytest.mark.parametrize(
  "entries",
  [
    [],
    [train_entry(1, 5.0)],
    [full_entry(0, 9.0)],
    [train_entry(1, None), train_entry(2, None), full_entry(2, None)],
    [train_entry(step, 9.0 / step) for step in range(1, 31)],
    [full_entry(0, 9.0), full_entry(30, 3.0), path_entry(30, 6, 3.5)],
  ],
  ids=["none", "one train", "one eval", "not finite", "no eval", "no train"],
)
@pytest.mark.parametrize("unigram_loss", [6.25, None])
def test_picture_has_its_size_whatever_is_missing(
  tmp_path, entries, unigram_loss, caplog
):
  write_run(tmp_path, entries, unigram_loss=unigram_loss)
  curves.draw_curves(tmp_path)
  head = (tmp_path / "curves.png").read_bytes()[:24]
  assert head[:8] == b"\x89PNG\r\n\x1a\n"
  assert struct.unpack(">II", head[16:]) == (13 * 150, round(4.6 * 150))
  assert not caplog.records


def figure_of(folder, stages, *, steps, loss, lengths=(6, 9, 12)):
  """The picture of a run whose loss is a function of the share done."""
  every = np.unique(np.linspace(1, steps, 60).astype(int)).tolist()
  entries = [train_entry(step, loss(step / steps)) for step in every]
  entries += [full_entry(step, loss(step / steps) + 0.1) for step in every[::4]]
  entries += [path_entry(steps, n, loss(1) + n / 99) for n in lengths]
  boundaries = [steps * i // len(stages) for i in range(1, len(stages))]
  write_run(
    folder,
    entries,
    steps=steps,
    boundaries=boundaries,
    stage_path_lengths=stages,
    unigram_loss=loss(0.5),
  )
  return curves.curves_figure(run_files.read_run(folder))


LOSSES = {
  "falls": lambda done: 9 - 4 * done,
  "rises": lambda done: 5 + 4 * done,  # Through the upper right corner.
  "stays": lambda done: 5.0,
  "swings": lambda done: 7 + np.sin(40 * done),
}


@pytest.mark.parametrize(
  ("stages", "steps", "lengths", "loss"),
  [
    ([6.0, 8.0, 10.0, 12.0], 500, (6, 8, 10), "falls"),
    ([6.0, 8.0, 10.0, 12.0], 500, (6, 8, 10), "rises"),
    ([6 + 6 * i / 23 for i in range(24)], 675_000, range(1, 24), "rises"),
    ([6 + 6 * i / 23 for i in range(24)], 675_000, range(1, 24), "swings"),
    ([12.0], 60, (), "rises"),
    ([1.0, 2.0], 2, (1,), "stays"),
  ],
)
def test_text_lies_on_no_line(tmp_path, stages, steps, lengths, loss):
  figure = figure_of(
    tmp_path, stages, steps=steps, loss=LOSSES[loss], lengths=lengths
  )
  words = check_readable(figure)
  assert check_axes(figure) == {"loss", "FLOPs", "steps"}
  # Where stages are too short for all numbers, some are left out.
  assert len(stages) > 20 or {f"{x:.3g}" for x in stages} <= words


def test_the_check_sees_text_on_a_line():
  from matplotlib.figure import Figure

  figure = Figure()
  axes = figure.subplots()
  axes.plot([0, 1], [0, 1])
  axes.text(0.1, 0.9, "beside")
  check_readable(figure)
  axes.text(0.48, 0.48, "upon")
  with pytest.raises(AssertionError, match="'upon' lies on a line"):
    check_readable(figure)


def test_running_mean_skips_what_is_not_finite():
  values = np.array([1.0, np.nan, 3.0, 5.0])
  mean = curves._running_mean(values, 2)
  np.testing.assert_allclose(mean, [1.0, 2.0, 4.0, 4.0])
  assert np.isnan(curves._running_mean(np.array([np.nan]), 2)).all()


def test_smoothing_keeps_the_jump_between_stages(tmp_path):
  # Two hundred entries: enough for a window wider than one entry.
  losses = np.repeat([5.0, 4.0, 3.0], [67, 66, 67])
  entries = [
    train_entry(step, loss) for step, loss in enumerate(losses, start=1)
  ]
  write_run(tmp_path, entries, steps=200, boundaries=[67, 133])
  smooth = curves._smoothed(run_files.read_run(tmp_path))
  np.testing.assert_allclose(smooth, losses)


def test_flops_between_entries_lie_on_a_line(tmp_path):
  write_run(tmp_path, [train_entry(10, 5.0), train_entry(20, 4.0)])
  run = run_files.read_run(tmp_path)
  at = run.flops_at(np.array([0, 5, 10, 15, 25]))
  np.testing.assert_allclose(at, [0, 1e13, 2e13, 3e13, 4e13])


@pytest.mark.parametrize(
  "module", ["axes", "report", "run_files", "summary_page", "curves"]
)
def test_import_takes_neither_jax_nor_a_drawing_library(module):
  heavy = {"jax", "matplotlib", "rich", "tensorboardX"}
  code = f"""
import sys, raptr_jax.reports.{module}
print({heavy} & set(sys.modules))
"""
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout == "set()\n"
