"""Tables train the right runs, and their pages show the right numbers."""

import importlib
import itertools
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import gin
import numpy as np
import pytest

from raptr_jax import main
from raptr_jax.configuration.errors import ConfigurationError
from raptr_jax.tasks import files
from raptr_jax.training import experiment
from reproduce import TABLES
from tables import (
  bert_rows,
  evidence,
  figures,
  pages,
  results,
  runs,
  training,
  views,
)
from tables.table import FAMILIES, SCALES
from tables.ul2_rows import UL2_METHODS
from tables.wanted import wanted_runs
from tests.pictures import check_axes, check_readable

ROOT = Path(__file__).resolve().parent.parent
# Pages of what is not trained.
WITHOUT_RUNS = {
  ROOT / "results" / name
  for name in ("benchmark_cpu.md", "compiled_programs.md")
}
# What a user of a scale gives.
USERS = {
  "tiny": (),
  "small": ("--gin.TEXT_DIR='books'",),
  "paper": ("--gin.VOCABULARY_PATH='vocab.txt'",),
}
UL2_USERS = USERS | {
  "paper": ("--gin.VOCABULARY_PATH='vocab'", "--gin.GITHUB_DIR='github'")
}
ALL_ROWS = {row.name: row for table in TABLES.values() for row in table.rows}
# t quantiles for 95 % with 1 and 2 degrees of freedom, from printed tables.
T1, T2 = 12.7062, 4.3027
GRID = FAMILIES["bert"].learning_rates["tiny"]
UL2_GRID = FAMILIES["ul2_decoder"].learning_rates["tiny"]
BEST = 0.002


@pytest.fixture
def setting(tmp_path):
  return runs.Setting("tiny", tmp_path / "runs")


def run_of(setting, name, rate=BEST, seed=0) -> runs.Run:
  return runs.Run(setting, ALL_ROWS[name], rate, seed)


def write_run(run: runs.Run, loss: float, *, seconds=10.0, evals=(), **changes):
  """A finished run, as the loop leaves it."""
  summary = {
    "steps": 100,
    "final_eval_loss": loss,
    "flop_factor_nominal": 1.0,
    "flop_factor_spent": 1.0,
    "flops_spent": 1.3e15,
    "train_seconds": seconds,
    "num_layers": 12,
    "boundaries": [],
    "solved_for": {},
    "loss_by_example_kind": {},
    "date": "2026-01-02",
    "hardware": "2 CPU cores (Model)",
    "versions": {"jax": "0.10.2"},
    **changes,
  }
  run.folder.mkdir(parents=True)
  (run.folder / "summary.json").write_text(json.dumps(summary))
  lines = [
    {"split": "train", "step": step, "flops": step * 1.3e13, "loss": loss}
    for step in (50, 100)
  ]
  lines += [
    {"split": "eval", "step": step, "layers": layers, "loss": value}
    for step, layers, value in (*evals, (50, "full", 6.0), (100, "full", loss))
  ]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (run.folder / "metrics.jsonl").write_text(text)


def write_grid(setting, name="dense", best=BEST, loss=5.0, **changes):
  for rate in UL2_GRID if "ul2" in name else GRID:
    away = abs(math.log(rate / best))
    write_run(run_of(setting, name, rate), loss + away, **changes)


def write_page(setting, tmp_path, table, **kwargs) -> str:
  page = pages.write_report(
    tmp_path / "results",
    setting,
    TABLES[table],
    **{"tune": False, **kwargs},
  ).page
  assert page.with_suffix(".png").stat().st_size > 1000
  assert not list(page.parent.glob("*.partial"))
  return page.read_text()


def cells(page: str, label: str) -> list[str]:
  """The first line of the page's tables that has this label."""
  line = next(x for x in page.splitlines() if x.startswith(f"| {label} |"))
  return [cell.strip() for cell in line.split("|")[1:-1]]


def column(page: str, label: str, name: str) -> str:
  return cells(page, label)[cells(page, "method").index(name)]


# Statistics.


def test_an_estimate_is_mean_sd_and_the_t_interval():
  three = results.estimate([1.0, 2.0, 3.0])
  assert (three.mean, three.sd, three.n) == (2.0, 1.0, 3)
  assert three.half_width == pytest.approx(T2 / math.sqrt(3), rel=1e-4)
  two = results.estimate([1.0, 3.0])
  assert two.sd == pytest.approx(math.sqrt(2))
  assert two.half_width == pytest.approx(T1, rel=1e-4)
  assert math.isnan(results.estimate([1.0]).half_width)
  assert results.estimate([]) is None


def test_differences_are_paired_by_seed():
  difference = results.paired_difference(
    {0: 5.0, 1: 7.0, 2: 9.0, 7: 0.0}, {2: 8.0, 1: 5.0, 0: 2.0}
  )
  # 3, 2, 1, whose spread is far less than that of the values.
  assert (difference.mean, difference.sd, difference.n) == (2.0, 1.0, 3)
  low, high = difference.interval
  assert low == pytest.approx(2 - T2 / math.sqrt(3), rel=1e-4)
  assert high == pytest.approx(2 + T2 / math.sqrt(3), rel=1e-4)
  assert results.paired_difference({0: 1.0}, {1: 1.0}) is None


def test_the_speed_up_is_the_median_over_common_seeds():
  dense = {0: 12.0, 1: 12.0, 2: 12.0, 3: 1.0}
  assert results.median_ratio({0: 6.0, 1: 8.0, 2: 1.0}, dense) == 2.0
  assert results.median_ratio({5: 1.0}, dense) is None


# Rows and runs.


