"""The commands that the documentation shows are real."""

import importlib
import re
import shlex
from pathlib import Path

import gin
import pytest

from raptr_jax import main
from raptr_jax.inference import evaluation
from raptr_jax.training import experiment

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md")


def commands() -> list[str]:
  """Lines of the shell blocks of all pages."""
  lines = []
  for page in PAGES:
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
      lines += block.splitlines()
  return lines


def programs() -> list[str]:
  return [line for line in commands() if line.startswith("python ")]


def test_there_are_commands():
  assert len(programs()) >= 9


TABLE_COMMANDS = [p for p in programs() if "scripts/reproduce.py" in p]
RUN_COMMANDS = [p for p in programs() if p not in TABLE_COMMANDS]


@pytest.mark.parametrize("line", RUN_COMMANDS)
def test_a_command_configures_a_run(line, tmp_path, monkeypatch):
  (tmp_path / "books").mkdir()
  monkeypatch.chdir(tmp_path)
  words = shlex.split(line)
  if "--gin_file=runs/decoder/config.gin" in words:
    leave_config("quickstart_ul2_decoder_raptr", tmp_path / "runs/decoder")
  program = words[1:3] if words[1] == "-m" else words[1:2]
  assert program in (["-m", "raptr_jax.main"], ["scripts/prepare.py"])
  main.configure(words[1 + len(program) :], "")
  run = gin.get_configurable(gin.query_parameter("%RUN").selector)()
  if isinstance(run, evaluation.Evaluation):
    run = run.experiment
  assert run.train_dataset.batch_spec()


def leave_config(leaf: str, folder: Path) -> None:
  """Leaves in a folder what a run of this leaf leaves there."""
  leaf = f"--gin_file=experiments/{leaf}.gin"
  main.configure([leaf, f"--gin.MODEL_DIR='{folder}'"], "")
  folder.mkdir(parents=True)
  (folder / "config.gin").write_text(gin.config_str(), encoding="utf-8")


@pytest.mark.parametrize("line", TABLE_COMMANDS)
def test_a_command_names_a_table(line, tmp_path, monkeypatch):
  """Its rows are configured with the flags that it passes on."""
  monkeypatch.syspath_prepend(ROOT / "scripts")
  monkeypatch.chdir(tmp_path)
  reproduce = importlib.import_module("reproduce")
  tables = importlib.import_module("tables.runs")
  python, script, *words = shlex.split(line)
  assert (python, script) == ("python", "scripts/reproduce.py")
  overrides = tuple(word for word in words if word.startswith("--gin."))
  args = reproduce._parser().parse_args(
    [w for w in words if w not in overrides]
  )
  if args.table in reproduce.THEORY:
    return
  setting = reproduce.Setting(args.scale, tmp_path, overrides)
  row = reproduce.TABLES[args.table].rows[-1]
  tables.Run(setting, row, 1e-3, 0).configure()
  run = gin.get_configurable(experiment.Experiment)()
  assert run.train_dataset.batch_spec()


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page):
  text = (ROOT / page).read_text(encoding="utf-8")
  names = re.findall(r"(?:\./|\(|`)((?:\w+/)+[\w.]+\.\w+)", text)
  names += re.findall(r"\]\(([^)#:]+)\)", text)
  assert names
  for name in names:
    if "triangle" in name:  # An example of a file to write.
      continue
    places = (ROOT, ROOT / "raptr_jax", ROOT / "gin")
    assert any((place / name).exists() for place in places), name


def test_overrides_that_the_readme_names_are_known():
  text = (ROOT / "README.md").read_text(encoding="utf-8")
  flags = re.findall(r"`(--gin\.[a-z][^`]+)`", text)
  assert flags
  leaf = "--gin_file=experiments/quickstart_bert_raptr.gin"
  for flag in flags:
    main.configure([leaf, "--gin.MODEL_DIR='x'", *shlex.split(flag)], "")


def test_the_method_that_contributing_shows_works():
  from raptr_jax.methods import policies

  text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
  code = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)
  assert code
  scope = dict(vars(policies))
  exec(code.group(1), scope)
  policy = scope["triangle"](num_layers=4, shortest=2, total_steps=10)
  assert policy.keep_probabilities(0).tolist() == [1, 1, 0, 0]
  assert policy.keep_probabilities(10).tolist() == [1, 1, 1, 1]
