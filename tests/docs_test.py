"""The pages that are written from the code leave nothing out."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def load(name: str):
  """A module of the folder docs/."""
  spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def generate():
  return load("generate")


def test_each_macro_of_the_gin_files_has_one_meaning(generate):
  tables = generate.macro_meanings().values()
  meanings = [macro for table in tables for macro in table]
  assert len(meanings) == len(set(meanings))
  assert set(meanings) == set(generate.macro_defaults())


def test_each_table_of_macros_is_on_the_page_of_macros(generate):
  page = (DOCS / "reference" / "macros.md").read_text(encoding="utf-8")
  shown = re.findall(r"generated/macros_(\w+)\.md", page)
  assert shown == list(generate.macro_meanings())


def test_a_default_is_what_the_gin_files_set(generate):
  tables = dict(generate.macro_tables())
  pretrain = (ROOT / "gin" / "runs" / "pretrain.gin").read_text()
  batch_size = re.search(r"^BATCH_SIZE = (\d+)", pretrain, re.MULTILINE)
  assert f"| `{batch_size.group(1)}` |" in tables["run"]
  rows = dict(
    re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", "".join(tables.values()), re.M)
  )
  assert rows["MODEL_DIR"] == rows["PATH_LENGTHS"] == "to be set"
  assert "(data/bert)" in rows["TASK_FEATURE_LENGTHS"]


def test_each_module_is_on_a_page(generate):
  pages = "".join(text for _, text in generate.package_pages())
  shown = set(re.findall(r"automodule:: ([\w.]+)", pages))
  package = ROOT / "raptr_jax"
  files = [*package.rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]
  modules = set()
  for path in files:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    name = name.removesuffix(".__init__")
    modules.add(re.sub(r"^tasks\b", "raptr_jax.tasks", name))
  assert shown == modules


def test_what_is_imported_from_the_package_itself_is_listed(generate):
  page = dict(generate.package_pages())["raptr_jax"]
  assert ":py:obj:`~raptr_jax.inference.run.load`" in page
  assert ":py:mod:`~raptr_jax.methods.policies`" in page


def test_blocks_of_a_docstring_are_shown_as_typed():
  lines = ["A formula:", "  x | y", "", "`Draw`s, |x|.", "", "Args:", "  x: L."]
  load("conf").house_style(None, "function", "f", None, None, lines)
  assert lines == [
    "A formula:",
    "",
    ".. code-block:: text",
    "",
    "  x | y",
    "",
    "",
    r"`Draw`\ s, \|x\|.",
    "",
    "Args:",
    r"  x: \L.",
  ]