def test_a_name_is_one_run():
  for page in TABLES.values():
    for row in page.rows:
      assert row == ALL_ROWS[row.name]
    names = [row.name for row in page.rows]
    assert len(set(names)) == len(names)
    assert len({page.label(row) for row in page.rows}) == len(names)
    for part in page.comparisons:
      names = {row.name for row in part.rows}
      assert {*part.references, *part.curves, *part.verdicts} <= names
      assert part.dense.gin_files == ("methods/dense.gin",)
      assert {row.family for row in part.rows} == {part.dense.family}


@pytest.mark.parametrize(
  ("name", "scale"),
  [
    (row.name, scale)
    for row in ALL_ROWS.values()
    for scale in SCALES
    # Other rows have nothing that a scale could lack.
    if row.family == "bert"
    and (scale == "tiny" or row in bert_rows.METHODS.rows)
  ],
)
def test_every_command_configures_at_every_scale(name, scale, tmp_path):
  setting = runs.Setting(scale, tmp_path, USERS[scale])
  configure(run_of(setting, name, 1e-3, 3).command())
  assert gin.query_parameter("RANDOM_SEED/macro.value") == 3
  assert gin.query_parameter("LEARNING_RATE/macro.value") == 1e-3


def configure(command: str):
  """What the program does with a command that a shell reads; its flags."""
  python, module, name, *argv = shlex.split(command)
  assert (python, module, name) == ("python", "-m", "raptr_jax.main")
  return main.configure(argv)


def build(run: runs.Run) -> experiment.Experiment:
  run.configure()
  return gin.get_configurable(experiment.Experiment)()


def expected_flops(built: experiment.Experiment) -> tuple[float, float]:
  """Of a run's blocks, and of all, if no stage changes within."""
  step = built.model.step_flops(built.train_dataset.batch_spec())
  joints = [0, *built.boundaries, built.total_steps]
  blocks = sum(
    step.layers(
      {
        name: float(p.keep_probabilities(at).sum())
        for name, p in built.policies.items()
      }
    )
    * (end - at)
    for at, end in itertools.pairwise(joints)
  )
  return blocks, blocks + built.total_steps * step.step({})


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
  "part", UL2_METHODS.comparisons, ids=lambda part: part.dense.family
)
def test_ul2_rows_save_as_much_at_every_scale(part, scale, tmp_path):
  setting = runs.Setting(scale, tmp_path, UL2_USERS[scale])
  built = {
    row.name.removeprefix(f"{row.family}_"): build(
      runs.Run(setting, row, 1e-3, 0)
    )
    for row in part.rows
  }
  cost = {name: expected_flops(run) for name, run in built.items()}
  methods = [name for name in built if not name.startswith("dense")]
  assert len(methods) == 5
  for name in methods:
    assert cost["dense"][0] / cost[name][0] == pytest.approx(1.2, rel=1e-3)
    equal = cost["dense_equal_flops"]
    assert equal[1] == pytest.approx(cost[name][1], rel=2e-3)
  # Both readings of the paper's 1.2x.
  assert built["raptr"].solved_for == {"stage exponent": 1}
  assert built["raptr_equal_stages"].solved_for == {"stage exponent": 0}


@pytest.mark.parametrize("scale", SCALES)
def test_the_full_model_start_is_a_twentieth(scale, tmp_path):
  row = bert_rows.ABLATION.row("raptr_full_model_start")
  setting = runs.Setting(scale, tmp_path, USERS[scale])
  runs.Run(setting, row, 1e-3, 0).configure()
  steps = gin.query_parameter("FULL_TRAIN_STEPS/macro.value")
  first = gin.query_parameter("schedule.stage_schedule.full_model_steps")
  assert first == steps / 20


