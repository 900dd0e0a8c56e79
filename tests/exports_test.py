"""What `import raptr_jax` gives, and what it costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import raptr_jax

FILE = Path(raptr_jax.__file__)


def test_importing_the_package_imports_no_jax():
  program = (
    "import sys, raptr_jax, raptr_jax.tasks.task;"
    "print('jax' in sys.modules, 'gin' in sys.modules);"
    "raptr_jax.TextFolder; print('jax' in sys.modules);"
    "raptr_jax.BertConfig; print('jax' in sys.modules)"
  )
  result = subprocess.run(
    [sys.executable, "-c", program],
    cwd=FILE.parent.parent,
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.split() == ["False", "False", "False", "True"]


def test_every_name_is_that_of_its_module():
  for name in raptr_jax.__all__:
    value = getattr(raptr_jax, name)
    home = getattr(value, "__module__", value.__name__)
    assert home.startswith("raptr_jax."), name
    assert value.__name__.rpartition(".")[2] == name
  assert set(raptr_jax.__all__) <= set(dir(raptr_jax))


def test_type_checkers_see_the_same_names():
  tree = ast.parse(FILE.read_text("utf-8"))
  (block,) = (
    node
    for node in tree.body
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
  )
  seen = {
    f"{node.module}.{alias.name}"
    for node in block.body
    for alias in node.names
    if alias.asname == alias.name
  }
  expected = {f"raptr_jax.{home}" for home in raptr_jax._MODULES.values()} | {
    f"raptr_jax.{home}.{name}" for name, home in raptr_jax._HOMES.items()
  }
  assert seen == expected


def test_other_names_are_no_attributes():
  with pytest.raises(AttributeError, match="'raptr_jax' has no attribute 'x'"):
    _ = raptr_jax.x


def test_a_misspelled_name_is_corrected():
  program = "import raptr_jax; raptr_jax.Experimnt"
  result = subprocess.run(
    [sys.executable, "-c", program],
    cwd=FILE.parent.parent,
    capture_output=True,
    text=True,
  )
  assert "Did you mean: 'Experiment'?" in result.stderr


def test_completion_offers_no_names_that_only_this_module_uses():
  offered = {name for name in dir(raptr_jax) if not name.startswith("__")}
  assert set(raptr_jax.__all__) <= offered
  assert not offered & {"Any", "TYPE_CHECKING", "importlib", "sys", "_HOMES"}


def test_the_version_is_a_literal_that_a_regular_expression_finds():
  text = FILE.read_text("utf-8")
  (found,) = re.findall(r'^__version__ = "(.*)"$', text, flags=re.MULTILINE)
  assert found == raptr_jax.__version__
