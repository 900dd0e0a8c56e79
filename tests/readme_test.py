"""The commands that the documentation shows are real."""

import ast
import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import gin
import pytest

import raptr_jax
from raptr_jax import main
from raptr_jax.configuration import configure
from raptr_jax.fine_tuning import fine_tuning
from raptr_jax.inference import evaluation
from raptr_jax.inference.run import Run
from raptr_jax.scaffold import new
from raptr_jax.tasks.labelled import glue, squad
from raptr_jax.training import experiment, targets
from tests.object_store import install

ROOT = Path(__file__).resolve().parent.parent
LEAF = "--gin_file=experiments/quickstart_bert_raptr.gin"
# Runs that commands evaluate or resume, and what they are runs of.
RUNS = {
  "runs/decoder": "quickstart_ul2_decoder_raptr",
  "runs/mine": "quickstart_bert_raptr",
  "runs/bert": "quickstart_bert_raptr",
  "gs/bucket/runs/mine": "quickstart_bert_raptr",  # Of an object store.
}


def pages() -> dict[str, str]:
  """The texts of all pages that people write, by their names."""
  docs = (ROOT / "docs").rglob("*.md")
  paths = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(path for path in docs if path.parent.name != "generated"),
  ]
  return {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in paths
  }


PAGES = pages()


def blocks(language: str) -> list[str]:
  """The blocks of a language, on all pages, each once."""
  pattern = rf"```{language}\n(.*?)```"
  found = (re.findall(pattern, t, flags=re.DOTALL) for t in PAGES.values())
  return list(dict.fromkeys(block for page in found for block in page))


def programs() -> list[str]:
  """Commands that start a program of this project, each once."""
  joined = (block.replace("\\\n", " ") for block in blocks("bash"))
  lines = (line for block in joined for line in block.splitlines())
  words = (" ".join(line.split()) for line in lines)
  return list(
    dict.fromkeys(w for w in words if w.startswith(("raptr ", "python ")))
  )


PROGRAMS = programs()
TABLE_COMMANDS = [p for p in PROGRAMS if "scripts/reproduce.py" in p]
BENCHMARK_COMMANDS = [p for p in PROGRAMS if "scripts/benchmark.py" in p]
COMPILE_COMMANDS = [p for p in PROGRAMS if "scripts/compiled_programs.py" in p]
NEW_COMMANDS = [p for p in PROGRAMS if p.startswith("raptr new ")]
HARNESS_COMMANDS = [p for p in PROGRAMS if "raptr_jax.contrib.lm_eval" in p]
OTHER_COMMANDS = (
  *TABLE_COMMANDS,
  *BENCHMARK_COMMANDS,
  *COMPILE_COMMANDS,
  *NEW_COMMANDS,
  *HARNESS_COMMANDS,  # `lm_eval_test.py` reads them.
)
RUN_COMMANDS = [p for p in PROGRAMS if p not in OTHER_COMMANDS]


def test_there_are_commands_of_each_kind():
  assert len(RUN_COMMANDS) >= 15
  assert len(TABLE_COMMANDS) >= 4
  assert BENCHMARK_COMMANDS
  assert COMPILE_COMMANDS
  assert NEW_COMMANDS


@pytest.mark.parametrize("line", RUN_COMMANDS)
def test_a_command_configures_a_run(line, tmp_path, monkeypatch):
  (tmp_path / "books").mkdir()
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  install(monkeypatch, tmp_path)
  program, *words = shlex.split(line, comments=True)
  assert program == "raptr"
  # The plugins of other targets may not be installed.
  words = [re.sub(r"^--target=.*", "--target=cpu", word) for word in words]
  files = [word for word in words if word.startswith("--gin_file=")]
  if not files or any(word.endswith("/config.gin") for word in files):
    for folder, leaf in RUNS.items():
      leave_config(leaf, tmp_path / folder)
  flags = main.configure(words)
  if flags.hf_dir is not None:
    return
  run = configure.build("RUN")
  if isinstance(run, fine_tuning.FineTuning):
    assert run.task in {*glue.TASKS, *squad.TASKS}
    return
  assert isinstance(run, evaluation.Evaluation) == ("--run_mode=eval" in words)
  if isinstance(run, evaluation.Evaluation):
    run = run.experiment
  assert run.train_dataset.batch_spec()


