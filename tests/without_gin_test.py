"""The example that trains without gin: short, and it works."""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import raptr_jax
from raptr_jax.training.optim import adafactor, adamw
from tests.small_task import write_own_text

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "train_without_gin.py"
PAGE = ROOT / "docs" / "from_python.md"
TINY = {
  "6, 128, 2,": "6, 16, 2,",
  '{"inputs": 64}': '{"inputs": 32}',
  "batch_size=32": "batch_size=8",
  "total_steps=300": "total_steps=4",
}


def code():
  """The script without its docstring."""
  text = SCRIPT.read_text("utf-8")
  return text.partition('"""\n\n')[2]


def test_the_script_has_less_than_20_lines_and_imports_one_package():
  lines = [line for line in code().splitlines() if line.strip()]
  assert len(lines) < 20
  imports = [
    node
    for node in ast.walk(ast.parse(code()))
    if isinstance(node, ast.Import | ast.ImportFrom)
  ]
  assert [ast.unparse(node) for node in imports] == ["import raptr_jax as rj"]


def page_blocks():
  """The blocks of Python on the page."""
  text = PAGE.read_text("utf-8")
  return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_page_shows_the_script():
  assert code() in page_blocks()


def test_the_script_trains_on_little_text_and_its_model_can_be_used(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(jax, "device_count", lambda: 1)  # Eight take longer.
  write_own_text(tmp_path / "books")
  text = code()
  for old, new in TINY.items():
    assert old in text
    text = text.replace(old, new)
  names = {}
  exec(compile(text, SCRIPT, "exec"), names)
  assert (tmp_path / "runs" / "books" / "summary.json").is_file()
  run = raptr_jax.Run.restore(names["experiment"], **names["data"])
  assert run.step == 4
  size = run.vocabulary.size
  assert size < 2048 and run.model.config.vocab_size == size
  (by_hand,) = (block for block in page_blocks() if "jax.grad" in block)
  exec(by_hand, names)
  found = jax.tree.map(jnp.shape, names["gradient"])
  assert found == jax.tree.map(jnp.shape, run.params)
  assert any(x.any() for x in jax.tree.leaves(names["gradient"]))
  (slot,) = run.fill("In the [MASK] God created", layers=4)
  assert len(slot) == 5


@pytest.mark.parametrize("make", [adamw, adafactor])
def test_a_learning_rate_may_be_a_number(make):
  assert make(learning_rate=1e-3).learning_rate(7) == 1e-3
