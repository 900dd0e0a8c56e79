"""The notebook in examples/ runs, and shows what a run of it shows."""

import base64
import json
import re
from pathlib import Path

import jax
import matplotlib
import pytest
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "examples" / "random_paths.ipynb"
PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def cells():
  return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def sources(cells):
  """The code of each code cell."""
  return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def test_the_notebook_runs(cells, tmp_path, monkeypatch):
  """Its cells, one after another in one namespace.

  A Jupyter kernel would do the same, and needs a dozen packages more.
  """
  monkeypatch.chdir(tmp_path)
  matplotlib.use("Agg")
  monkeypatch.setattr(jax, "device_count", lambda: 1)  # Eight take longer.
  shown = []
  monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
  scope = {}
  for source in sources(cells):
    exec(source, scope)
  plt.close("all")
  assert len(shown) == 2
  assert scope["full"][-1]["loss"] < scope["full"][0]["loss"]
  assert Path(scope["experiment"].model_dir, "summary.md").exists()


def test_it_imports_only_what_users_have(cells):
  lines = "\n".join(sources(cells)).splitlines()
  imports = {line for line in lines if re.match(r"(import|from) .*raptr", line)}
  assert imports == {"import raptr_jax as rj"}


def test_its_pictures_are_committed_and_small(cells):
  outputs = [o for c in cells for o in c.get("outputs", [])]
  pictures = [o["data"]["image/png"] for o in outputs if "data" in o]
  assert [base64.b64decode(p)[:6] for p in pictures] == [PNG] * 2
  assert NOTEBOOK.stat().st_size < 300_000


def test_its_outputs_name_no_folder_of_the_machine_it_ran_on(cells):
  texts = [
    "".join(output.get("text", ()))
    for cell in cells
    for output in cell.get("outputs", [])
  ]
  assert any("finished" in text for text in texts)
  assert not re.search(r"(/home|/root|/tmp|/work)/", "".join(texts))