def leave_config(leaf: str, folder: Path) -> None:
  """Leaves in a folder what a run of this leaf leaves there."""
  depth = ["--gin.NUM_LAYERS=12"] if folder.name == "bert" else []
  main.configure(
    [
      f"--gin_file=experiments/{leaf}.gin",
      f"--gin.MODEL_DIR='{folder}'",
      *depth,
    ]
  )
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
  if args.table == reproduce.FINE_TUNING:
    runs = importlib.import_module("fine_tuning.finetune_runs")
    table = runs.FineTuningTable.of(args.scale, tmp_path, overrides, seeds=1)
    for run in table.pretraining().values():
      run.configure()
    for part in table.parts():
      main.configure(part.arguments())
    return
  setting = reproduce.Setting(args.scale, tmp_path, overrides)
  row = reproduce.TABLES[args.table].rows[-1]
  tables.Run(setting, row, 1e-3, 0).configure()
  run = gin.get_configurable(experiment.Experiment)()
  assert run.train_dataset.batch_spec()


@pytest.mark.parametrize("line", BENCHMARK_COMMANDS)
def test_a_command_names_a_suite(line, monkeypatch):
  monkeypatch.syspath_prepend(ROOT / "scripts")
  benchmark = importlib.import_module("benchmark")
  python, script, *words = shlex.split(line)
  assert (python, script) == ("python", "scripts/benchmark.py")
  assert benchmark.parse_args(words).suite in (*benchmark.SUITES, "all")


@pytest.mark.parametrize("line", COMPILE_COMMANDS)
def test_a_command_names_targets(line, monkeypatch):
  monkeypatch.syspath_prepend(ROOT / "scripts")
  script = importlib.import_module("compiled_programs")
  python, name, *words = shlex.split(line)
  assert (python, name) == ("python", "scripts/compiled_programs.py")
  kinds = {
    name.partition(":")[0]
    for name in script._parser().parse_args(words).targets
  }
  assert kinds <= {*targets.GPUS, *targets.TPUS}


@pytest.mark.parametrize("line", NEW_COMMANDS)
def test_a_command_writes_files_to_begin_with(line, tmp_path):
  words = shlex.split(line, comments=True)[2:]
  new.main([*words, f"--folder={tmp_path}"])
  assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page):
  text = PAGES[page]
  names = re.findall(r"(?:\./|\(|`)((?:\w+/)+[\w.]+\.\w+)", text)
  names += re.findall(r"\]\(([^)#:]+)\)", text)
  folder = (ROOT / page).parent
  places = (ROOT, ROOT / "raptr_jax", ROOT / "gin", folder)
  for name in names:
    if not name.startswith("generated/"):  # Written when pages are built.
      assert any((place / name).exists() for place in places), name


def test_overrides_that_the_pages_name_are_known():
  text = "\n".join(PAGES.values())
  flags = set(re.findall(r"`(--gin\.[a-z][^`]+)`", text))
  assert len(flags) >= 5
  for flag in flags:
    main.configure([LEAF, "--gin.MODEL_DIR='x'", *shlex.split(flag)])


def test_names_in_python_blocks_exist():
  attributes = {field.name for field in dataclasses.fields(Run)} | {*dir(Run)}
  for block in blocks("python"):
    for node in ast.walk(ast.parse(block)):
      if not isinstance(node, ast.Attribute):
        continue
      owner = node.value.id if isinstance(node.value, ast.Name) else None
      if owner == "raptr_jax":
        assert node.attr in raptr_jax.__all__, node.attr
      elif owner == "run":
        assert node.attr in attributes, node.attr
