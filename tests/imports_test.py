"""The import order as a test: arrows between rooms point one way."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A room is a folder, or a file that stands by itself. Each imports only from
# rooms before it. The folder tasks/ is the package raptr_jax.tasks.
ROOMS = (
  *(
    f"raptr_jax.tasks.{room}"
    for room in (
      "extras", "files", "heartbeat", "progress", "text", "objectives", "task",
      "mixture", "seqio_tasks", "seqio_features", "prepared", "downstream",
      "labelled",
    )
  ),
  *(
    f"raptr_jax.{room}"
    for room in (
      "configuration", "contracts", "methods", "models", "data", "reports",
      "training", "inference", "fine_tuning", "exchange", "contrib", "theory",
      "scaffold", "main",
    )
  ),
)  # fmt: skip
HEAVY = {"tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio", "clu"}


def modules(package: str, folder: Path) -> dict[str, Path]:
  """Files of a package by the name of their module; packages left out."""
  return {
    ".".join((package, *path.relative_to(folder).with_suffix("").parts)): path
    for path in sorted(folder.rglob("*.py"))
    if path.name != "__init__.py"
  }


MODULES = modules("raptr_jax", ROOT / "raptr_jax") | modules(
  "raptr_jax.tasks", ROOT / "tasks"
)


@cache
def imports(module: str) -> set[str]:
  """All that a file imports, wherever in it."""
  found = set()
  for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
    if isinstance(node, ast.ImportFrom):
      assert not node.level, f"{module}: a relative import"
      names = [f"{node.module}.{alias.name}" for alias in node.names]
      found |= {node.module, *names}
    elif isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
  return found


def room(module: str) -> str:
  """The room that a module is in."""
  (found,) = (r for r in ROOMS if f"{module}.".startswith(f"{r}."))
  return found


def used_modules(module: str) -> set[str]:
  """Modules of ours that a module imports."""
  return imports(module) & MODULES.keys()


def test_every_room_is_in_use():
  assert {room(module) for module in MODULES} == set(ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_to_earlier_rooms(module):
  later = ROOMS[ROOMS.index(room(module)) + 1 :]
  below = {used for used in used_modules(module) if room(used) in later}
  assert not below


def test_no_module_imports_itself_in_a_circle():
  done, path = set(), []

  def visit(module):
    assert module not in path, " -> ".join([*path, module])
    if module not in done:
      path.append(module)
      for used in used_modules(module):
        visit(used)
      done.add(path.pop())

  for module in MODULES:
    visit(module)


def test_models_and_methods_do_not_know_each_other():
  methods, models = "raptr_jax.methods", "raptr_jax.models"
  others = {models: methods, methods: models}
  for module in MODULES:
    used = {room(used) for used in used_modules(module)}
    assert others.get(room(module)) not in used, module


def test_only_the_configuration_and_main_import_gin():
  for module in MODULES:
    used = imports(module) & {"gin", "gin.config", "gin.config_parser"}
    rooms = ("raptr_jax.configuration", "raptr_jax.main")
    assert not used or room(module) in rooms, module


def test_tasks_do_not_import_jax():
  for module in MODULES:
    tops = {name.split(".")[0] for name in imports(module)}
    if module.startswith("raptr_jax.tasks."):
      assert not tops & {"jax", "flax"}, module


def test_tasks_have_one_name():
  """Under a second one, their classes would exist twice."""
  for path in ROOT.glob("*/**/*.py"):
    text = path.read_text("utf-8")
    assert not re.search(r"^\s*(from|import) tasks\b", text, re.M), path


def test_training_loads_no_tensorflow_and_no_seqio():
  program = (
    "import raptr_jax.training.loop, raptr_jax.data.prepared, raptr_jax.main,"
    " raptr_jax.data.streaming, raptr_jax.inference.evaluation, sys;"
    f"print(sorted(set(sys.modules) & {HEAVY}))"
  )
  result = subprocess.run(
    [sys.executable, "-c", program],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.strip() == "[]"