@pytest.mark.parametrize("root", ["runs", 'it\'s my $HOME `x` \\ "runs"!'])
def test_a_command_is_what_a_user_would_type(root, tmp_path):
  setting = runs.Setting("tiny", Path(root), ("--gin_search_paths=my files",))
  run = run_of(setting, "pld_deepspeed")
  command = run.command()
  if root == "runs":
    assert "--gin.MODEL_DIR=\"'runs/tiny/pld_deepspeed" in command
  program = "import sys; print(sys.argv[1:])"
  words = subprocess.run(
    [
      "bash",
      "-c",
      command.replace(
        "python -m raptr_jax.main", f"'{sys.executable}' -c '{program}'"
      ),
    ],
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  assert words.strip() == str(run.arguments())
  configure(command)
  assert gin.query_parameter("MODEL_DIR/macro.value") == str(run.folder)


def test_a_run_that_has_changed_is_an_error(setting):
  run = run_of(setting, "raptr")
  assert run.changes() == []
  run.folder.mkdir(parents=True)
  config = run.configure()
  # Other rows in between, and another folder, change nothing.
  for other in ("dense", "gradual_stacking", "dense_equal_flops"):
    run_of(setting, other).configure()
  (run.folder / "config.gin").write_text(
    config.replace(f"'{run.folder}'", "'elsewhere'")
  )
  training.check_unchanged([run])
  (run.folder / "config.gin").write_text(
    config.replace("BATCH_SIZE = 32", "BATCH_SIZE = 64")
  )
  with pytest.raises(ValueError, match="row raptr") as info:
    training.check_unchanged([run])
  message = str(info.value)
  assert "-BATCH_SIZE = 64" in message
  assert "+BATCH_SIZE = 32" in message
  assert f"{run.folder}" in message
  assert "Delete the folder" in message


@pytest.mark.parametrize("name", runs.OWN_MACROS)
def test_what_rows_decide_cannot_be_overridden(name, tmp_path):
  with pytest.raises(ValueError, match=name):
    runs.Setting("tiny", tmp_path, (f"--gin.{name}=1",))


# Which runs are done, and in which order.


def wanted(setting, *names, table="bert_methods", tune=False, **kwargs):
  table = TABLES[table]
  found = wanted_runs(
    setting,
    table,
    rows=[table.row(name) for name in names],
    **{"seeds": 2, "tune": tune, **kwargs},
  )
  return [(run.row.name, run.learning_rate, run.seed) for run in found]


def test_the_grid_comes_first_and_seeds_take_turns(setting):
  write_grid(setting)
  assert wanted(setting, "dense", "raptr") == [
    *(("dense", rate, 0) for rate in GRID),
    ("raptr", BEST, 0),
    ("dense", BEST, 1),
    ("raptr", BEST, 1),
  ]


def test_tuning_gives_each_row_its_own_best(setting):
  write_grid(setting, "dense", 0.002)
  write_grid(setting, "raptr", 0.008)
  found = wanted(setting, "dense", "raptr", tune=True)
  assert found[: 2 * len(GRID)] == [
    (name, rate, 0) for name in ("dense", "raptr") for rate in GRID
  ]
  assert found[2 * len(GRID) :] == [("dense", 0.002, 1), ("raptr", 0.008, 1)]


def test_nothing_follows_a_grid_that_has_failed(setting):
  failed = [run_of(setting, "dense", rate) for rate in GRID]
  assert wanted(setting, "dense", "raptr", failed=failed) == [
    ("dense", rate, 0) for rate in GRID
  ]
  write_run(failed[1], 5.0)
  found = wanted(setting, "dense", "raptr", failed=failed[:1])
  assert ("raptr", GRID[1], 0) in found


def test_a_row_alone_is_all_that_runs(setting):
  middle = GRID[len(GRID) // 2]
  assert wanted(setting, "raptr") == [
    ("raptr", middle, 0),
    ("raptr", middle, 1),
  ]
  assert wanted(setting, "raptr", seeds=1, tune=True) == [
    ("raptr", rate, 0) for rate in GRID
  ]
  write_grid(setting)
  assert wanted(setting, "raptr", seeds=1) == [("raptr", BEST, 0)]


def test_each_family_is_tuned_for_itself(setting):
  write_grid(setting, "ul2_decoder_dense", UL2_GRID[1])
  write_grid(setting, "ul2_encdec_dense", UL2_GRID[2])
  names = ("ul2_decoder_raptr", "ul2_encdec_dense", "ul2_encdec_raptr")
  found = wanted(setting, *names, table="ul2_methods", seeds=1)
  assert found == [
    *(("ul2_encdec_dense", rate, 0) for rate in UL2_GRID),
    ("ul2_decoder_raptr", UL2_GRID[1], 0),
    ("ul2_encdec_raptr", UL2_GRID[2], 0),
  ]


def test_the_data_of_each_family_are_prepared_once(
  setting, tmp_path, monkeypatch
):
  prepared = []
  monkeypatch.setattr(training, "launch", lambda run, watch: False)
  monkeypatch.setattr(training, "log_tail", lambda run: "")
  monkeypatch.setattr(
    training, "prepare_data", lambda run: prepared.append(run.row.family)
  )
  monkeypatch.setattr(training, "write_report", lambda *args, **kwargs: None)
  training.train_rows(
    setting,
    UL2_METHODS,
    rows=UL2_METHODS.rows,
    seeds=1,
    tune=False,
    results=tmp_path,
  )
  assert prepared == ["ul2_decoder", "ul2_encdec"]


def test_finished_runs_are_skipped_failures_are_shown(
  setting, tmp_path, monkeypatch, capsys
):
  write_grid(setting)
  launched = []

  def fake(run, watch):
    launched.append((run.row.name, run.seed))
    watch()
    if run.row.name == "constant":
      run.folder.mkdir(parents=True)
      (run.folder / "log.txt").write_text("step  5/20  x\nerror: no memory\n")
      watch()
      return False
    write_run(run, 4.5)
    return True

  monkeypatch.setattr(training, "launch", fake)
  monkeypatch.setattr(training, "prepare_data", lambda run: None)
  monkeypatch.setattr(
    training, "write_report", lambda *args, **kwargs: launched.append("page")
  )
  table = bert_rows.METHODS
  failed = training.train_rows(
    setting,
    table,
    rows=[table.row(name) for name in ("dense", "constant", "raptr")],
    seeds=1,
    tune=False,
    results=tmp_path,
  )
  assert launched == [("constant", 0), "page", ("raptr", 0), "page"]
  assert [run.row.name for run in failed] == ["constant"]
  out = capsys.readouterr().out
  assert "run 1/2  constant, lr 0.002, seed 0: failed" in out
  assert "error: no memory" in out
  assert "run 2/2  raptr, lr 0.002, seed 0: loss 4.5000" in out
  # In a log a run has a line when it starts and one when it ends.
  lines = [line for line in out.splitlines() if line.startswith("run ")]
  assert len(lines) == 4
  assert lines[0] == "run 1/2  constant, lr 0.002, seed 0 ..."


def test_the_log_tells_the_step(setting):
  run = run_of(setting, "raptr")
  assert runs.steps_done(run) is None
  run.folder.mkdir(parents=True)
  log = run.folder / runs.LOG_FILE
  log.write_text("compiling\n")
  assert runs.steps_done(run) is None
  log.write_text("step  10/500  stage 1/4\nstep 120/500  full model\nnote\n")
  assert runs.steps_done(run) == (120, 500)


def test_a_run_has_one_process(setting):
  run = run_of(setting, "raptr")
  run.folder.mkdir(parents=True)
  with (
    files.only_writer(run.folder, "running"),
    pytest.raises(BlockingIOError, match="another process"),
  ):
    training.launch(run, lambda: None)


@pytest.fixture
def old_package(tmp_path, monkeypatch):
  """An older raptr_jax in the current folder and on the Python path."""
  package = tmp_path / "raptr_jax"
  package.mkdir()
  (package / "__init__.py").write_text("raise RuntimeError('an old package')")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_a_child_that_fails_is_no_finished_run(
  setting, monkeypatch, old_package
):
  run = run_of(setting, "raptr")
  monkeypatch.setattr(runs.Run, "arguments", lambda self: ["--nonsense"])
  assert not training.launch(run, lambda: None)
  assert "unrecognized arguments: --nonsense" in runs.log_tail(run)


def test_the_script_uses_its_own_checkout(old_package):
  done = subprocess.run(
    [sys.executable, ROOT / "scripts/reproduce.py", "--table", "nothing"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stderr.startswith("error: argument --table: invalid choice")


CHILD = """
import signal, sys, time
def save(*_):
  print("saved", flush=True)
  sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("step 1/9 ", flush=True)
time.sleep(60)
"""


def test_ctrl_c_stops_the_child_when_it_has_saved(setting, monkeypatch):
  monkeypatch.setattr(training, "PROGRAM", (sys.executable, "-c", CHILD))
  monkeypatch.setattr(training, "POLL_SECONDS", 0.05)
  run = run_of(setting, "raptr")

  def watch():
    if runs.steps_done(run):
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    training.launch(run, watch)
  assert runs.log_tail(run).endswith("saved")


@pytest.mark.parametrize("end", ["sys.exit(130)", "os.kill(os.getpid(), 15)"])
def test_a_child_that_was_stopped_stops_the_table(setting, monkeypatch, end):
  code = f"import os, sys; {end}"
  monkeypatch.setattr(training, "PROGRAM", (sys.executable, "-c", code))
  with pytest.raises(KeyboardInterrupt):
    training.launch(run_of(setting, "raptr"), lambda: None)


# Pages.


def test_a_page_of_losses_has_the_numbers(setting, tmp_path):
  write_grid(setting, loss=5.0)
  write_run(run_of(setting, "dense", seed=1), 5.2, seconds=16.0)
  for seed, loss in enumerate((4.9, 5.0)):
    write_run(
      run_of(setting, "raptr", seed=seed),
      loss,
      seconds=8.0,
      flop_factor_nominal=4 / 3,
      flop_factor_spent=1.25,
      flops_spent=1e15,
      solved_for={"stage exponent": 0.12344},
    )
  write_run(run_of(setting, "dense_equal_flops"), 5.1, steps=80)
  write_run(run_of(setting, "dense_shallower"), 5.3, num_layers=9)
  page = write_page(setting, tmp_path, "bert_methods")

  dense = "difference to dense, full FLOPs"
  equal = "difference to dense, equal FLOPs"
  raptr = bert_rows.RAPTR.label
  assert column(page, raptr, "solved for") == "stage exponent = 0.1234"
  assert column(page, raptr, "FLOP factor, nominal") == "1.333x"
  assert column(page, raptr, "spent") == "1.250x"
  assert column(page, raptr, "with embeddings and head") == "1.300x"
  assert column(page, raptr, "evaluation loss") == "4.9500 ± 0.0707 (2)"
  # Differences -0.1 and -0.2.
  half = T1 * 0.05
  assert column(page, raptr, dense) == (
    f"-0.1500 ({-0.15 - half:+.4f} to {-0.15 + half:+.4f})"
  )
  assert column(page, raptr, equal) == "-0.2000 (–)"
  assert column(page, raptr, "speed-up") == "1.62x"  # Of 1.25 and 2.
  assert column(page, raptr, "paper (BERT-Base)") == "1.75"
  assert column(page, "dense, full FLOPs", dense) == "–"
  assert column(page, "dense, full FLOPs", "paper (BERT-Base)") == "1.76"
  assert column(page, "dense, equal FLOPs", "FLOP factor, nominal") == "1.250x"
  assert column(page, "dense, fewer layers", "FLOP factor, nominal") == "1.333x"
  assert set(cells(page, "LayerDrop")[1:]) == {"–"}
  assert "LayerDrop (0 of 2)" in page
  assert "no difference that these seeds could tell from chance" in page
  assert "-0.2000 with one seed" in page
  assert "- hardware: 2 CPU cores (Model)\n- versions: jax 0.10.2" in page
  assert "- date: 2026-01-02\n" in page
  assert "- seeds: 0, 1\n" in page
  assert run_of(setting, "raptr").command() in page
  assert "--table bert_methods --scale tiny --seeds 2\n" in page


def test_a_page_of_two_families_compares_within_each(setting, tmp_path):
  for family, loss in (("ul2_decoder", 5.0), ("ul2_encdec", 3.0)):
    flops = loss * 1e15
    write_grid(setting, f"{family}_dense", loss=loss, flops_spent=flops)
    for seed, shift in enumerate((0.25, 0.75)):
      write_run(
        run_of(setting, f"{family}_raptr", seed=seed),
        loss + shift,
        flops_spent=flops / 1.25,
        loss_by_example_kind={"R, 3": loss - shift, "S": 2 * loss},
      )
  page = write_page(setting, tmp_path, "ul2_methods")
  decoder, encdec = page.split("## Encoder-decoder")
  assert "## Decoder-only" in decoder
  label = UL2_METHODS.row("ul2_decoder_raptr").label
  difference = "difference to dense, full FLOPs"
  for part, loss in ((decoder, 5.0), (encdec, 3.0)):
    assert column(part, label, "evaluation loss") == f"{loss + 0.5:.4f}" + (
      " ± 0.3536 (2)"
    )
    assert column(part, label, difference) == "+0.2500 (–)"
    assert column(part, label, "with embeddings and head") == "1.250x"
    kinds = part[part.index("| loss by denoiser |") :]
    assert cells(kinds, "loss by denoiser")[1:] == ["R, 3", "S"]
    assert cells(kinds, label)[1:] == [f"{loss - 0.5:.4f}", f"{2 * loss:.4f}"]
    assert cells(kinds, "MidAS")[1:] == ["–", "–"]
    assert f"{label} against dense, full FLOPs: +0.2500 with one seed" in part
  assert "paper (BERT-Base)" not in page
  grids = page[page.index("## Learning rates") :]
  assert cells(grids, "Decoder-only: dense, full FLOPs")[1] == "**5.0000**"
  assert cells(grids, "Encoder-decoder: dense, full FLOPs")[1] == "**3.0000**"
  assert f"<summary>Encoder-decoder: {label}</summary>" in page
  assert "Encoder-decoder: MidAS (0 of 2)" in page


@pytest.mark.parametrize(
  ("values", "verdict"),
  [
    ((4.8, 4.81, 4.79), "a lower loss"),
    ((5.2, 5.21, 5.19), "a higher loss"),
    ((4.5, 5.0, 5.6), "could tell from chance"),
  ],
)
def test_the_verdict_goes_by_the_interval(values, verdict):
  difference = results.paired_difference(
    dict(enumerate(values)), {0: 5.0, 1: 5.0, 2: 5.0}
  )
  assert verdict in views.verdict("a", "b", difference)


def test_the_learning_rate_is_shown_with_its_grid(setting, tmp_path):
  write_grid(setting)
  page = write_page(setting, tmp_path, "bert_methods")
  grid = page[page.index("## Learning rates") :]
  assert cells(grid, "evaluation loss at")[1:] == [
    "0.001", "0.002", "0.004", "0.008"
  ]  # fmt: skip
  assert cells(grid, "dense, full FLOPs")[2] == "**5.0000**"
  assert "Tuned for dense" in grid
  assert "edge" not in grid


def test_the_edge_of_a_grid_is_a_warning(setting, tmp_path):
  write_grid(setting, best=0.008)
  assert "is at the edge" in write_page(setting, tmp_path, "bert_methods")


def test_a_grid_with_gaps_and_nulls_says_so(setting, tmp_path):
  write_run(run_of(setting, "dense", 0.002), 5.0)
  write_run(run_of(setting, "dense", 0.008), None)
  grid = results.read_grid(setting, bert_rows.DENSE)
  assert grid.best == 0.002
  assert not grid.is_complete
  page = write_page(setting, tmp_path, "bert_methods")
  assert "not all runs of the grid" in page


def test_a_tuned_page_uses_each_best(setting, tmp_path):
  write_grid(setting, "dense", 0.002, loss=5.0)
  write_grid(setting, "raptr", 0.004, loss=4.0)
  page = write_page(setting, tmp_path, "bert_methods", tune=True)
  assert (tmp_path / "results/bert_methods_tiny_tuned.png").exists()
  assert column(page, bert_rows.RAPTR.label, "evaluation loss") == "4.0000 (1)"
  assert "lr_0.004/seed_0" in page
  assert "--tune" in page


@pytest.mark.parametrize("table", TABLES)
def test_a_page_can_be_made_of_nothing(table, setting, tmp_path):
  page = write_page(setting, tmp_path, table)
  assert "No run has finished." in page
  middle = FAMILIES[TABLES[table].rows[0].family].learning_rates["tiny"][2]
  assert f"have the learning rate {middle:g}, its middle" in page


def test_the_sweep_has_a_line_a_row(setting, tmp_path):
  write_grid(setting)
  for name, factor in (("raptr", 4 / 3), ("raptr_1.2", 1.2)):
    write_run(run_of(setting, name), 5.1, flop_factor_nominal=factor)
  page = write_page(setting, tmp_path, "flop_sweep")
  assert column(page, "RaPTr, 1.2x", "FLOP factor, nominal") == "1.200x"


def test_transitions_are_the_losses_around_boundaries(setting, tmp_path):
  write_grid(setting)
  for seed, shift in enumerate((0.0, 0.2)):
    evals = [
      (40, "full", 6.0 + shift),
      (40, "grown", 7.0 + shift),
      (41, "full", 5.9),
      (80, "full", 5.5),
    ]
    run = run_of(setting, "gradual_stacking", seed=seed)
    write_run(run, 5.0, boundaries=[40, 80], evals=evals)
  page = write_page(setting, tmp_path, "transitions")
  label = "gradual stacking, 12 layers"
  assert cells(page, label) == [
    label, "40", "6.1000", "7.1000", "5.9000", "-0.2000 ± 0.1414 (2)"
  ]  # fmt: skip
  second = page[page.index(f"| {label} | 80") :]
  assert cells(second, label)[1:] == ["80", "5.5000", "–", "–", "–"]
  assert set(cells(page, "RaPTr, 24 layers")[1:]) == {"–"}


def test_transitions_tell_what_was_not_measured(setting):
  run = run_of(setting, "raptr")
  write_run(run, 5.0, evals=[(40, 6, 1.0)])
  assert results.transitions(run, [40]) == {
    40: results.Transition(None, None, None)
  }


def test_curves_are_means_at_common_steps(setting):
  write_grid(setting)
  write_run(run_of(setting, "dense", seed=1), 7.0, evals=[(25, "full", 9.0)])
  grids = results.read_grids(setting, bert_rows.METHODS, tune=False)
  found = results.read_results(setting, bert_rows.METHODS, grids)
  curve = results.mean_curve(found["dense"])
  np.testing.assert_array_equal(curve.steps, [50, 100])
  np.testing.assert_allclose(curve.losses, [6.0, 6.0])
  np.testing.assert_allclose(curve.flops, [6.5e14, 1.3e15])


@pytest.fixture
def drawn(monkeypatch):
  """The pictures that are written."""
  from matplotlib.figure import Figure

  drawn, savefig = [], Figure.savefig

  def keep(figure, *args, **kwargs):
    drawn.append(figure)
    savefig(figure, *args, **kwargs)

  monkeypatch.setattr(Figure, "savefig", keep)
  return drawn


@pytest.mark.parametrize(
  ("table", "kinds"),
  [
    ("bert_methods", {"loss", "FLOPs"}),
    ("ul2_methods", {"loss", "FLOPs"}),
    ("flop_sweep", {"loss"}),
    ("transitions", {"loss", "steps"}),
  ],
)
def test_pictures_are_readable_and_written_alike(
  table, kinds, setting, tmp_path, drawn
):
  for number, row in enumerate(TABLES[table].rows):
    rate = FAMILIES[row.family].learning_rates["tiny"][2]
    for seed in range(2):
      write_run(
        runs.Run(setting, row, rate, seed),
        5.0 + 0.1 * seed + 0.01 * number,
        flop_factor_nominal=1 + 0.1 * number,
        boundaries=[] if "dense" in row.name else [50],
        num_layers=int(row.overrides.get("NUM_LAYERS", 12)),
        evals=[(step, "full", 5 + 50 / step) for step in range(5, 100, 5)],
      )
  write_page(setting, tmp_path, table)
  (figure,) = drawn
  check_readable(figure)
  assert check_axes(figure) == kinds


def test_lines_have_their_own_colors_or_unused_ones():
  wanted = {
    "dense": figures.BLACK,
    "mine": None,
    "raptr": figures.VERMILION,
    "raptr again": figures.VERMILION,
    "other": None,
  }
  assert figures.distinct_colors(wanted) == {
    "dense": figures.BLACK,
    "mine": figures.BLUE,
    "raptr": figures.VERMILION,
    "raptr again": figures.GREEN,
    "other": figures.ORANGE,
  }
  many = figures.distinct_colors(dict.fromkeys("abcdefghijklmnop"))
  assert len(many) == 16
  assert len(set(many.values())) == len(figures.COLOR_CYCLE)


# The program.


@pytest.fixture
def program(tmp_path, monkeypatch):
  """`scripts/reproduce.py`, in an empty folder."""
  monkeypatch.syspath_prepend(ROOT / "scripts")
  monkeypatch.chdir(tmp_path)
  return importlib.import_module("reproduce")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_has_its_exit_code(number, program, monkeypatch, capsys):
  monkeypatch.setattr(
    program, "train_rows", lambda *_, **__: os.kill(os.getpid(), number)
  )
  before = signal.getsignal(number)
  with pytest.raises(SystemExit) as info:
    program.main(["--table", "bert_methods", "--scale", "tiny"])
  assert info.value.code == 128 + number
  assert "run the same command again to resume" in capsys.readouterr().err
  assert signal.getsignal(number) == before


def test_a_dry_run_lists_what_will_run(setting, program, monkeypatch, capsys):
  flags = ["--table", "bert_methods", "--scale", "tiny", "--seeds", "2"]
  flags += ["--runs", "runs", "--only", "raptr", "dense"]
  write_run(run_of(setting, "dense", GRID[0]), 9.0)

  def listed():
    program.main([*flags, "--dry_run"])
    page = capsys.readouterr().out
    assert "--multihost" not in page
    lines = page[page.index("| row |") :].partition("\n\n")[0].splitlines()
    return [[c.strip() for c in x.split("|")[1:-1]] for x in lines[2:]]

  dense, raptr = bert_rows.DENSE.label, bert_rows.RAPTR.label
  unknown = f"best of the grid ({GRID[0]:g} until it is known)"
  assert listed() == [
    [dense, f"{GRID[0]:g}", "–", "0"],
    *([dense, f"{rate:g}", "0", "–"] for rate in GRID[1:]),
    [raptr, unknown, "0, 1", "–"],
    [dense, unknown, "1", "–"],
  ]
  launched = []

  def launch(run, watch):
    launched.append((run.row.label, run.learning_rate, run.seed))
    write_run(run, 5.0 + abs(math.log(run.learning_rate / BEST)))
    return True

  monkeypatch.setattr(training, "launch", launch)
  monkeypatch.setattr(training, "prepare_data", lambda run: None)
  monkeypatch.setattr(training, "write_report", lambda *_, **__: None)
  program.main(flags)
  expected = [
    *((dense, rate, 0) for rate in GRID[1:]),
    (raptr, BEST, 0),
    (raptr, BEST, 1),
    (dense, BEST, 1),
  ]
  assert launched == expected
  capsys.readouterr()
  assert listed() == [
    [dense, f"{GRID[0]:g}", "–", "0"],
    [dense, f"{BEST:g}", "–", "0, 1"],
    *([dense, f"{rate:g}", "–", "0"] for rate in GRID[2:]),
    [raptr, f"{BEST:g}", "–", "0, 1"],
  ]
  program.main(flags)
  assert launched == expected


def test_a_row_alone_says_where_its_learning_rate_is_from(program, capsys):
  flags = ["--table", "bert_methods", "--scale", "tiny", "--only", "raptr"]
  program.main([*flags, "--dry_run", "--seeds", "1"])
  page = capsys.readouterr().out
  assert "Row dense has not tuned the learning rate, so it is 0.004" in page
  assert "1 of 1 runs are left;" in page


# What stands behind a page.


def behind(*options, **rows) -> evidence.Evidence:
  return evidence.Evidence(options, rows)


@pytest.mark.parametrize(
  ("old", "new", "reason"),
  [
    (behind(a=(9, 5)), behind(a=(9, 5)), ""),
    (behind(a=(9, 5)), behind(a=(10, 6), b=(1, 1)), ""),
    (
      behind(a=(9, 5)),
      behind(a=(9, 4)),
      "which has more seeds of row a: 5 against 4",
    ),
    (
      behind(a=(9, 5)),
      behind(a=(8, 9)),
      "which has more steps of row a: 9 against 8",
    ),
    (
      behind(a=(9, 5)),
      behind(b=(9, 5)),
      "which has more seeds of row a: 5 against 0",
    ),
    (behind(a=(9, 5)), behind("X=1", a=(9, 5)), "made with no overrides"),
    (behind("X=2", a=(9, 5)), behind("X=1", a=(9, 5)), "made with X=2"),
  ],
)
def test_a_page_gives_way_to_one_with_as_much(old, new, reason, tmp_path):
  page = tmp_path / "mine.md"
  assert evidence.place_of(tmp_path, "mine", new) == evidence.Place(page)
  pages.write_page(page, ["# Mine", old.comment()])
  assert evidence.Evidence.read(page) == old
  place = evidence.place_of(tmp_path, "mine", new)
  assert (place.page == page) == (reason == "")
  if reason:
    folder = "X=1" if new.options else "partial"
    assert place.page == tmp_path / "trials" / folder / "mine.md"
    assert str(place).endswith(f"this does not replace {page}, {reason}")


def test_a_page_without_a_record_stays(tmp_path):
  (tmp_path / "mine.md").write_text("# Mine\n")
  place = evidence.place_of(tmp_path, "mine", behind(a=(9, 5)))
  assert place.page == tmp_path / "trials/partial/mine.md"
  assert "does not record" in place.reason


def test_a_trial_leaves_what_is_there(program, capsys, tmp_path):
  kept = tmp_path / "results/bert_methods_tiny.md"
  kept.parent.mkdir()
  committed = (ROOT / "results" / kept.name).read_text("utf-8")
  kept.write_text(committed)
  setting = runs.Setting("tiny", Path("runs"), ("--gin.FULL_TRAIN_STEPS=30",))
  assert setting.folder == Path("runs/trials/FULL_TRAIN_STEPS=30/tiny")
  for seed in range(9):
    for row in bert_rows.METHODS.rows:
      run = runs.Run(setting, row, GRID[2], seed)
      write_run(run, 6.0, steps=30)
  flags = ["--table", "bert_methods", "--scale", "tiny", "--runs", "runs"]
  program.main([*flags, "--report_only", "--gin.FULL_TRAIN_STEPS=30"])
  trial = Path("results/trials/FULL_TRAIN_STEPS=30/bert_methods_tiny.md")
  assert (
    capsys.readouterr().out == f"{trial}: a trial with FULL_TRAIN_STEPS=30\n"
  )
  assert "6.0000 ± 0.0000 (9)" in trial.read_text()
  # Nothing was trained without the override.
  program.main([*flags, "--report_only"])
  (line,) = capsys.readouterr().out.splitlines()
  assert line == (
    "results/trials/partial/bert_methods_tiny.md: this does not replace"
    " results/bert_methods_tiny.md, which has more seeds of row dense: 5 against 0"
  )
  assert kept.read_text() == committed
  assert not kept.with_suffix(".png").exists()


def test_as_many_seeds_and_steps_replace_a_page(setting, tmp_path):
  first = write_page(setting, tmp_path, "bert_methods")
  write_grid(setting)
  second = write_page(setting, tmp_path, "bert_methods")
  assert first != second
  assert (tmp_path / "results/bert_methods_tiny.md").read_text() == second
  assert not (tmp_path / "results/trials").exists()


@pytest.mark.parametrize(
  "page",
  # That of compiled programs has no runs.
  sorted({*(ROOT / "results").glob("*.md")} - WITHOUT_RUNS),
  ids=lambda path: path.name,
)
def test_committed_pages_record_their_runs(page):
  found = evidence.Evidence.read(page)
  assert found
  assert found.rows
  if page.name.startswith("bert_methods_tiny"):
    assert found.rows["raptr"] == (500, 5)
    assert found.rows["midas"] == (500, 1)


@pytest.mark.parametrize(
  "page",
  sorted(
    path
    for path in (ROOT / "results").glob("*_tiny.md")
    if path.name.removesuffix("_tiny.md") in TABLES
  ),
  ids=lambda path: path.name,
)
def test_committed_pages_show_the_commands_of_their_table(page):
  """Those that the table's rows have now; a test above configures them."""
  table = TABLES[page.name.removesuffix("_tiny.md")]
  text = page.read_text("utf-8")
  shown = re.findall(r"^python -m raptr_jax.main .*$", text, re.MULTILINE)
  setting = runs.Setting("tiny", Path("runs/reproduce"))
  rates = [float(re.search(r"LEARNING_RATE=(\S+)", line)[1]) for line in shown]
  assert shown == [
    runs.Run(setting, row, rate, 0).command()
    for row, rate in zip(table.rows, rates, strict=True)
  ]


def test_overrides_name_a_folder_in_any_order():
  overrides = ("--gin.B='x y'", "--gin.A=(1, 2)", "--gin_search_paths=mine")
  for order in itertools.permutations(overrides):
    setting = runs.Setting("tiny", Path("runs"), order)
    assert setting.trial == "A=_1,_2_,B=_x_y_"
    assert setting.options == ("A=(1, 2)", "B='x y'")
  long = [f"NAME_{i}={'x' * i}" for i in range(20)]
  assert len(evidence.folder_name(long)) < 80
  assert evidence.folder_name(long) != evidence.folder_name([*long, "Z=1"])
  inputs = runs.Setting("small", Path("runs"), USERS["small"])
  assert (inputs.trial, inputs.options) == ("", ("TEXT_DIR='books'",))


def test_report_only_runs_nothing(setting, tmp_path, program, capsys):
  write_grid(setting)
  argv = ["--table", "bert_methods", "--scale", "tiny", "--report_only"]
  program.main(argv)
  assert capsys.readouterr().out.strip() == "results/bert_methods_tiny.md"
  assert "5.0000" not in Path("results/bert_methods_tiny.md").read_text()
  program.main([*argv, "--runs=runs", "--results=pages"])
  assert "5.0000" in Path("pages/bert_methods_tiny.md").read_text()
  assert {p.name for p in setting.folder.iterdir()} == {"dense"}


MY_TABLES = """
import dataclasses

from tables import views
from tables.bert_rows import DENSE, RAPTR
from tables.table import Comparison, Row, Table

MINE = Row("mine", "my method", ("mine.gin",))
OTHER = dataclasses.replace(MINE, name="other", label="my other method")
TABLE = Table(
  name="my_table",
  title="BERT: my method",
  comparisons=(
    Comparison(
      rows=(DENSE, RAPTR, MINE, OTHER),
      references=("dense", "raptr"),
      curves=("dense", "raptr", "mine", "other"),
      verdicts=("mine",),
    ),
  ),
  view=views.VIEW,
)
"""


@pytest.mark.parametrize("view", ["LOSSES", "SWEEP", "TRANSITIONS"])
def test_a_table_with_new_methods_is_one_file(
  view, setting, tmp_path, program, monkeypatch
):
  (tmp_path / "my_tables.py").write_text(MY_TABLES.replace("VIEW", view))
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, "my_tables", raising=False)
  table = program.find_table("my_tables.TABLE")
  write_grid(setting)
  for row in table.rows[1:]:
    for seed in range(2):
      run = runs.Run(setting, row, BEST, seed)
      write_run(run, 5.0 + seed, flop_factor_nominal=1.2, boundaries=[50])
  argv = ["--table", "my_tables.TABLE", "--scale", "tiny", "--report_only"]
  program.main([*argv, "--runs=runs"])
  page = Path("results/my_table_tiny.md").read_text()
  assert "--table my_tables.TABLE --scale tiny --seeds 2\n" in page
  assert "--gin_file=mine.gin" in page
  if view == "TRANSITIONS":
    assert cells(page, "my method")[1] == "50"
  else:
    assert column(page, "my method", "evaluation loss").startswith("5.5000 ±")
  assert Path("results/my_table_tiny.png").stat().st_size > 1000


def test_a_dry_run_plans_a_family_against_its_dense_row(program, capsys):
  argv = ["--table", "ul2_methods", "--scale", "tiny", "--dry_run"]
  program.main([*argv, "--only", "ul2_encdec_constant"])
  page = capsys.readouterr().out
  label = "Encoder-decoder: constant path length"
  assert cells(page, label)[1:3] == ["500", "1.200x"]
  command = run_of(
    runs.Setting("tiny", Path("runs/reproduce")),
    "ul2_encdec_constant",
    UL2_GRID[2],
  ).command()
  assert command in page
  assert "Decoder-only" not in page
  assert not list(Path().iterdir())


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (("--table", "nothing"), "invalid choice: 'nothing'"),
    (("--table", "nothing.TABLE"), "No module named 'nothing'"),
    (("--table", "tables.bert_rows.NOTHING"), "has no attribute 'NOTHING'"),
    (("--table", "tables.bert_rows.DENSE"), "is a Row, not a Table"),
    (("--table", "bert_methods"), "needs --scale tiny|small|paper"),
    (
      ("--table", "bert_methods", "--scale", "tiny", "--only", "denes"),
      "bert_methods has no row 'denes', expected one of dense, dense_equal",
    ),
    (
      ("--table", "bert_methods", "--scale", "tiny", "--seeds", "0"),
      "--seeds 0, expected at least 1",
    ),
    (
      ("--table", "bert_methods", "--runs", "gs://bucket/runs"),
      "'gs://bucket/runs' is an address, expected a folder of this machine",
    ),
    (
      ("--table", "theory_lemma", "--seeds", "2"),
      "--table theory_lemma takes none of --seeds, --only",
    ),
    (
      ("--table", "theory_polynomial", "--scale", "tiny"),
      "--table theory_polynomial takes none of --scale, --seeds",
    ),
    (
      ("--table", "bert_methods", "--scale", "tiny", "--gin.LEARNING_RATE=1"),
      "--gin.LEARNING_RATE=1: rows and runs differ in LEARNING_RATE",
    ),
  ],
)
def test_mistakes_get_one_clear_error(argv, message, program, tmp_path, capsys):
  with pytest.raises(SystemExit) as info:
    program.main(argv)
  assert info.value.code == 2
  assert message in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_configuration_errors_are_those_of_the_program(tmp_path):
  setting = runs.Setting("tiny", tmp_path, ("--gin.NOTHING=1",))
  with pytest.raises(ConfigurationError, match="NOTHING"):
    run_of(setting, "dense").configure()
