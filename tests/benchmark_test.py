"""The benchmark tells its programs apart, and its suites run."""

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import benchmark
from benchmarks import attention, dense, drop, inputs, results, startup, timing
from benchmarks.programs import Trainer, Workload
from raptr_jax import main
from raptr_jax.configuration import configure
from raptr_jax.models.attention import IMPLEMENTATIONS
from raptr_jax.models.bert import BertConfig
from raptr_jax.models.masks import Mask

ROOT = Path(__file__).resolve().parent.parent
BERT = Workload(
  "BERT",
  BertConfig(32, 4, 16, 2, norm="pre", dropout_rate=0.0, remat="none"),
  batch=8,
  length=8,
)
# Not installed where only a suite's own packages are.
OTHERS = {"gin", "grain", "seqio", "tensorflow", "array_record", "torch"}


def run(capsys, *argv):
  """What the program prints."""
  benchmark.main(["--size=tiny", "--rounds=1", *argv])
  return capsys.readouterr().out


@pytest.fixture(scope="module")
def dropped(tmp_path_factory):
  """Suite `drop` as JSON, on one small model."""
  path = tmp_path_factory.mktemp("benchmark") / "drop.json"
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(drop.WORKLOADS, "tiny", (BERT,))
    patch.setattr(drop, "QUARTERS", (2, 4))
    benchmark.main(["--size=tiny", "--rounds=2", f"--json={path}"])
  return json.loads(path.read_text("utf-8"))


def table(content, suite, beginning):
  """The rows of the table whose name begins so."""
  (rows,) = (
    rows
    for name, rows in content["suites"][suite].items()
    if name.startswith(beginning)
  )
  return rows


def test_each_path_length_has_a_row_for_each_program(dropped):
  rows = table(dropped, "drop", "Paths")
  assert [(row["k"], row["program"]) for row in rows] == [
    *((2, p) for p in ("dense-k", "gather", "bucket", "cond", "multiply")),
    *((4, p) for p in ("dense-k", "gather", "cond", "multiply")),
  ]
  assert all(row["ms"] > 0 for row in rows)
  ideal = [row for row in rows if row["program"] == "dense-k"]
  assert [row["over dense-k"] for row in ideal] == [1.0, 1.0]
  assert [row["drop efficiency"] is None for row in ideal] == [False, True]


def test_a_short_path_needs_less_memory_unless_it_is_multiplied(dropped):
  memory = {
    (row["k"], row["program"]): row["temporary MB"]
    for row in table(dropped, "drop", "Paths")
  }
  assert memory[2, "gather"] < memory[4, "gather"] < memory[2, "bucket"]
  assert memory[2, "multiply"] == memory[4, "multiply"] == memory[4, "gather"]
  assert memory[2, "cond"] == memory[4, "cond"]


def test_the_whole_run_is_the_mean_of_its_stages(dropped):
  *stages, whole = table(dropped, "drop", "End to end")
  assert [row["stage"] for row in stages] == [
    f"{length} layers" for length in (2, 3, 3, 4)
  ]
  for name in ("dense, ms", "RaPTr, ms"):
    assert whole[name] == pytest.approx(
      statistics.mean(row[name] for row in stages)
    )
  assert whole["in FLOPs of layers"] == pytest.approx(4 / 3)
  assert 1 < whole["in FLOPs"] < 4 / 3  # The head counts, too.


def test_gradients_are_checked(dropped):
  rows = table(dropped, "drop", "Gradients")
  assert [row["holds"] for row in rows] == [True, True]
  assert rows[0]["found"] == 0
  assert rows[1]["found"] < 1e-4


def test_a_gradient_of_a_skipped_layer_is_found():
  mask = np.array([True, False, True])
  grads = {"stack": {"layers": {"w": np.ones((3, 2))}}, "head": np.ones(3)}
  assert drop._largest_of_skipped(grads, mask) == 1
  grads["stack"]["layers"]["w"][1] = 0
  assert drop._largest_of_skipped(grads, mask) == 0


