"""What `raptr new` writes: files that work, without this repository around."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raptr_jax.scaffold import new

ROOT = Path(__file__).resolve().parent.parent
NAMES = {"method": "late_layers", "model": "mean_net", "task": "one_blank"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """One of each kind, in a folder that does not exist before."""
  folder = tmp_path_factory.mktemp("scaffold") / "mine"
  for kind, name in NAMES.items():
    new.main([kind, name, f"--folder={folder}"])
  return folder


def run(folder, *command):
  """Runs a module there; on one device, unlike these tests."""
  flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
  return subprocess.run(
    [sys.executable, "-m", *command],
    cwd=folder,
    env=os.environ | {"XLA_FLAGS": flags},
    capture_output=True,
    text=True,
  )


def test_their_own_tests_pass(folder):
  done = run(folder, "pytest", "-q", "-p", "no:cacheprovider", ".")
  assert done.returncode == 0, done.stdout + done.stderr
  assert "13 passed" in done.stdout


def test_they_are_in_the_style_of_this_repository(folder):
  config = ("--config", str(ROOT / "pyproject.toml"), "--no-cache")
  formatted = run(folder, "ruff", "format", "--check", *config, ".")
  assert formatted.returncode == 0, formatted.stdout
  tests_as_here = "--per-file-ignores=*_test.py:D"
  checked = run(folder, "ruff", "check", *config, tests_as_here, ".")
  assert checked.returncode == 0, checked.stdout


def test_the_commands_to_go_on_with_are_printed(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  new.main(["method", "mine"])
  wrote, *commands = capsys.readouterr().out.splitlines()
  assert wrote.startswith("Wrote mine.py, mine.gin and mine_test.py.")
  assert commands == [
    "  python -m pytest mine_test.py",
    "  raptr --gin_file=experiments/quickstart_bert_raptr.gin"
    " --gin_file=mine.gin --gin.MODEL_DIR=\"'runs/mine'\"",
  ]
  assert {path.name for path in tmp_path.iterdir()} == {
    "mine.py",
    "mine.gin",
    "mine_test.py",
  }
  new.main(["task", "other", "--folder=there"])
  assert "  cd there\n" in capsys.readouterr().out
  assert (tmp_path / "there" / "other.py").exists()


@pytest.mark.parametrize("file", ["mine.py", "mine.gin", "mine_test.py"])
def test_no_file_is_overwritten(file, tmp_path, capsys):
  (tmp_path / file).write_text("mine")
  with pytest.raises(SystemExit) as stopped:
    new.main(["model", "mine", f"--folder={tmp_path}"])
  assert stopped.value.code == 2
  assert f"{tmp_path / file} exists" in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == [file]
  assert (tmp_path / file).read_text() == "mine"


@pytest.mark.parametrize(
  ("name", "reason"),
  [
    ("MyMethod", "lower-case words joined by underscores"),
    ("my-method", "lower-case words joined by underscores"),
    ("../mine", "lower-case words joined by underscores"),
    ("2nd", "lower-case words joined by underscores"),
    ("bert", "raptr_jax has a module of this name"),
    ("tasks", "raptr_jax has a module of this name"),
    ("json", "it is Python's own"),
    ("class", "it is Python's own"),
    ("float", "it is Python's own"),
    ("jnp", "the new files use it"),
    ("layer_policy", "the new files use it"),  # Its class: LayerPolicy.
    ("optax", "Python would import"),
  ],
)
def test_a_name_that_cannot_be_imported_is_refused(
  name, reason, tmp_path, capsys
):
  with pytest.raises(SystemExit) as stopped:
    new.main(["method", name, f"--folder={tmp_path}"])
  assert stopped.value.code == 2
  (message,) = capsys.readouterr().err.splitlines()
  assert message.startswith("error: ")
  assert repr(name) in message
  assert reason in message
  assert not list(tmp_path.iterdir())


def test_another_kind_is_refused(tmp_path, capsys):
  with pytest.raises(SystemExit) as stopped:
    new.main(["dataset", "mine", f"--folder={tmp_path}"])
  assert stopped.value.code == 2
  assert "'method', 'model', 'task'" in capsys.readouterr().err
