"""`scripts/compiled_programs.py` and its page."""

import json
import subprocess

import pytest

import compiled_programs
from raptr_jax.training import fitting, programs
from raptr_jax.training.compiled_program import CompiledStep, Memory
from raptr_jax.training.targets import Chip

LEAVES = ["quickstart_bert_dense", "quickstart_bert_raptr"]


@pytest.fixture
def compiled(monkeypatch):
  """The microbatches of each step that was compiled; they need 900 / parts."""
  compiled = []

  def compile_step(experiment, draws):
    (path,) = draws.values()
    parts = experiment.num_microbatches
    compiled.append((len(path.indices), parts))
    return CompiledStep(Memory(70, 20, 10, 900 // parts), 3.0, None)

  for module in (compiled_programs, fitting):
    monkeypatch.setattr(module, "compile_step", compile_step)
  monkeypatch.setitem(programs.CHIPS, "cpu", Chip(400, 1e9))
  return compiled


def run(tmp_path, *targets):
  """The page, after the programs have been compiled in this process."""
  folders = [f"--folder={tmp_path}", f"--results={tmp_path}"]
  experiments = ["--experiments", *LEAVES]
  flags = [*experiments, *folders]
  if targets:
    compiled_programs.main([*flags, "--in_process", "--targets", *targets])
  compiled_programs.main([*flags, "--targets"])
  return (tmp_path / "compiled_programs.md").read_text()


def test_programs_are_compiled_once_until_they_fit(compiled, tmp_path):
  page = run(tmp_path, "cpu")
  # Both experiments have the full path, which does not fit with "full" for
  # REMAT alone either; the short path of RaPTr is compiled with what lets the
  # full one fit.
  assert compiled == [(6, 1), (6, 1), (6, 4), (2, 4)]
  (file,) = tmp_path.glob("*.json")
  found = json.loads(file.read_text())
  assert (found["target"], found["num_devices"]) == ("cpu", 8)
  assert [record["experiments"] for record in found["programs"]] == [
    LEAVES, LEAVES, LEAVES, LEAVES[1:],
  ]  # fmt: skip
  rows = [line for line in page.splitlines() if line.startswith(("| 6", "| 2"))]
  assert [row.split(" | ")[1] for row in rows] == [
    "as configured",
    "REMAT = 'full'",
    *["REMAT = 'full', 4 microbatches"] * 2,
  ]  # fmt: skip
  assert "## 8 x cpu (`cpu`)" in page


def test_what_is_known_is_not_compiled_again(compiled, tmp_path):
  first = run(tmp_path, "cpu")
  compiled.clear()
  assert run(tmp_path, "cpu") == run(tmp_path) == first
  assert compiled == []


def test_a_crash_of_the_compiler_loses_one_model(tmp_path, monkeypatch):
  """The script calls itself again, and the page says what is missing."""
  codes = [-11, 0]

  def compile_in_own_process(command, check):
    code = codes.pop(0)
    if code:
      known = {
        "target": "v6e:4x4",
        "kind": "TPU v6 lite",
        "num_devices": 16,
        "experiments": LEAVES[1:],
        "provenance": {"versions": {}, "date": "today", "hardware": "none"},
        "programs": [],
      }
      (tmp_path / "v6e_4x4_some.begun").write_text(json.dumps(known))
    return subprocess.CompletedProcess(command, code)

  monkeypatch.setattr(subprocess, "run", compile_in_own_process)
  folders = [f"--folder={tmp_path}", f"--results={tmp_path}"]
  compiled_programs.main(["--targets", "v6e:4x4", *folders])
  assert codes == [] and not list(tmp_path.glob("*.begun"))
  page = (tmp_path / "compiled_programs.md").read_text()
  assert "`quickstart_bert_raptr`:\n\nThe compiler crashed" in page


def test_an_unknown_target_is_an_error_in_one_line(tmp_path, capsys):
  with pytest.raises(SystemExit) as info:
    run(tmp_path, "abacus:1")
  assert info.value.code == 2
  assert capsys.readouterr().err.startswith("error: TARGET = 'abacus:1'")