def test_gradients_that_differ_are_found():
  x, y = np.array([1.0, -4.0]), np.array([2.0, -4.0])
  assert drop._apart(x, x) == 0
  assert drop._apart(y, x) == 0.25


def test_the_header_has_versions_and_the_device(dropped):
  head = dropped["header"]
  assert head["versions"]["jax"]
  assert head["devices"] == "8 x cpu"


def test_without_torch_there_is_no_peer(monkeypatch, capsys):
  monkeypatch.setattr(dense, "missing", lambda packages: [*packages])
  monkeypatch.setattr(dense, "workloads", lambda size: [BERT])
  monkeypatch.setattr(dense, "POLICIES", ("full", "none"))
  out = run(capsys, "--suite=dense")
  assert "no peer" in out
  assert re.findall(r"^\| (ours, remat \w+)", out, re.M) == [
    "ours, remat full",
    "ours, remat none",
  ]


def test_a_program_that_does_not_fit_has_a_row(monkeypatch):
  """The others go on, although the state is lost."""

  def run(self, *args):
    if self.workload.config.remat == "full":
      jax.tree.map(lambda x: x.delete(), self._held)
      raise RuntimeError(message)
    real_run(self, *args)

  real_run, message = Trainer._run, "RESOURCE_EXHAUSTED: Out of memory"
  monkeypatch.setattr(Trainer, "_run", run)
  monkeypatch.setattr(dense, "POLICIES", ("full", "none"))
  full, none = dense.steps(BERT, rounds=1, has_peer=False).rows
  assert full["program"] == "ours, remat full: out of memory"
  assert full["ms"] is None
  assert none["ms"] > 0
  message = "something else"
  with pytest.raises(RuntimeError, match="something else"):
    dense.steps(BERT, rounds=1, has_peer=False)


@pytest.fixture(scope="module")
def attended():
  """The tables of suite `attention`; only the first is a check."""
  return list(attention.run("tiny", 1))


def test_kernels_of_attention_are_timed(attended):
  for found in attended[1:]:
    assert [row["kernel"] for row in found.rows] == ["plain", "chunked"]
    assert all(row["ms"] > 0 for row in found.rows)


def test_kernels_of_attention_are_checked(attended):
  rows = attended[0].rows
  assert [(row["mask"], row["kernel"]) for row in rows] == [
    (mask, kernel)
    for mask in ("packed", "causal", "prefix", "cross")
    for kernel in ("plain", "chunked")
  ]
  assert attended[0].holds
  # In one chunk they would be equal.
  assert all(row["found"] > 0 for row in rows if row["kernel"] == "chunked")


def test_a_kernel_that_reads_what_is_masked_is_found(monkeypatch):
  def everything(query, keys, values, mask, *args):
    mask = Mask(0 * mask.queries, 0 * mask.keys)
    return plain(query, keys, values, mask, *args)

  plain = IMPLEMENTATIONS["plain"]
  monkeypatch.setitem(IMPLEMENTATIONS, "chunked", everything)
  rows = attention.agreement("float32").rows
  assert [row["holds"] for row in rows] == [True, False] * 4


def test_attention_that_does_not_fit_is_not_run(monkeypatch):
  monkeypatch.setattr(attention, "MACHINE_GB", 1e-9)
  rows = list(attention._rows((2, 2, 16, 8), "float32", 1))
  assert [row["ms"] for row in rows] == [None, None]
  assert all(row["temporary MB"] > 0 for row in rows)


def test_the_input_suite_reads_a_whole_text(monkeypatch):
  monkeypatch.setitem(inputs.WORDS, "tiny", 10_000)
  (found,) = inputs.run("tiny", 1)
  assert [row["pipeline"] for row in found.rows] == ["prepared", "streamed"] * 2
  for row in found.rows:
    assert row["examples"] >= inputs.BATCH
    assert row["examples per CPU second"] > 0


