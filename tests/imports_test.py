"""The import order as a test: arrows between rooms point one way."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A room is a folder, or a file that stands by itself. Each imports only from
# rooms before it.
ROOMS = {
  "tasks": (
    "extras", "files", "progress", "text", "objectives", "task", "mixture",
    "prepared", "downstream",
  ),
  "raptr_jax": (
    "contracts", "methods", "models", "data", "reports", "training",
    "inference", "theory", "main",
  ),
}  # fmt: skip
HEAVY = {"tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio", "clu"}


def module_files(package: str) -> dict[str, Path]:
  """Files of a package by the name of their module; packages left out."""
  return {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name != "__init__.py"
  }


MODULES = module_files("raptr_jax") | module_files("tasks")


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
  return module.split(".")[1]


def used_modules(module: str) -> set[str]:
  """Modules of ours that a module imports."""
  return imports(module) & MODULES.keys()


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_is_in_the_order(package):
  assert {room(module) for module in module_files(package)} == set(
    ROOMS[package]
  )


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_to_earlier_rooms(module):
  package = module.split(".")[0]
  order = ROOMS[package]
  later = order[order.index(room(module)) + 1 :]
  below = {
    used
    for used in used_modules(module)
    if used.startswith(f"{package}.") and room(used) in later
  }
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
  for module in module_files("raptr_jax"):
    others = {"models": "methods", "methods": "models"}
    other = others.get(room(module))
    used = {room(used) for used in used_modules(module)}
    assert other is None or other not in used, module


def test_only_main_imports_gin():
  for module in MODULES:
    used = imports(module) & {"gin", "gin.config"}
    assert not used or module == "raptr_jax.main"


def test_tasks_import_neither_jax_nor_this_package():
  for module in module_files("tasks"):
    tops = {name.split(".")[0] for name in imports(module)}
    assert not tops & {"jax", "flax", "raptr_jax"}, module


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
