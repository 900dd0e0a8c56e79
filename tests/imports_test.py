"""The import order as a test: imports only point up the list."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ORDER = [
  "contracts", "provenance", "schedule", "policies", "growth", "flops", "losses",
  "optim", "partitioning", "state", "models.layers", "models.masked_stack",
  "models.bert", "models.published_bert", "models.language_model",
  "models.decoder", "models.relative_positions", "models.encoder_decoder", "data", "train_step", "execution",
  "checkpoint", "metrics", "evaluate", "generate", "text_model", "infill",
  "experiment", "plan", "dry_run", "plots", "display", "report", "train",
  "downstream", "main", "theory.lemma", "theory.trained_gap", "theory.polynomial",
]  # fmt: skip
HEAVY = {"tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio", "clu"}


def imports(path: Path) -> set[str]:
  """Modules of ours that a file imports, wherever in it."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.ImportFrom):
      names = [f"{node.module}.{alias.name}" for alias in node.names]
      found |= {node.module, *names}
    elif isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
  return found


def test_the_list_is_complete():
  files = (ROOT / "raptr_jax").rglob("*.py")
  names = {
    ".".join(path.relative_to(ROOT / "raptr_jax").with_suffix("").parts)
    for path in files
    if path.name != "__init__.py"
  }
  assert names == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_up(module):
  path = ROOT / "raptr_jax" / f"{module.replace('.', '/')}.py"
  below = ORDER[ORDER.index(module) :]
  used = imports(path)
  assert not [name for name in below if f"raptr_jax.{name}" in used]


@pytest.mark.parametrize("module", [m for m in ORDER if m.startswith("models")])
def test_models_know_no_methods(module):
  used = imports(ROOT / "raptr_jax" / f"{module.replace('.', '/')}.py")
  assert not used & {"raptr_jax.policies", "raptr_jax.schedule"}


@pytest.mark.parametrize("module", ["policies", "schedule", "growth"])
def test_methods_know_no_models(module):
  used = imports(ROOT / "raptr_jax" / f"{module}.py")
  assert not [name for name in used if name.startswith("raptr_jax.models")]


def test_only_main_imports_gin():
  for path in (ROOT / "raptr_jax").rglob("*.py"):
    used = imports(path) & {"gin", "gin.config"}
    assert not used or path.name == "main.py", path


def test_tasks_import_neither_jax_nor_this_package():
  for path in (ROOT / "tasks").rglob("*.py"):
    tops = {name.split(".")[0] for name in imports(path)}
    assert "jax" not in tops, path
    if path.name != "prepare.py":  # Its main reads the same flags and gin.
      assert "raptr_jax" not in tops, path


def test_training_loads_no_tensorflow_and_no_seqio():
  program = (
    "import raptr_jax.train, raptr_jax.data, raptr_jax.main, sys;"
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