def test_a_stage_waits_from_the_evaluation_to_its_first_step():
  times = {step: 10.0 + step for step in range(1, 16)}
  times |= {step: times[step] + 7 for step in range(5, 16)}
  entries = [startup.Entry("train", *item) for item in times.items()]
  entries += [startup.Entry("eval", n, times[n] + 0.5) for n in (4, 8, 12)]
  row = startup._row("empty cache", 16, entries)
  assert row["first step after, s"] == 11
  assert [row[f"stage {n} waits, s"] for n in (2, 3, 4)] == [7.5, 0.5, 0.5]
  assert row["step of the last stage, s"] == 1


@pytest.mark.parametrize("size", startup.STEPS)
def test_the_command_of_the_start_is_a_run(size, tmp_path):
  words = startup.command(tmp_path, size, "train", "x")
  main.configure(words[words.index("raptr_jax.main") + 1 :])
  run = configure.build("RUN")
  assert run.total_steps == startup.STEPS[size]
  assert len(run.boundaries) == startup.STAGES - 1


def test_programs_take_turns_in_both_orders():
  calls = []
  steps = {name: lambda name=name: calls.append(name) for name in "abc"}
  seconds = timing.take_turns(steps, rounds=3, warmup=1)
  assert "".join(calls) == "cba" + "abc" + "cba" + "abc"
  assert {name: len(x) for name, x in seconds.items()} == dict.fromkeys(
    "abc", 3
  )


def test_a_ratio_is_the_median_of_those_of_the_rounds():
  assert timing.ratio([1.0, 20.0, 3.0], [1.0, 10.0, 1.0]) == 2.0


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (None, "–"), (True, "yes"), (12345, "12345"), (12345.6, "12,346"),
    (123.45, "123.5"), (1.0, "1.000"), (0.0, "0.000"), (2e-7, "2.0e-07"),
    ("x", "x"),
  ],
)  # fmt: skip
def test_numbers_have_three_to_four_digits(value, text):
  assert results.shown(value) == text


def test_columns_without_a_value_are_left_out():
  found = results.Table("T", [{"a": 1, "b": None}, {"a": None, "b": None}])
  lines = found.markdown().splitlines()
  assert lines == ["## T", "", "| a |", "|---|", "| 1 |", "| – |"]


def test_a_check_that_does_not_hold_is_the_exit_code(monkeypatch, capsys):
  failed = results.Table("T", [{"check": "c", "holds": False}])
  monkeypatch.setitem(benchmark.SUITES, "drop", lambda *_: [failed])
  with pytest.raises(SystemExit) as info:
    run(capsys)
  assert info.value.code == 1


def test_suites_whose_packages_are_missing_are_left_out(monkeypatch, capsys):
  found = results.Table("T", [{"a": 1}])
  for suite in benchmark.SUITES:
    monkeypatch.setitem(benchmark.SUITES, suite, lambda *_: [found])
  monkeypatch.setitem(benchmark.NEEDED, "input", ("no-such-package",))
  assert run(capsys, "--suite=all").count("## T") == len(benchmark.SUITES) - 1
  with pytest.raises(SystemExit) as info:
    run(capsys, "--suite=input")
  assert info.value.code == 2
  assert "input: no-such-package not installed" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "-1", "x", ""])
def test_a_number_of_rounds_is_at_least_1(text, capsys):
  with pytest.raises(SystemExit) as info:
    benchmark.main([f"--rounds={text}"])
  assert info.value.code == 2
  assert f"{text!r}, expected at least 1" in capsys.readouterr().err


def test_the_suites_of_steps_need_few_packages():
  program = (
    "import sys; sys.path.insert(0, 'scripts'); import benchmark;"
    f"print(sorted(set(sys.modules) & {OTHERS}))"
  )
  result = subprocess.run(
    [sys.executable, "-c", program],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.strip() == "[]"


def test_the_suite_for_gpus_names_tests_and_suites_that_exist():
  text = (ROOT / "scripts" / "gpu_suite.sh").read_text("utf-8")
  tests = re.findall(r"tests/\w+_test\.py", text)
  assert tests
  assert all((ROOT / path).is_file() for path in tests)
  suites = re.findall(r"^(\w+) \d+$", text, re.M)
  assert suites
  assert set(suites) <= set(benchmark.SUITES)
